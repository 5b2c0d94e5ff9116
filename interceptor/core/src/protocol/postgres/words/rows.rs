//! What reads and changes rows.

use pg_query::{
    NodeEnum,
    protobuf::{
        CmdType, CopyStmt, DeleteStmt, InsertStmt, MergeMatchKind, MergeStmt, Node,
        OnConflictAction, SelectStmt, SetOperation, Token, TruncateStmt, UpdateStmt, WithClause,
    },
};

use super::{
    Speech,
    names::{name, objects, some, table, text_of},
    quote::string,
    truth::{Truth, truth},
};
use crate::operation::{
    Description, Effects, Resource, ResourceKind, Touch,
    words::{Warning, and},
};

pub(super) fn say(
    speech: &mut Speech<'_>,
    node: &NodeEnum,
    description: &Description,
) -> Option<String> {
    let text = match node {
        NodeEnum::SelectStmt(select) => {
            speech.said.covered |= Effects::READ;
            let first = common(speech, select.with_clause.as_ref());
            let main = reads(speech, select, description);
            then(first, main)
        }
        NodeEnum::InsertStmt(insert) => {
            speech.said.covered |= Effects::READ | Effects::WRITE;
            speech.said.read.get_or_insert_default();
            let first = common(speech, insert.with_clause.as_ref());
            then(first, inserts(speech, insert))
        }
        NodeEnum::UpdateStmt(update) => {
            speech.said.covered |= Effects::READ | Effects::WRITE;
            speech.said.read.get_or_insert_default();
            let first = common(speech, update.with_clause.as_ref());
            then(first, updates(speech, update))
        }
        NodeEnum::DeleteStmt(delete) => {
            speech.said.covered |= Effects::READ | Effects::WRITE;
            speech.said.read.get_or_insert_default();
            let first = common(speech, delete.with_clause.as_ref());
            then(first, deletes(speech, delete))
        }
        NodeEnum::MergeStmt(merge) => {
            speech.said.covered |= Effects::READ | Effects::WRITE;
            speech.said.read.get_or_insert_default();
            let first = common(speech, merge.with_clause.as_ref());
            then(first, merges(speech, merge))
        }
        NodeEnum::CopyStmt(copy) => copies(speech, copy, description),
        NodeEnum::TruncateStmt(truncate) => truncates(speech, truncate),
        _ => return None,
    };
    Some(text)
}

fn then(first: Vec<String>, main: String) -> String {
    if first.is_empty() {
        return main;
    }
    format!("{}; then {main}", first.join("; "))
}

/// What a WITH changes, each part with its name.
fn common(speech: &mut Speech<'_>, with: Option<&WithClause>) -> Vec<String> {
    let mut parts = Vec::new();
    for table in with.into_iter().flat_map(|with| &with.ctes) {
        let Some(NodeEnum::CommonTableExpr(table)) = &table.node else {
            continue;
        };
        let Some(query) = table
            .ctequery
            .as_ref()
            .and_then(|query| query.node.as_ref())
        else {
            continue;
        };
        let within = match query {
            NodeEnum::SelectStmt(select) => select.with_clause.as_ref(),
            NodeEnum::InsertStmt(insert) => insert.with_clause.as_ref(),
            NodeEnum::UpdateStmt(update) => update.with_clause.as_ref(),
            NodeEnum::DeleteStmt(delete) => delete.with_clause.as_ref(),
            NodeEnum::MergeStmt(merge) => merge.with_clause.as_ref(),
            _ => None,
        };
        parts.extend(common(speech, within));
        let text = match query {
            NodeEnum::InsertStmt(insert) => inserts(speech, insert),
            NodeEnum::UpdateStmt(update) => updates(speech, update),
            NodeEnum::DeleteStmt(delete) => deletes(speech, delete),
            NodeEnum::MergeStmt(merge) => merges(speech, merge),
            _ => continue,
        };
        speech.said.covered |= Effects::WRITE;
        parts.push(format!("{text}, as {}", name(&table.ctename)));
    }
    parts
}

