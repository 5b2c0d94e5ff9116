//! The walk through a parse tree: tables, functions, nested statements, wherever they stand.
//!
//! The tree is walked as data, not by type, so that no place is forgotten: an expression in a clause
//! that a future PostgreSQL invents is looked at like any other.

#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value by name gives null where there is nothing"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    NameChange, Reference,
    functions::{self, Call},
    settings, statements,
};
use crate::operation::{Effects, Resource, ResourceKind, Touch};

/// What was found so far.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) actions: Vec<Box<str>>,
    pub(super) effects: Effects,
    pub(super) resources: BTreeSet<Resource>,
    pub(super) attributes: BTreeMap<Box<str>, Box<str>>,
    pub(super) runs: Vec<Reference>,
    pub(super) names: Vec<NameChange>,
    pub(super) barrier: bool,
    /// Nothing that was found depends on a literal.
    pub(super) literal_free: bool,
    /// Common table expressions in sight, innermost last.
    scopes: Vec<Vec<String>>,
}

impl Walk {
    pub(super) fn new() -> Self {
        Self {
            actions: Vec::new(),
            effects: Effects::empty(),
            resources: BTreeSet::new(),
            attributes: BTreeMap::new(),
            runs: Vec::new(),
            names: Vec::new(),
            barrier: false,
            literal_free: true,
            scopes: Vec::new(),
        }
    }

    pub(super) fn action(&mut self, action: &str) {
        if !self.actions.iter().any(|known| **known == *action) {
            self.actions.push(action.into());
        }
    }

    pub(super) fn touch(
        &mut self,
        kind: ResourceKind,
        namespace: Option<&str>,
        name: &str,
        touch: Touch,
    ) {
        let resource = Resource {
            kind,
            namespace: namespace.map(Into::into),
            name: name.into(),
            touch,
        };
        self.resources.insert(resource);
    }

    /// A statement, with its own WITH in sight.
    pub(super) fn statement(&mut self, tag: &str, body: &Value) {
        self.in_scope_of(body, |walk| statements::statement(walk, tag, body));
    }

