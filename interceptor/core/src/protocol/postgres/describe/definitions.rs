//! What statements define, alter and drop: tables, roles and all other objects, by name.

use pg_query::protobuf::ObjectType;
use serde_json::Value;

use super::{
    statements::{ADMIN, SCHEMA, effect},
    walk::{Walk, string, strings, tagged},
};
use crate::operation::{ResourceKind, Touch};

pub(super) fn alter_table(walk: &mut Walk, body: &Value) {
    use pg_query::protobuf::AlterTableType as Type;
    let kind = object_name(body["objtype"].as_i64().unwrap_or(0));
    effect(walk, &format!("ALTER {kind}"), SCHEMA);
    walk.table(&body["relation"], Touch::Write);
    for command in body["cmds"].as_array().into_iter().flatten() {
        let Some((_, command)) = tagged(command) else {
            continue;
        };
        let subtype = command["subtype"]
            .as_i64()
            .and_then(|subtype| i32::try_from(subtype).ok());
        let name = subtype
            .and_then(|subtype| Type::try_from(subtype).ok())
            .map_or("", |subtype| subtype.as_str_name());
        if ["Owner", "RowSecurity", "Trig", "Rule"]
            .iter()
            .any(|part| name.contains(part))
        {
            walk.effects |= ADMIN;
        }
    }
    walk.any(&body["cmds"]);
}

/// A definition whose own tables are the fields `written`.
pub(super) fn define(walk: &mut Walk, action: &str, body: &Value, written: &[&str]) {
    effect(walk, action, SCHEMA);
    for field in written {
        walk.table(&body[*field], Touch::Write);
    }
    walk.fields_but(body, written);
}

/// RangeVars that are changed.
pub(super) fn targets(walk: &mut Walk, list: &Value) {
    for item in list.as_array().into_iter().flatten() {
        match tagged(item) {
            Some(("RangeVar", range)) => walk.table(range, Touch::Write),
            _ => walk.any(item),
        }
    }
}

pub(super) fn roles(walk: &mut Walk, list: &Value) {
    for item in list.as_array().into_iter().flatten() {
        if let Some((_, role)) = tagged(item) {
            walk.touch(
                ResourceKind::Role,
                None,
                string(&role["rolename"]),
                Touch::Write,
            );
        }
    }
}

pub(super) fn named(walk: &mut Walk, kind: ResourceKind, parts: &[String]) {
    match parts {
        [name] => walk.touch(kind, None, name, Touch::Write),
        [.., schema, name] => walk.touch(kind, Some(schema), name, Touch::Write),
        [] => {}
    }
}

/// Objects of a DROP or ALTER, each a name, a list of its parts, or a name with arguments.
pub(super) fn objects(walk: &mut Walk, kind: i64, list: &Value) {
    let resource = match i32::try_from(kind)
        .ok()
        .and_then(|kind| ObjectType::try_from(kind).ok())
    {
        Some(
            ObjectType::ObjectTable
            | ObjectType::ObjectView
            | ObjectType::ObjectMatview
            | ObjectType::ObjectIndex
            | ObjectType::ObjectSequence
            | ObjectType::ObjectForeignTable,
        ) => ResourceKind::Table,
        Some(
            ObjectType::ObjectFunction
            | ObjectType::ObjectProcedure
            | ObjectType::ObjectRoutine
            | ObjectType::ObjectAggregate,
        ) => ResourceKind::Function,
        // Of a trigger, rule or policy the last part is its own name, the others are its table.
        Some(ObjectType::ObjectTrigger | ObjectType::ObjectRule | ObjectType::ObjectPolicy) => {
            walk.effects |= ADMIN;
            for item in list.as_array().into_iter().flatten() {
                let mut parts = strings(item);
                parts.pop();
                named(walk, ResourceKind::Table, &parts);
            }
            return;
        }
        _ => ResourceKind::Object,
    };
    for item in list.as_array().into_iter().flatten() {
        match tagged(item) {
            Some(("String", body)) => {
                walk.touch(resource, None, string(&body["sval"]), Touch::Write)
            }
            Some(("ObjectWithArgs", body)) => named(walk, resource, &strings(&body["objname"])),
            Some(("TypeName", body)) => named(walk, resource, &strings(&body["names"])),
            _ => named(walk, resource, &strings(item)),
        }
    }
}

/// `OBJECT_FOREIGN_TABLE` as `FOREIGN TABLE`.
pub(in crate::protocol::postgres) fn object_name(kind: i64) -> String {
    let kind = i32::try_from(kind)
        .ok()
        .and_then(|kind| ObjectType::try_from(kind).ok());
    match kind {
        Some(ObjectType::ObjectMatview) => "MATERIALIZED VIEW".to_owned(),
        Some(ObjectType::ObjectFdw) => "FOREIGN DATA WRAPPER".to_owned(),
        Some(ObjectType::ObjectForeignServer) => "SERVER".to_owned(),
        Some(kind) => kind
            .as_str_name()
            .trim_start_matches("OBJECT_")
            .replace('_', " "),
        None => "OBJECT".to_owned(),
    }
}
