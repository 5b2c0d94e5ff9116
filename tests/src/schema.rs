//! The JSON Schema of exported lines, out of the control API's document: what a record is stands there once.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::paths;

/// Where the schema is published.
#[must_use]
pub fn path() -> PathBuf {
    paths::root().join("docs/export-schema.json")
}

/// The schema as it has to be published.
///
/// # Errors
/// Where the document can't be read or has no record.
pub fn derived() -> Result<String> {
    let document = fs::read_to_string(paths::root().join("docs/openapi.json"))?;
    let document: Value = serde_json::from_str(&document)?;
    let schemas = document
        .pointer("/components/schemas")
        .and_then(Value::as_object)
        .context("the document has no schemas")?;
    let mut definitions = BTreeMap::new();
    let mut wanted = vec!["Record".to_owned()];
    while let Some(name) = wanted.pop() {
        if definitions.contains_key(&name) {
            continue;
        }
        let schema = schemas
            .get(&name)
            .with_context(|| format!("the document has no {name}"))?;
        definitions.insert(name, moved(schema, &mut wanted));
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of `interceptor export --format jsonl`, version 1",
        "$ref": "#/$defs/Record",
        "$defs": definitions,
    });
    Ok(format!("{schema:#}\n"))
}

/// `schema` with its references leading to definitions; `wanted` gets their names.
fn moved(schema: &Value, wanted: &mut Vec<String>) -> Value {
    match schema {
        Value::Array(parts) => parts.iter().map(|part| moved(part, wanted)).collect(),
        Value::Object(members) => {
            let mut out = Map::new();
            for (name, member) in members {
                let reference = member
                    .as_str()
                    .and_then(|text| text.strip_prefix("#/components/schemas/"));
                match (name.as_str(), reference) {
                    ("$ref", Some(reference)) => {
                        wanted.push(reference.to_owned());
                        out.insert(name.clone(), format!("#/$defs/{reference}").into());
                    }
                    // OpenAPI's own word.
                    ("discriminator", _) if member.get("mapping").is_some() => {}
                    _ => {
                        out.insert(name.clone(), moved(member, wanted));
                    }
                }
            }
            Value::Object(out)
        }
        other => other.clone(),
    }
}
