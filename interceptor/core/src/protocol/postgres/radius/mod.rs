//! What to ask a server to learn what statements would touch, without running them.
//!
//! Of a statement that changes rows a SELECT is made that finds the same ones: its tables, its conditions, nothing of
//! what it would do to them. Such a SELECT is asked about only if it is known to read and nothing else.

mod derive;
#[cfg(test)]
mod tests;

use pg_query::{NodeEnum, ParserOptions, protobuf};

use super::describe::{Describer, Lexing};
use crate::operation::{Effects, Operation, Protocol, radius::Change};

/// Statements of one operation that are asked about; of more it is said how many aren't.
const STATEMENTS_MAX: usize = 8;

/// What to ask about an operation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// What can be asked.
    pub questions: Vec<Question>,
    /// What can't, and why, for people.
    pub unknown: Vec<Box<str>>,
}

/// What a statement does to one thing, and how to find out to how much of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Question {
    /// The statement, by its place in the operation, from 1.
    pub statement: u32,
    /// What becomes of it.
    pub change: Change,
    /// What it is done to.
    pub target: Target,
    /// Which rows.
    pub rows: Which,
    /// Whether what depends on it goes with it (CASCADE).
    pub cascade: bool,
}

/// What is touched.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing but what a query gives.
    Result,
    /// A table, or what is used like one.
    Relation(Name),
    /// All that is in a schema.
    Schema(Box<str>),
}

/// A relation's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Its schema; the search path says which, where the statement doesn't.
    pub schema: Option<Box<str>>,
    /// Its name there.
    pub relation: Box<str>,
}

/// Rows.
#[derive(Debug, PartialEq, Eq)]
pub enum Which {
    /// Nobody can say in advance.
    Unknown,
    /// All, or none in particular: it is about the thing itself.
    Whole,
    /// As many as the statement holds itself.
    Number(u64),
    /// Those that this query gives.
    Query(Query),
}

/// A SELECT that only reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    /// Its text.
    pub sql: String,
    /// The operation's parameters that its own stand for, from 0: `$1` is the first of these.
    pub parameters: Vec<usize>,
    /// It names all tables with their schemas.
    pub is_qualified: bool,
}

impl Name {
    /// As SQL writes it.
    #[must_use]
    pub fn quoted(&self) -> String {
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let relation = quote(&self.relation);
        match &self.schema {
            Some(schema) => format!("{}.{relation}", quote(schema)),
            None => relation,
        }
    }
}

impl Questions {
    /// What to ask about `operation`.
    #[must_use]
    pub fn about(operation: &Operation, describer: &Describer) -> Self {
        let mut questions = Self::default();
        if let Err(why) = questions.ask(operation, describer) {
            questions.unknown.push(why.into());
        }
        questions
    }

    fn ask(&mut self, operation: &Operation, describer: &Describer) -> Result<(), &'static str> {
        if operation.protocol != Protocol::Postgres {
            return Err("only for PostgreSQL it can be found out what would be touched");
        }
        let effects = operation.description.effects;
        if effects.contains(Effects::UNCLASSIFIED) {
            return Err("the statement can't be understood");
        }
        let text = std::str::from_utf8(&operation.content);
        let text = text.map_err(|_| "the statement isn't UTF-8")?;
        let parsed = pg_query::parse(text, ParserOptions::default());
        let parsed = parsed.map_err(|_| "the statement can't be understood")?;
        let statements = parsed.protobuf.stmts;
        let beyond = statements.len().saturating_sub(STATEMENTS_MAX);
        for (place, statement) in (1..).zip(statements).take(STATEMENTS_MAX) {
            let node = statement.stmt.and_then(|node| node.node);
            let mut about = About {
                statement: place,
                describer,
                parameters: operation.parameters.len(),
                questions: self,
            };
            if let Some(node) = node {
                about.statement(node);
            }
        }
        if beyond > 0 {
            let more = format!("{beyond} more statements aren't looked at");
            self.unknown.push(more.into());
        }
        Ok(())
    }
}

/// One statement that is asked about.
struct About<'a> {
    statement: u32,
    describer: &'a Describer,
    /// How many values are bound to the operation.
    parameters: usize,
    questions: &'a mut Questions,
}

