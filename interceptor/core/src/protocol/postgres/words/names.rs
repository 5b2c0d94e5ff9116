//! What things are called.

use pg_query::{
    NodeEnum,
    protobuf::{Node, RangeVar, RoleSpec, RoleSpecType, TypeName, a_const::Val},
};

use super::quote::string;
use crate::{limits, operation::words::and};

/// A name as it would have to be written, so that none can be taken for more than a name.
pub(super) fn name(text: &str) -> String {
    let mut characters = text.chars();
    let is_plain = characters
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '$');
    if is_plain {
        text.to_owned()
    } else {
        format!("\"{}\"", super::quote::bounded(&text.replace('"', "\"\"")))
    }
}

/// A table, qualified as it is written.
pub(super) fn table(range: Option<&RangeVar>) -> String {
    let Some(range) = range else {
        return "?".to_owned();
    };
    let parts = [&range.catalogname, &range.schemaname, &range.relname];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.map(|part| name(part)).collect::<Vec<_>>().join(".")
}

/// A name of several parts.
pub(super) fn dotted(parts: &[Node]) -> String {
    let parts = parts.iter().filter_map(text_of).map(name);
    parts.collect::<Vec<_>>().join(".")
}

/// The last part of a name.
pub(super) fn last(parts: &[Node]) -> &str {
    parts.last().and_then(text_of).unwrap_or_default()
}

/// Whatever is named: a list of parts, a table, a function with its arguments, a type, a role.
pub(super) fn object(node: &Node) -> String {
    match &node.node {
        Some(NodeEnum::String(text)) => name(&text.sval),
        Some(NodeEnum::List(list)) => dotted(&list.items),
        Some(NodeEnum::RangeVar(range)) => table(Some(range)),
        Some(NodeEnum::ObjectWithArgs(object)) => dotted(&object.objname),
        Some(NodeEnum::TypeName(of)) => type_name(of),
        Some(NodeEnum::RoleSpec(of)) => role(Some(of)),
        Some(NodeEnum::AccessPriv(of)) => name(&of.priv_name),
        Some(NodeEnum::VacuumRelation(of)) => table(of.relation.as_ref()),
        Some(NodeEnum::Integer(number)) => number.ival.to_string(),
        Some(NodeEnum::Float(number)) => number.fval.clone(),
        _ => "?".to_owned(),
    }
}

/// All of them, the first ones by name.
pub(super) fn objects<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> String {
    let names: Vec<String> = nodes.into_iter().map(object).collect();
    some(&names)
}

/// `a, b and c`, of many the first and how many more.
pub(super) fn some(names: &[String]) -> String {
    match names.get(..limits::WORDS_NAMES_MAX) {
        Some(first) if names.len() > first.len() => {
            format!(
                "{} and {} more",
                first.join(", "),
                names.len() - first.len()
            )
        }
        _ => and(names),
    }
}

/// A role, also those that are only known when it runs.
pub(super) fn role(role: Option<&RoleSpec>) -> String {
    let Some(role) = role else {
        return "?".to_owned();
    };
    match role.roletype() {
        RoleSpecType::RolespecPublic => "PUBLIC".to_owned(),
        RoleSpecType::RolespecCurrentRole | RoleSpecType::RolespecCurrentUser => {
            "the current user".to_owned()
        }
        RoleSpecType::RolespecSessionUser => "the session's user".to_owned(),
        _ => name(&role.rolename),
    }
}

/// Whether it is everybody.
pub(super) fn is_public(node: &Node) -> bool {
    matches!(&node.node, Some(NodeEnum::RoleSpec(role))
        if role.roletype() == RoleSpecType::RolespecPublic)
}

/// A type without its modifiers.
pub(super) fn type_name(of: &TypeName) -> String {
    let parts: Vec<&str> = of.names.iter().filter_map(text_of).collect();
    let parts = match parts.as_slice() {
        ["pg_catalog", rest @ ..] => rest,
        all => all,
    };
    let parts: Vec<String> = parts.iter().map(|part| name(part)).collect();
    let array = if of.array_bounds.is_empty() { "" } else { "[]" };
    format!("{}{array}", parts.join("."))
}

/// The text of a string node.
pub(super) fn text_of(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(text)) => Some(&text.sval),
        _ => None,
    }
}

/// A constant as it would be written, of a setting or an option.
pub(super) fn value(node: &Node) -> Option<String> {
    match node.node.as_ref()? {
        NodeEnum::AConst(constant) if constant.isnull => Some("NULL".to_owned()),
        NodeEnum::AConst(constant) => match &constant.val {
            Some(Val::Sval(text)) => Some(string(&text.sval)),
            Some(Val::Ival(number)) => Some(number.ival.to_string()),
            Some(Val::Fval(number)) => Some(super::quote::bounded(&number.fval)),
            Some(Val::Boolval(truth)) => Some(truth.boolval.to_string()),
            Some(Val::Bsval(_)) => None,
            None => Some("0".to_owned()),
        },
        NodeEnum::TypeCast(cast) => value(cast.arg.as_deref()?),
        NodeEnum::String(text) => Some(string(&text.sval)),
        NodeEnum::Integer(number) => Some(number.ival.to_string()),
        NodeEnum::Float(number) => Some(super::quote::bounded(&number.fval)),
        NodeEnum::Boolean(truth) => Some(truth.boolval.to_string()),
        _ => None,
    }
}

/// Whether an option without a value, or with this one, is on.
pub(super) fn is_on(value: Option<&Node>) -> bool {
    let Some(node) = value.and_then(|value| value.node.as_ref()) else {
        return true;
    };
    match node {
        NodeEnum::Boolean(truth) => truth.boolval,
        NodeEnum::Integer(number) => number.ival != 0,
        NodeEnum::String(text) => !matches!(
            &*text.sval.to_ascii_lowercase(),
            "false" | "off" | "0" | "no"
        ),
        _ => true,
    }
}