fn reads(speech: &mut Speech<'_>, select: &SelectStmt, description: &Description) -> String {
    let tables = read_tables(description);
    if let Some(into) = &select.into_clause {
        speech.said.covered |= Effects::SCHEMA | Effects::WRITE;
        let made = speech.writes(into.rel.as_ref());
        return match tables.as_str() {
            "" => format!("makes the table {made} out of what a query gives"),
            tables => format!("makes the table {made} out of what a query of {tables} gives"),
        };
    }
    if tables.is_empty() {
        let calls =
            |one: &Resource| one.kind == ResourceKind::Function && one.touch == Touch::Write;
        return if description.resources.iter().any(calls) {
            String::new()
        } else if select.values_lists.is_empty() {
            "computes something without reading a table".to_owned()
        } else {
            format!("gives {}", rows(select.values_lists.len()))
        };
    }
    let locks = if has_locking(select) {
        speech.said.covered |= Effects::WRITE;
        ", and locks these rows against others"
    } else {
        ""
    };
    let is_plain = select.op() == SetOperation::SetopNone
        && select.group_clause.is_empty()
        && select.having_clause.is_none()
        && matches!(
            select.from_clause.as_slice(),
            [Node {
                node: Some(NodeEnum::RangeVar(_))
            }]
        );
    if !is_plain {
        return format!("reads {tables} (see the query for which rows){locks}");
    }
    let from = match select.from_clause.as_slice() {
        [
            Node {
                node: Some(NodeEnum::RangeVar(range)),
            },
        ] => table(Some(range)),
        _ => tables.clone(),
    };
    let of = match columns(&select.target_list) {
        Some(columns) => format!("{columns} of {from}"),
        None => format!("from {from}"),
    };
    let which = match select.where_clause.as_deref() {
        None => " (all rows)".to_owned(),
        Some(condition) => match truth(condition) {
            Truth::Always => " (all rows: its WHERE is always true)".to_owned(),
            Truth::UnlessNull => {
                " (all rows but for NULL: its WHERE keeps no other out)".to_owned()
            }
            Truth::Never => " (no row: its WHERE is never true)".to_owned(),
            Truth::Open => format!(" {}", condition_words(speech, Token::Where, condition)),
        },
    };
    let most = match select.limit_count.as_deref().and_then(super::names::value) {
        Some(count) if count != "NULL" => format!(", at most {count} of them"),
        _ => String::new(),
    };
    let beside = match tables == from {
        true => String::new(),
        false => format!("; in all it reads {tables}"),
    };
    format!("reads {of}{which}{most}{beside}{locks}")
}

/// Whether it, or a part of it, keeps others from changing what it reads.
fn has_locking(select: &SelectStmt) -> bool {
    let part = |part: &Option<Box<SelectStmt>>| part.as_deref().is_some_and(has_locking);
    !select.locking_clause.is_empty() || part(&select.larg) || part(&select.rarg)
}

/// Columns that are selected just as they are.
fn columns(targets: &[Node]) -> Option<String> {
    let mut names = Vec::new();
    for target in targets {
        let Some(NodeEnum::ResTarget(target)) = &target.node else {
            return None;
        };
        let Some(NodeEnum::ColumnRef(column)) =
            target.val.as_ref().and_then(|val| val.node.as_ref())
        else {
            return None;
        };
        match column.fields.as_slice() {
            [
                ..,
                Node {
                    node: Some(NodeEnum::AStar(_)),
                },
            ] => return Some("all columns".to_owned()),
            [.., last] => names.push(name(text_of(last)?)),
            [] => return None,
        }
    }
    (!names.is_empty()).then(|| some(&names))
}

fn inserts(speech: &mut Speech<'_>, insert: &InsertStmt) -> String {
    let into = speech.writes(insert.relation.as_ref());
    let source = insert
        .select_stmt
        .as_ref()
        .and_then(|source| source.node.as_ref());
    let what = match source {
        None => format!("adds a row of defaults to {into}"),
        Some(NodeEnum::SelectStmt(select)) if !select.values_lists.is_empty() => {
            let changed = common(speech, select.with_clause.as_ref());
            let adds = format!("adds {} to {into}", rows(select.values_lists.len()));
            then(changed, adds)
        }
        Some(NodeEnum::SelectStmt(select)) => {
            let changed = common(speech, select.with_clause.as_ref());
            let of = from_tables(speech, select);
            let of = if of.is_empty() {
                of
            } else {
                format!(" of {of}")
            };
            then(
                changed,
                format!("adds to {into} the rows that a query{of} gives"),
            )
        }
        Some(_) => format!("adds to {into} what something else gives"),
    };
    let conflict = insert.on_conflict_clause.as_deref().map(|clause| {
        if clause.action() == OnConflictAction::OnconflictUpdate {
            let set = assigned(&clause.target_list);
            let which = clause
                .where_clause
                .as_deref()
                .map_or_else(String::new, |node| {
                    format!(", {}", condition_words(speech, Token::Where, node))
                });
            format!("; where such a row exists, changes {set} of it instead{which}")
        } else {
            "; leaves those out that exist".to_owned()
        }
    });
    let back = gives_back(insert.returning_clause.is_some());
    format!("{what}{}{back}", conflict.unwrap_or_default())
}

