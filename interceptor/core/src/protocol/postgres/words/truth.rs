//! Conditions that keep no row out.
//!
//! Some that can be seen to be so without knowing any data; there are others.

use pg_query::{
    NodeEnum,
    protobuf::{AConst, AExprKind, BoolExprType, BoolTestType, Node, SubLinkType, a_const::Val},
};
use serde_json::Value;

/// What is known of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    /// It holds for no row.
    Never,
    /// It depends.
    Open,
    /// It holds for every row but those with a NULL in what it looks at.
    UnlessNull,
    /// It holds for every row.
    Always,
}

/// What is known of the condition `node`.
pub(super) fn truth(node: &Node) -> Truth {
    let Some(node) = &node.node else {
        return Truth::Open;
    };
    match node {
        NodeEnum::AConst(constant) => match boolean(constant) {
            Some(true) => Truth::Always,
            Some(false) => Truth::Never,
            None => Truth::Open,
        },
        NodeEnum::TypeCast(cast) => cast.arg.as_deref().map_or(Truth::Open, truth),
        NodeEnum::BoolExpr(expression) => {
            let mut parts = expression.args.iter().map(truth);
            match expression.boolop() {
                BoolExprType::AndExpr => parts.min().unwrap_or(Truth::Open),
                BoolExprType::OrExpr if alternatives(&expression.args) => Truth::Always,
                BoolExprType::OrExpr => parts.max().unwrap_or(Truth::Open),
                BoolExprType::NotExpr => match parts.next() {
                    Some(Truth::Never) => Truth::Always,
                    Some(Truth::Always) => Truth::Never,
                    _ => Truth::Open,
                },
                BoolExprType::Undefined => Truth::Open,
            }
        }
        NodeEnum::BooleanTest(test) => {
            let of = test.arg.as_deref().map_or(Truth::Open, truth);
            match (test.booltesttype(), of) {
                (BoolTestType::IsTrue | BoolTestType::IsNotFalse, Truth::Always)
                | (BoolTestType::IsFalse | BoolTestType::IsNotTrue, Truth::Never) => Truth::Always,
                _ => Truth::Open,
            }
        }
        NodeEnum::SubLink(link) if link.sub_link_type() == SubLinkType::ExistsSublink => {
            match link
                .subselect
                .as_deref()
                .and_then(|node| node.node.as_ref())
            {
                // SELECT without a table gives one row.
                Some(NodeEnum::SelectStmt(select))
                    if select.from_clause.is_empty()
                        && select.where_clause.is_none()
                        && select.having_clause.is_none()
                        && select.limit_count.is_none()
                        && select.limit_offset.is_none()
                        && select.larg.is_none()
                        && select.values_lists.is_empty() =>
                {
                    Truth::Always
                }
                _ => Truth::Open,
            }
        }
        NodeEnum::AExpr(expression) => {
            let (Some(left), Some(right)) = (&expression.lexpr, &expression.rexpr) else {
                return Truth::Open;
            };
            let operator = super::names::last(&expression.name);
            match expression.kind() {
                AExprKind::AexprOp => compared(left, operator, right),
                AExprKind::AexprNotDistinct if is_same(left, right) => Truth::Always,
                AExprKind::AexprLike | AExprKind::AexprIlike if operator.starts_with('~') => {
                    match text(right) {
                        Some(pattern)
                            if !pattern.is_empty() && pattern.bytes().all(|b| b == b'%') =>
                        {
                            Truth::UnlessNull
                        }
                        _ => Truth::Open,
                    }
                }
                AExprKind::AexprIn if operator == "=" => match &right.node {
                    Some(NodeEnum::List(list)) => list
                        .items
                        .iter()
                        .map(|item| compared(left, "=", item).max(Truth::Open))
                        .max()
                        .unwrap_or(Truth::Open),
                    _ => Truth::Open,
                },
                _ => Truth::Open,
            }
        }
        _ => Truth::Open,
    }
}

/// `a IS NULL OR a IS NOT NULL`, and the like: something and its opposite.
fn alternatives(parts: &[Node]) -> bool {
    use pg_query::protobuf::NullTestType;
    let tests = || {
        parts.iter().filter_map(|part| match &part.node {
            Some(NodeEnum::NullTest(test)) => Some(test),
            _ => None,
        })
    };
    tests()
        .filter(|test| test.nulltesttype() == NullTestType::IsNull)
        .take(16)
        .any(|is| {
            tests().take(16).any(|not| {
                let same = is.arg.as_deref().zip(not.arg.as_deref());
                not.nulltesttype() == NullTestType::IsNotNull
                    && same.is_some_and(|(one, other)| is_same(one, other))
            })
        })
}

fn compared(left: &Node, operator: &str, right: &Node) -> Truth {
    let decided = |holds: bool| if holds { Truth::Always } else { Truth::Never };
    if let (Some(left), Some(right)) = (number(left), number(right)) {
        return match operator {
            "=" => decided(left == right),
            "<>" => decided(left != right),
            "<" => decided(left < right),
            ">" => decided(left > right),
            "<=" => decided(left <= right),
            ">=" => decided(left >= right),
            _ => Truth::Open,
        };
    }
    if let (Some(left), Some(right)) = (text(left), text(right)) {
        return match operator {
            "=" => decided(left == right),
            "<>" => decided(left != right),
            _ => Truth::Open,
        };
    }
    if let (Some(left), Some(right)) = (truth_value(left), truth_value(right)) {
        return match operator {
            "=" => decided(left == right),
            "<>" => decided(left != right),
            _ => Truth::Open,
        };
    }
    match operator {
        "=" | "<=" | ">=" if is_same(left, right) => Truth::UnlessNull,
        _ => Truth::Open,
    }
}

/// Whether both are one column or parameter: what calls functions may answer differently each time.
fn is_same(one: &Node, other: &Node) -> bool {
    fn plain(node: &Node) -> Option<Value> {
        match &node.node {
            Some(NodeEnum::ColumnRef(column)) => serde_json::to_value(&column.fields).ok(),
            Some(NodeEnum::ParamRef(parameter)) => Some(parameter.number.into()),
            _ => None,
        }
    }
    plain(one).is_some_and(|one| plain(other) == Some(one))
}

fn constant(node: &Node) -> Option<&AConst> {
    match &node.node {
        Some(NodeEnum::AConst(constant)) if !constant.isnull => Some(constant),
        _ => None,
    }
}

fn number(node: &Node) -> Option<i32> {
    match &constant(node)?.val {
        Some(Val::Ival(value)) => Some(value.ival),
        // The tree leaves out what is zero.
        None => Some(0),
        _ => None,
    }
}

fn text(node: &Node) -> Option<&str> {
    match &constant(node)?.val {
        Some(Val::Sval(value)) => Some(&value.sval),
        _ => None,
    }
}

fn truth_value(node: &Node) -> Option<bool> {
    boolean(constant(node)?)
}

/// As PostgreSQL reads what is to be a boolean.
fn boolean(constant: &AConst) -> Option<bool> {
    match &constant.val {
        Some(Val::Boolval(value)) => Some(value.boolval),
        // `'t'` as it stands, and `1::bool`.
        Some(Val::Sval(value)) => match &*value.sval.trim().to_ascii_lowercase() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Some(true),
            "f" | "false" | "n" | "no" | "off" | "0" => Some(false),
            _ => None,
        },
        Some(Val::Ival(value)) => Some(value.ival != 0),
        _ => None,
    }
}
