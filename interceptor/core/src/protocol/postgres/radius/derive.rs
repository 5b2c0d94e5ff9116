//! SELECTs that find the rows which another statement would touch.

use pg_query::{DeparseOptions, Node, NodeEnum, ParserOptions, protobuf};
use protobuf::{RangeVar, SelectStmt, Token, WithClause};
use serde_json::Value;

use super::Name;

/// `SELECT 1 FROM relation WHERE condition`; where other relations have a part in it, as they do in `UPDATE … FROM`
/// and `DELETE … USING`, `… WHERE EXISTS (SELECT 1 FROM others WHERE condition)`: each row is changed once, however
/// many it is joined with.
pub(super) fn rows(
    relation: Option<&RangeVar>,
    others: Vec<Node>,
    condition: Option<Box<Node>>,
    with: Option<WithClause>,
) -> Option<SelectStmt> {
    let mut select = one()?;
    select.from_clause = vec![node(NodeEnum::RangeVar(relation?.clone()))];
    select.where_clause = if others.is_empty() {
        condition
    } else {
        Some(exists(others, condition)?)
    };
    select.with_clause = with;
    Some(select)
}

/// `SELECT 1 FROM source WHERE NOT EXISTS (SELECT 1 FROM relation WHERE condition)`.
pub(super) fn missing(
    relation: Option<&RangeVar>,
    source: Vec<Node>,
    condition: Option<Box<Node>>,
    with: Option<WithClause>,
) -> Option<SelectStmt> {
    let mut select = one()?;
    select.from_clause = source;
    let there = exists(vec![node(NodeEnum::RangeVar(relation?.clone()))], condition)?;
    let not = protobuf::BoolExpr {
        boolop: protobuf::BoolExprType::NotExpr as i32,
        args: vec![*there],
        ..protobuf::BoolExpr::default()
    };
    select.where_clause = Some(Box::new(node(NodeEnum::BoolExpr(Box::new(not)))));
    select.with_clause = with;
    Some(select)
}

/// The name that DROP spells in parts; `None` with a database's, or none.
pub(super) fn dropped(parts: &[Node]) -> Option<Name> {
    let part = |node: &Node| match &node.node {
        Some(NodeEnum::String(part)) => Some(Box::from(part.sval.as_str())),
        _ => None,
    };
    match parts {
        [relation] => Some(Name {
            schema: None,
            relation: part(relation)?,
        }),
        [schema, relation] => Some(Name {
            schema: Some(part(schema)?),
            relation: part(relation)?,
        }),
        _ => None,
    }
}

/// `select` as text, and whether it names all tables with their schemas.
pub(super) fn text(mut select: SelectStmt) -> Result<(String, bool), &'static str> {
    // What only locks or fills something.
    select.locking_clause.clear();
    select.into_clause = None;
    let is_qualified = serde_json::to_value(&select).is_ok_and(|tree| is_qualified(&tree));
    let mut parsed = template("SELECT 1").ok_or(UNWRITABLE)?;
    let statement = parsed.stmts.first_mut().ok_or(UNWRITABLE)?;
    statement.stmt = Some(Box::new(node(NodeEnum::SelectStmt(Box::new(select)))));
    statement.stmt_len = 0;
    let text = pg_query::deparse(&parsed, DeparseOptions::default());
    Ok((text.map_err(|_| UNWRITABLE)?, is_qualified))
}

const UNWRITABLE: &str = "it can't be asked which rows";

/// `sql` with its parameters numbered from 1 without gaps, and which of `bound` each was, from 0.
pub(super) fn renumbered(sql: &str, bound: usize) -> Result<(String, Vec<usize>), &'static str> {
    const UNBOUND: &str = "it has parameters that nothing is bound to";
    let scanned = pg_query::scan(sql).map_err(|_| UNWRITABLE)?;
    let mut out = String::with_capacity(sql.len());
    let mut parameters = Vec::new();
    let mut copied = 0;
    for token in scanned.tokens {
        if Token::try_from(token.token) != Ok(Token::Param) {
            continue;
        }
        let place = usize::try_from(token.start).ok();
        let end = usize::try_from(token.end).ok();
        let (Some(place), Some(end)) = (place, end) else {
            return Err(UNWRITABLE);
        };
        let number = sql
            .get(place..end)
            .and_then(|param| param.strip_prefix('$')?.parse::<usize>().ok());
        let index = number.and_then(|number| number.checked_sub(1));
        let index = index.filter(|index| *index < bound).ok_or(UNBOUND)?;
        let known = parameters.iter().position(|known| *known == index);
        let own = known.unwrap_or_else(|| {
            parameters.push(index);
            parameters.len() - 1
        });
        out.push_str(sql.get(copied..place).ok_or(UNWRITABLE)?);
        out.push_str(&format!("${}", own + 1));
        copied = end;
    }
    out.push_str(sql.get(copied..).ok_or(UNWRITABLE)?);
    Ok((out, parameters))
}

/// Whether every table in `tree` stands with its schema, or is named by a WITH.
fn is_qualified(tree: &Value) -> bool {
    let (mut open, mut given, mut bare) = (vec![tree], Vec::new(), Vec::new());
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                if let Some(name) = fields.get("ctename").and_then(Value::as_str) {
                    given.push(name);
                }
                let text = |field: &str| fields.get(field).and_then(Value::as_str);
                if let (Some(relation), Some("")) = (text("relname"), text("schemaname")) {
                    bare.push(relation);
                }
                open.extend(fields.values());
            }
            _ => {}
        }
    }
    bare.iter().all(|relation| given.contains(relation))
}

/// `EXISTS (SELECT 1 FROM relations WHERE condition)`.
fn exists(relations: Vec<Node>, condition: Option<Box<Node>>) -> Option<Box<Node>> {
    let mut inner = one()?;
    inner.from_clause = relations;
    inner.where_clause = condition;
    let link = protobuf::SubLink {
        sub_link_type: protobuf::SubLinkType::ExistsSublink as i32,
        subselect: Some(Box::new(node(NodeEnum::SelectStmt(Box::new(inner))))),
        ..protobuf::SubLink::default()
    };
    Some(Box::new(node(NodeEnum::SubLink(Box::new(link)))))
}

/// `SELECT 1`.
fn one() -> Option<SelectStmt> {
    let statement = template("SELECT 1")?.stmts.pop()?;
    match statement.stmt?.node? {
        NodeEnum::SelectStmt(select) => Some(*select),
        _ => None,
    }
}

fn template(text: &str) -> Option<protobuf::ParseResult> {
    let parsed = pg_query::parse(text, ParserOptions::default()).ok()?;
    Some(parsed.protobuf)
}

const fn node(node: NodeEnum) -> Node {
    Node { node: Some(node) }
}