fn updates(speech: &mut Speech<'_>, update: &UpdateStmt) -> String {
    let of = speech.writes(update.relation.as_ref());
    let set = assigned(&update.target_list);
    let which = which(
        speech,
        &of,
        update.where_clause.as_deref(),
        &update.from_clause,
    );
    let back = gives_back(update.returning_clause.is_some());
    format!("changes {set} of {which}{back}")
}

fn deletes(speech: &mut Speech<'_>, delete: &DeleteStmt) -> String {
    let of = speech.writes(delete.relation.as_ref());
    let which = which(
        speech,
        &of,
        delete.where_clause.as_deref(),
        &delete.using_clause,
    );
    let back = gives_back(delete.returning_clause.is_some());
    format!("deletes {which}{back}")
}

/// Which rows of `of` a change is for.
fn which(speech: &mut Speech<'_>, of: &str, condition: Option<&Node>, beside: &[Node]) -> String {
    let joined = if beside.is_empty() {
        String::new()
    } else {
        format!(" joined with {}", items(speech, beside))
    };
    let Some(condition) = condition else {
        speech.warn(Warning::EveryRow);
        return match joined.as_str() {
            "" => format!("EVERY row of {of} (there is no WHERE)"),
            joined => format!("EVERY row of {of}{joined} (there is no WHERE)"),
        };
    };
    if let Some(NodeEnum::CurrentOfExpr(current)) = &condition.node {
        let cursor = name(&current.cursor_name);
        return format!("the row of {of} that the cursor {cursor} is at");
    }
    let truth = truth(condition);
    if truth == Truth::Open {
        let condition = condition_words(speech, Token::Where, condition);
        return format!("the rows of {of}{joined} {condition}");
    }
    let quote = speech.source.condition(Token::Where, condition);
    let quote = quote.map_or_else(String::new, |quote| format!(", {quote},"));
    match truth {
        Truth::Never => format!("no row of {of}{joined} (its WHERE{quote} is never true)"),
        Truth::UnlessNull => {
            speech.warn(Warning::AlwaysTrue);
            format!("EVERY row of {of}{joined} (its WHERE{quote} is always true but for NULL)")
        }
        Truth::Always | Truth::Open => {
            speech.warn(Warning::AlwaysTrue);
            format!("EVERY row of {of}{joined} (its WHERE{quote} is always true)")
        }
    }
}

/// A condition in the statement's own words.
pub(super) fn condition_words(speech: &mut Speech<'_>, keyword: Token, condition: &Node) -> String {
    speech.source.condition(keyword, condition).map_or_else(
        || "where a condition holds that can't be shown in short".to_owned(),
        |condition| format!("where {condition}"),
    )
}

fn merges(speech: &mut Speech<'_>, merge: &MergeStmt) -> String {
    let into = speech.writes(merge.relation.as_ref());
    let from = merge.source_relation.as_deref().map_or_else(
        || "?".to_owned(),
        |source| items(speech, std::slice::from_ref(source)),
    );
    if merge
        .join_condition
        .as_deref()
        .is_some_and(|node| truth(node) >= Truth::UnlessNull)
    {
        speech.warn(Warning::AlwaysTrue);
    }
    let on = merge
        .join_condition
        .as_deref()
        .and_then(|node| speech.source.condition(Token::On, node));
    let on = on.map_or_else(String::new, |on| format!(" on {on}"));
    let clauses = merge.merge_when_clauses.iter().filter_map(|clause| {
        let Some(NodeEnum::MergeWhenClause(clause)) = &clause.node else {
            return None;
        };
        let rows = match clause.match_kind() {
            MergeMatchKind::MergeWhenMatched => "rows that match",
            MergeMatchKind::MergeWhenNotMatchedBySource => "rows that nothing there matches",
            MergeMatchKind::MergeWhenNotMatchedByTarget => "what is only there",
            MergeMatchKind::Undefined => "some rows",
        };
        let some = if clause.condition.is_some() {
            ", under a further condition"
        } else {
            ""
        };
        Some(match clause.command_type() {
            CmdType::CmdUpdate => {
                format!("changes {} of {rows}{some}", assigned(&clause.target_list))
            }
            CmdType::CmdDelete => format!("deletes {rows}{some}"),
            CmdType::CmdInsert => format!("adds {rows}{some}"),
            _ => format!("leaves {rows} as they are{some}"),
        })
    });
    let clauses: Vec<String> = clauses.collect();
    let back = gives_back(merge.returning_clause.is_some());
    format!(
        "compares {into} with {from}{on}, and {}{back}",
        and(&clauses)
    )
}