    /// Whatever stands at `value`.
    pub(super) fn any(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.any(item)),
            Value::Object(fields) => match tagged(value) {
                Some((tag, body)) => self.node(tag, body),
                // Some fields hold a node of a fixed type without saying so.
                None if is_range_var(value) => self.table(value, Touch::Read),
                None if fields.contains_key("target_list")
                    && fields.contains_key("from_clause") =>
                {
                    self.statement("SelectStmt", value);
                }
                None if fields.contains_key("funcname") && fields.contains_key("agg_star") => {
                    self.function(value)
                }
                None => fields.values().for_each(|field| self.any(field)),
            },
            _ => {}
        }
    }

    fn node(&mut self, tag: &str, body: &Value) {
        match tag {
            "RangeVar" => self.table(body, Touch::Read),
            "FuncCall" => self.function(body),
            "AExpr" => {
                self.operator(&body["name"], functions::is_operator);
                self.fields(body);
            }
            "SubLink" => {
                self.operator(&body["oper_name"], functions::is_operator);
                self.fields(body);
            }
            "SortBy" => {
                self.operator(&body["use_op"], functions::is_operator);
                self.fields(body);
            }
            "RangeTableSample" => {
                self.operator(&body["method"], |name| {
                    matches!(name, "bernoulli" | "system")
                });
                self.fields_but(body, &["method"]);
            }
            "CurrentOfExpr" => self
                .runs
                .push(Reference::Cursor(string(&body["cursor_name"]).into())),
            "LockingClause" => {
                // It takes the right to update, marks rows and keeps writers out.
                self.attributes.insert("locking".into(), "present".into());
                self.effects |= Effects::WRITE;
                self.fields(body);
            }
            _ if tag.ends_with("Stmt") => self.statement(tag, body),
            _ => self.fields(body),
        }
    }

    /// Everything inside `body`, which itself means nothing more.
    pub(super) fn fields(&mut self, body: &Value) {
        match body {
            Value::Object(fields) => fields.values().for_each(|field| self.any(field)),
            other => self.any(other),
        }
    }

    /// Everything inside `body` but the fields named.
    pub(super) fn fields_but(&mut self, body: &Value, but: &[&str]) {
        if let Value::Object(fields) = body {
            for (name, field) in fields {
                if !but.contains(&&**name) {
                    self.any(field);
                }
            }
        }
    }

    /// A table by its RangeVar.
    pub(super) fn table(&mut self, range: &Value, touch: Touch) {
        let (schema, name) = (string(&range["schemaname"]), string(&range["relname"]));
        if name.is_empty() {
            return;
        }
        if touch == Touch::Read {
            if schema.is_empty() && self.scopes.iter().flatten().any(|visible| visible == name) {
                return;
            }
            self.effects |= Effects::READ;
        }
        let schema = (!schema.is_empty()).then_some(schema);
        self.touch(ResourceKind::Table, schema, name, touch);
    }

    /// What isn't built in is somebody's own operator or method, and so somebody's own function.
    fn operator(&mut self, name: &Value, is_built_in: impl Fn(&str) -> bool) {
        let (schema, name) = match &*strings(name) {
            [] => return,
            [name] => (None, name.clone()),
            [.., schema, name] => (Some(schema.clone()), name.clone()),
        };
        let schema = schema.as_deref();
        if schema.is_none_or(|schema| schema == "pg_catalog") && is_built_in(&name) {
            return;
        }
        self.effects |= Effects::EXECUTE;
        self.barrier = true;
        self.touch(ResourceKind::Function, schema, &name, Touch::Write);
    }

    fn function(&mut self, body: &Value) {
        let parts = strings(&body["funcname"]);
        let (schema, name) = match &*parts {
            [name] => (None, &**name),
            [.., schema, name] => (Some(&**schema), &**name),
            [] => (None, ""),
        };
        let Call {
            effects,
            names,
            inspected,
        } = functions::effects(schema, name);
        let harmless = effects.is_empty();
        self.touch(
            ResourceKind::Function,
            schema,
            name,
            if harmless { Touch::Read } else { Touch::Write },
        );
        let argument = body["args"].get(0).and_then(literal);
        let setting = argument
            .as_deref()
            .filter(|argument| name == "set_config" && settings::is_harmless_setting(argument));
        self.effects |= match setting {
            None => effects,
            Some(setting) if setting.eq_ignore_ascii_case("search_path") => {
                match body["args"].get(1).and_then(literal) {
                    Some(path) if !settings::hides_catalog(path.split(',')) => Effects::READ,
                    _ => Effects::EXECUTE,
                }
            }
            Some(_) => Effects::READ,
        };
        if let (Some(kind), Some(argument)) = (names, &argument) {
            let touch = if effects.contains(Effects::EXPORT) {
                Touch::Read
            } else {
                Touch::Write
            };
            match (kind, argument.split_once('.')) {
                (ResourceKind::Table, Some((schema, name))) => {
                    self.touch(kind, Some(schema), name, touch)
                }
                _ => self.touch(kind, None, argument, touch),
            }
        }
        self.literal_free &= !inspected;
        self.barrier |= !(Effects::READ | Effects::WRITE).contains(effects);
        self.fields_but(body, &["funcname"]);
    }

    /// Runs `inside` with the names that `body`'s WITH defines in sight, after walking what defines them.
    fn in_scope_of(&mut self, body: &Value, inside: impl FnOnce(&mut Self)) {
        let with = &body["with_clause"];
        let Some(tables) = with["ctes"].as_array() else {
            return inside(self);
        };
        let name = |table: &Value| {
            let (_, body) = tagged(table)?;
            Some(string(&body["ctename"]).to_owned())
        };
        let recursive = with["recursive"].as_bool() == Some(true);
        let all: Vec<String> = tables.iter().filter_map(name).collect();
        self.scopes.push(if recursive { all } else { Vec::new() });
        for table in tables {
            // Without RECURSIVE a definition sees those before it, not itself: `WITH t AS (… FROM t)`
            // reads the table of that name.
            self.any(table);
            if !recursive && let (Some(scope), Some(name)) = (self.scopes.last_mut(), name(table)) {
                scope.push(name);
            }
        }
        inside(self);
        self.scopes.pop();
    }
}

/// The type and content of a node.
pub(super) fn tagged(value: &Value) -> Option<(&str, &Value)> {
    let fields = value.as_object()?;
    let node = match fields.get("node") {
        Some(node) if fields.len() == 1 => node.as_object()?,
        _ => return None,
    };
    node.iter().next().map(|(tag, body)| (&**tag, body))
}

fn is_range_var(value: &Value) -> bool {
    value.get("relname").is_some() && value.get("relpersistence").is_some()
}

/// A string field; empty where there is none.
pub(super) fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The strings of a list of String nodes.
pub(super) fn strings(value: &Value) -> Vec<String> {
    let items = match tagged(value) {
        Some(("List", body)) => body["items"].as_array(),
        _ => value.as_array(),
    };
    let text = |item: &Value| match tagged(item) {
        Some(("String", body)) => Some(string(&body["sval"]).to_owned()),
        _ => None,
    };
    items.into_iter().flatten().filter_map(text).collect()
}

/// The text of a constant, through casts.
pub(super) fn literal(value: &Value) -> Option<String> {
    match tagged(value)? {
        ("AConst", body) => {
            let value = &body["val"];
            value["Sval"]["sval"]
                .as_str()
                .map(str::to_owned)
                .or_else(|| {
                    value["Ival"]["ival"]
                        .as_i64()
                        .map(|number| number.to_string())
                })
                .or_else(|| {
                    value["Boolval"]["boolval"]
                        .as_bool()
                        .map(|truth| truth.to_string())
                })
        }
        ("TypeCast", body) => literal(&body["arg"]),
        ("String", body) => Some(string(&body["sval"]).to_owned()),
        _ => None,
    }
}