impl About<'_> {
    fn unknown(&mut self, why: &str) {
        let why = format!("statement {}: {why}", self.statement);
        self.questions.unknown.push(why.into());
    }

    fn push(&mut self, change: Change, target: Target, rows: Which, cascade: bool) {
        self.questions.questions.push(Question {
            statement: self.statement,
            change,
            target,
            rows,
            cascade,
        });
    }

    /// A question about `relation`, of which the rows that `select` gives are touched.
    fn rows(
        &mut self,
        change: Change,
        relation: Option<&protobuf::RangeVar>,
        select: Option<protobuf::SelectStmt>,
    ) {
        let target = relation.map_or(Target::Result, |relation| Target::Relation(name(relation)));
        match select
            .ok_or("it can't be asked which rows")
            .and_then(|select| self.query(select))
        {
            Ok(query) => self.push(change, target, Which::Query(query), false),
            Err(why) => {
                self.unknown(why);
                if relation.is_some() {
                    self.push(change, target, Which::Unknown, false);
                }
            }
        }
    }

    /// `select` as a query that is known to read and nothing else.
    fn query(&self, select: protobuf::SelectStmt) -> Result<Query, &'static str> {
        let (sql, is_qualified) = derive::text(select)?;
        let (sql, parameters) = derive::renumbered(&sql, self.parameters)?;
        let described = self.describer.describe(sql.as_bytes(), Lexing::default());
        let effects = described.description.effects;
        if described.statements != 1 || !Effects::READ.contains(effects) || described.barrier {
            return Err(
                "finding its rows would itself do more than read (it calls functions that aren't known to be harmless, or changes something within a WITH)",
            );
        }
        Ok(Query {
            sql,
            parameters,
            is_qualified,
        })
    }

    fn statement(&mut self, node: NodeEnum) {
        match node {
            NodeEnum::SelectStmt(select) => self.select(*select),
            NodeEnum::InsertStmt(insert) => self.insert(*insert),
            NodeEnum::UpdateStmt(update) => {
                self.within(update.with_clause.as_ref());
                let select = derive::rows(
                    update.relation.as_ref(),
                    update.from_clause,
                    update.where_clause,
                    update.with_clause,
                );
                self.rows(Change::Changes, update.relation.as_ref(), select);
            }
            NodeEnum::DeleteStmt(delete) => {
                self.within(delete.with_clause.as_ref());
                let select = derive::rows(
                    delete.relation.as_ref(),
                    delete.using_clause,
                    delete.where_clause,
                    delete.with_clause,
                );
                self.rows(Change::Deletes, delete.relation.as_ref(), select);
            }
            NodeEnum::MergeStmt(merge) => self.merge(*merge),
            NodeEnum::TruncateStmt(truncate) => {
                let cascade = is_cascade(truncate.behavior);
                for relation in truncate.relations {
                    if let Some(NodeEnum::RangeVar(relation)) = relation.node {
                        let target = Target::Relation(name(&relation));
                        self.push(Change::Empties, target, Which::Whole, cascade);
                    }
                }
            }
            NodeEnum::DropStmt(drop) => self.drop(drop),
            NodeEnum::AlterTableStmt(alter) => self.alters(alter.relation.as_ref()),
            NodeEnum::RenameStmt(rename) => self.alters(rename.relation.as_ref()),
            NodeEnum::IndexStmt(index) => self.alters(index.relation.as_ref()),
            NodeEnum::CreateTableAsStmt(create) => {
                let into = create.into.and_then(|into| into.rel);
                match create.query.and_then(|query| query.node) {
                    Some(NodeEnum::SelectStmt(select)) => {
                        self.rows(Change::Adds, into.as_ref(), Some(*select));
                    }
                    _ => self.unknown("which rows it adds is what a prepared statement gives"),
                }
            }
            NodeEnum::CopyStmt(copy) => self.copy(*copy),
            NodeEnum::DeclareCursorStmt(declare) => self.inner(declare.query),
            NodeEnum::ExplainStmt(explain) => {
                let runs = explain.options.iter().any(|option| {
                    matches!(&option.node, Some(NodeEnum::DefElem(option)) if option.defname == "analyze")
                });
                if runs {
                    self.inner(explain.query);
                }
            }
            // No rows, and nothing that holds any.
            NodeEnum::TransactionStmt(_)
            | NodeEnum::VariableSetStmt(_)
            | NodeEnum::VariableShowStmt(_)
            | NodeEnum::PrepareStmt(_)
            | NodeEnum::DeallocateStmt(_)
            | NodeEnum::ClosePortalStmt(_)
            | NodeEnum::ListenStmt(_)
            | NodeEnum::UnlistenStmt(_)
            | NodeEnum::NotifyStmt(_)
            | NodeEnum::CreateStmt(_)
            | NodeEnum::CreateSchemaStmt(_)
            | NodeEnum::ViewStmt(_)
            | NodeEnum::CommentStmt(_) => {}
            NodeEnum::ExecuteStmt(_) | NodeEnum::FetchStmt(_) => {
                self.unknown("what stands behind that name only its session knows");
            }
            _ => self.unknown("for statements of this kind it can't be asked"),
        }
    }

    fn inner(&mut self, node: Option<Box<protobuf::Node>>) {
        if let Some(node) = node.and_then(|node| node.node) {
            self.statement(node);
        }
    }

    /// What a WITH changes, each part for itself.
    fn within(&mut self, with: Option<&protobuf::WithClause>) {
        let parts = with.map_or(&[][..], |with| &with.ctes);
        for part in parts {
            let Some(NodeEnum::CommonTableExpr(part)) = &part.node else {
                continue;
            };
            let query = part.ctequery.as_ref().and_then(|query| query.node.clone());
            if let Some(
                node @ (NodeEnum::InsertStmt(_)
                | NodeEnum::UpdateStmt(_)
                | NodeEnum::DeleteStmt(_)
                | NodeEnum::MergeStmt(_)),
            ) = query
            {
                self.statement(node);
            }
        }
    }

    fn select(&mut self, mut select: protobuf::SelectStmt) {
        self.within(select.with_clause.as_ref());
        match select.into_clause.take().and_then(|into| into.rel) {
            Some(into) => self.rows(Change::Adds, Some(&into), Some(select)),
            None => self.rows(Change::Reads, None, Some(select)),
        }
    }

    fn insert(&mut self, insert: protobuf::InsertStmt) {
        self.within(insert.with_clause.as_ref());
        let relation = insert.relation.as_ref();
        let source = insert.select_stmt.and_then(|source| source.node);
        let Some(NodeEnum::SelectStmt(mut select)) = source else {
            // DEFAULT VALUES.
            let target = relation.map_or(Target::Result, |into| Target::Relation(name(into)));
            return self.push(Change::Adds, target, Which::Number(1), false);
        };
        if let (Some(into), rows @ 1..) = (relation, select.values_lists.len()) {
            let target = Target::Relation(name(into));
            let rows = Which::Number(u64::try_from(rows).unwrap_or(u64::MAX));
            return self.push(Change::Adds, target, rows, false);
        }
        match (insert.with_clause, &select.with_clause) {
            (None, _) => self.rows(Change::Adds, relation, Some(*select)),
            (with, None) => {
                select.with_clause = with;
                self.rows(Change::Adds, relation, Some(*select));
            }
            (Some(_), Some(_)) => self.rows(Change::Adds, relation, None),
        }
    }

    fn merge(&mut self, merge: protobuf::MergeStmt) {
        self.within(merge.with_clause.as_ref());
        let relation = merge.relation.as_ref();
        let source: Vec<_> = merge
            .source_relation
            .into_iter()
            .map(|node| *node)
            .collect();
        let (mut changes, mut deletes, mut adds) = (false, false, false);
        for clause in &merge.merge_when_clauses {
            if let Some(NodeEnum::MergeWhenClause(clause)) = &clause.node {
                match protobuf::CmdType::try_from(clause.command_type) {
                    Ok(protobuf::CmdType::CmdUpdate) => changes = true,
                    Ok(protobuf::CmdType::CmdDelete) => deletes = true,
                    Ok(protobuf::CmdType::CmdInsert) => adds = true,
                    _ => {}
                }
            }
        }
        let condition = merge.join_condition;
        let matched = || {
            derive::rows(
                relation,
                source.clone(),
                condition.clone(),
                merge.with_clause.clone(),
            )
        };
        if changes {
            self.rows(Change::Changes, relation, matched());
        }
        if deletes {
            self.rows(Change::Deletes, relation, matched());
        }
        if adds {
            let missing = derive::missing(
                relation,
                source.clone(),
                condition.clone(),
                merge.with_clause.clone(),
            );
            self.rows(Change::Adds, relation, missing);
        }
    }

    fn alters(&mut self, relation: Option<&protobuf::RangeVar>) {
        match relation {
            Some(relation) => {
                let target = Target::Relation(name(relation));
                self.push(Change::Alters, target, Which::Whole, false);
            }
            None => self.unknown("for statements of this kind it can't be asked"),
        }
    }

    fn drop(&mut self, drop: protobuf::DropStmt) {
        use protobuf::ObjectType as Kind;

        let cascade = is_cascade(drop.behavior);
        let kind = Kind::try_from(drop.remove_type);
        for object in drop.objects {
            let target = match (&kind, object.node) {
                (
                    Ok(
                        Kind::ObjectTable
                        | Kind::ObjectView
                        | Kind::ObjectMatview
                        | Kind::ObjectForeignTable
                        | Kind::ObjectSequence
                        | Kind::ObjectIndex,
                    ),
                    Some(NodeEnum::List(parts)),
                ) => derive::dropped(&parts.items).map(Target::Relation),
                (Ok(Kind::ObjectSchema), Some(NodeEnum::String(schema))) => {
                    Some(Target::Schema(schema.sval.into()))
                }
                _ => None,
            };
            match target {
                Some(target) => self.push(Change::Drops, target, Which::Whole, cascade),
                None => self.unknown("for what it drops it can't be asked"),
            }
        }
    }

    fn copy(&mut self, copy: protobuf::CopyStmt) {
        if let Some(query) = copy.query {
            return self.inner(Some(query));
        }
        let Some(relation) = copy.relation else {
            return;
        };
        let target = Target::Relation(name(&relation));
        if copy.is_from {
            self.push(Change::Adds, target, Which::Unknown, false);
        } else {
            let select = derive::rows(Some(&relation), Vec::new(), copy.where_clause, None);
            self.rows(Change::Reads, Some(&relation), select);
        }
    }
}

/// What `relation` is called.
fn name(relation: &protobuf::RangeVar) -> Name {
    let schema = relation.schemaname.as_str();
    Name {
        schema: (!schema.is_empty()).then(|| schema.into()),
        relation: relation.relname.as_str().into(),
    }
}

fn is_cascade(behavior: i32) -> bool {
    protobuf::DropBehavior::try_from(behavior) == Ok(protobuf::DropBehavior::DropCascade)
}