fn copies(speech: &mut Speech<'_>, copy: &CopyStmt, description: &Description) -> String {
    speech.said.covered |= Effects::READ | Effects::EXPORT;
    let file = string(&copy.filename);
    let place = match (copy.is_program, copy.filename.as_str()) {
        (true, _) => {
            speech.warn(Warning::Program);
            speech.said.covered |= Effects::EXECUTE | Effects::ADMIN | Effects::TRANSFER;
            format!("the program {file}, which the server runs")
        }
        (false, "") => "the client".to_owned(),
        (false, _) => {
            speech.warn(Warning::File);
            speech.said.covered |= Effects::ADMIN | Effects::TRANSFER;
            format!("the file {file} of the server")
        }
    };
    if copy.is_from {
        speech.said.covered |= Effects::WRITE;
        let into = speech.writes(copy.relation.as_ref());
        let which = copy
            .where_clause
            .as_deref()
            .map_or_else(String::new, |condition| {
                format!(
                    ", those {}",
                    condition_words(speech, Token::Where, condition)
                )
            });
        return format!("adds to {into} the rows that come from {place}{which}");
    }
    let query = copy.query.as_ref().and_then(|query| query.node.as_ref());
    match query {
        None => format!(
            "copies all rows of {} to {place}",
            table(copy.relation.as_ref())
        ),
        Some(query) => match say(speech, query, description) {
            Some(query) => format!("{query}, and copies that to {place}"),
            None => format!("copies what a query gives to {place}"),
        },
    }
}

fn truncates(speech: &mut Speech<'_>, truncate: &TruncateStmt) -> String {
    speech.said.covered |= Effects::READ | Effects::WRITE;
    speech.warn(Warning::EveryRow);
    for relation in &truncate.relations {
        if let Some(NodeEnum::RangeVar(range)) = &relation.node {
            speech.writes(Some(range));
        }
    }
    let cascade = super::definitions::cascade(speech, truncate.behavior());
    let cascade = if cascade {
        ", and of every table that refers to them (CASCADE)"
    } else {
        ""
    };
    let restarts = if truncate.restart_seqs {
        ", restarts their sequences"
    } else {
        ""
    };
    format!(
        "removes all rows of {} (TRUNCATE){cascade}{restarts}",
        objects(&truncate.relations)
    )
}

const fn gives_back(does: bool) -> &'static str {
    if does { ", and gives them back" } else { "" }
}

fn rows(count: usize) -> String {
    match count {
        1 => "1 row".to_owned(),
        count => format!("{count} rows"),
    }
}

/// Columns that get a value.
fn assigned(targets: &[Node]) -> String {
    let names = targets.iter().filter_map(|target| match &target.node {
        Some(NodeEnum::ResTarget(target)) => Some(name(&target.name)),
        _ => None,
    });
    some(&names.collect::<Vec<_>>())
}

/// All tables that are read, by the description: wherever they stand.
fn read_tables(description: &Description) -> String {
    let tables = description
        .resources
        .iter()
        .filter(|one| one.kind == ResourceKind::Table && one.touch == Touch::Read);
    some(&tables.map(super::named).collect::<Vec<_>>())
}

/// What a query's FROM names, or that there is more to it.
fn from_tables(speech: &mut Speech<'_>, select: &SelectStmt) -> String {
    match (&select.larg, &select.rarg) {
        (Some(left), Some(right)) => {
            let parts = [from_tables(speech, left), from_tables(speech, right)];
            let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            and(&parts)
        }
        _ if select.from_clause.is_empty() => String::new(),
        _ => items(speech, &select.from_clause),
    }
}

/// What stands in a FROM or USING.
fn items(speech: &mut Speech<'_>, nodes: &[Node]) -> String {
    fn item(speech: &mut Speech<'_>, node: &Node, names: &mut Vec<String>) {
        match &node.node {
            Some(NodeEnum::RangeVar(range)) => names.push(speech.reads(range)),
            Some(NodeEnum::JoinExpr(join)) => {
                for side in [&join.larg, &join.rarg].into_iter().flatten() {
                    item(speech, side, names);
                }
            }
            Some(NodeEnum::RangeFunction(_)) => names.push("a function".to_owned()),
            _ => names.push("a query".to_owned()),
        }
    }
    let mut names = Vec::new();
    for node in nodes {
        item(speech, node, &mut names);
    }
    names.dedup();
    some(&names)
}
