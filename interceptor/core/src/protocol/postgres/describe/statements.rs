//! What each kind of statement does.

#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value by name gives null where there is nothing"
)]

use std::sync::Arc;

use pg_query::protobuf::ObjectType;
use serde_json::Value;

use super::{
    Described, Encoding, Lexing, NameChange, Reference,
    definitions::{alter_table, define, named, object_name, objects, roles, targets},
    settings::set,
    walk::{Walk, literal, string, strings, tagged},
};
use crate::{
    limits,
    operation::{Description, Effects, ResourceKind, Touch},
};

/// A description, and whether the literals in the text had no part in it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) described: Described,
    pub(super) literal_free: bool,
}

pub(super) const READ: Effects = Effects::READ;
const WRITE: Effects = Effects::WRITE;
pub(super) const SCHEMA: Effects = Effects::SCHEMA;
pub(super) const ADMIN: Effects = Effects::ADMIN;
pub(super) const EXECUTE: Effects = Effects::EXECUTE;

/// Describes `text` by PostgreSQL's own parser.
pub(super) fn describe(text: &[u8], lexing: Lexing) -> Outcome {
    parse(text, lexing).unwrap_or_else(|| {
        let described = Described {
            description: Arc::new(Description {
                actions: [Box::from("UNCLASSIFIED")].into(),
                effects: Effects::UNCLASSIFIED,
                ..Description::default()
            }),
            statements: 1,
            runs: [].into(),
            names: [].into(),
            barrier: true,
        };
        Outcome {
            described,
            literal_free: false,
        }
    })
}

fn parse(text: &[u8], lexing: Lexing) -> Option<Outcome> {
    if text.len() > limits::STATEMENT_BYTES_MAX || text.contains(&0) {
        return None;
    }
    let text = match lexing.encoding {
        _ if text.is_ascii() => std::str::from_utf8(text).ok()?.to_owned(),
        Encoding::Utf8 => std::str::from_utf8(text).ok()?.to_owned(),
        // Every byte above 0x7F is part of a name or a literal there; which one doesn't matter.
        Encoding::AsciiSafe => text.iter().map(|byte| char::from(*byte)).collect(),
        Encoding::Unsafe => return None,
    };
    // With the old rules a backslash escapes inside plain strings, and this parser has the new ones.
    if !lexing.standard_conforming_strings && text.contains('\\') {
        return None;
    }
    // The parser bounds its own depth (it fails, and the text is unclassified), and decoding bounds the
    // tree's to 100 levels, so walking it can't exhaust a stack.
    let parsed = pg_query::parse(&text, pg_query::ParserOptions::default()).ok()?;
    let tree = serde_json::to_value(&parsed.protobuf).ok()?;
    let mut walk = Walk::new();
    let statements = tree["stmts"].as_array()?;
    for statement in statements {
        let (tag, body) = tagged(&statement["stmt"])?;
        walk.statement(tag, body);
        let plain = matches!(
            tag,
            "SelectStmt" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt"
        );
        walk.literal_free &= plain;
    }
    let beyond = !(READ | WRITE).contains(walk.effects);
    Some(Outcome {
        literal_free: walk.literal_free,
        described: Described {
            description: Arc::new(Description {
                actions: walk.actions.into(),
                effects: walk.effects,
                resources: walk.resources.into_iter().collect(),
                attributes: walk.attributes,
            }),
            statements: statements.len(),
            runs: walk.runs.into(),
            names: walk.names.into(),
            barrier: walk.barrier || beyond,
        },
    })
}

/// Adds what a statement of type `tag` does.
#[expect(
    clippy::too_many_lines,
    reason = "one line a kind of statement; splitting it would hide gaps"
)]
pub(super) fn statement(walk: &mut Walk, tag: &str, body: &Value) {
    match tag {
        // === Data ===
        "SelectStmt" => select(walk, body),
        "InsertStmt" => {
            effect(walk, "INSERT", WRITE);
            walk.table(&body["relation"], Touch::Write);
            walk.fields_but(body, &["relation", "with_clause", "select_stmt"]);
            insert_source(walk, &body["select_stmt"]);
            if !body["returning_clause"].is_null() {
                walk.table(&body["relation"], Touch::Read);
            }
        }
        "UpdateStmt" | "DeleteStmt" => {
            effect(
                walk,
                if tag == "UpdateStmt" {
                    "UPDATE"
                } else {
                    "DELETE"
                },
                WRITE,
            );
            walk.table(&body["relation"], Touch::Write);
            if body["where_clause"].is_null() {
                walk.attributes.insert("where".into(), "absent".into());
            }
            if !body["returning_clause"].is_null() {
                walk.table(&body["relation"], Touch::Read);
            }
            walk.fields_but(body, &["relation", "with_clause"]);
        }
        "MergeStmt" => {
            effect(walk, "MERGE", WRITE | READ);
            walk.table(&body["relation"], Touch::Write);
            walk.fields_but(body, &["relation", "with_clause"]);
        }
        "CopyStmt" => copy(walk, body),
        "TruncateStmt" => {
            effect(walk, "TRUNCATE", WRITE);
            targets(walk, &body["relations"]);
        }
        "LockStmt" => {
            effect(walk, "LOCK TABLE", WRITE);
            targets(walk, &body["relations"]);
        }
        "RefreshMatViewStmt" => {
            effect(walk, "REFRESH MATERIALIZED VIEW", WRITE | SCHEMA);
            walk.table(&body["relation"], Touch::Write);
        }

        // === By name: what only the session knows ===
        "PrepareStmt" => {
            effect(walk, "PREPARE", READ);
            walk.names.push(NameChange::Prepare {
                name: string(&body["name"]).into(),
                statement: Arc::new(inner(&body["query"])),
            });
        }
        "ExecuteStmt" => {
            walk.action("EXECUTE");
            walk.runs
                .push(Reference::Prepared(string(&body["name"]).into()));
            walk.fields(body);
            walk.barrier = true;
        }
        "DeallocateStmt" => {
            effect(walk, "DEALLOCATE", READ);
            walk.names.push(match string(&body["name"]) {
                "" => NameChange::DeallocateAll,
                name => NameChange::Deallocate(name.into()),
            });
        }
        "DeclareCursorStmt" => {
            walk.action("DECLARE CURSOR");
            walk.any(&body["query"]);
            let statement = Arc::new(inner(&body["query"]));
            walk.names.push(NameChange::Declare {
                name: string(&body["portalname"]).into(),
                statement,
            });
        }
        "FetchStmt" => {
            effect(
                walk,
                if body["ismove"].as_bool() == Some(true) {
                    "MOVE"
                } else {
                    "FETCH"
                },
                READ,
            );
            walk.runs
                .push(Reference::Cursor(string(&body["portalname"]).into()));
        }
        "ClosePortalStmt" => {
            effect(walk, "CLOSE CURSOR", READ);
            walk.names.push(match string(&body["portalname"]) {
                "" => NameChange::CloseAll,
                name => NameChange::Close(name.into()),
            });
        }
        "DiscardStmt" => {
            effect(walk, "DISCARD", READ);
            walk.barrier = true;
            if body["target"].as_i64() == Some(pg_query::protobuf::DiscardMode::DiscardAll as i64) {
                walk.names
                    .extend([NameChange::DeallocateAll, NameChange::CloseAll]);
            }
        }

        // === Session and transaction ===
        "TransactionStmt" => transaction(walk, body),
        "VariableSetStmt" => set(walk, body),
        "VariableShowStmt" => effect(walk, "SHOW", READ),
        "ConstraintsSetStmt" => effect(walk, "SET CONSTRAINTS", READ),
        "ListenStmt" | "UnlistenStmt" | "NotifyStmt" => {
            let (action, effects) = match tag {
                "ListenStmt" => ("LISTEN", READ),
                "UnlistenStmt" => ("UNLISTEN", READ),
                _ => ("NOTIFY", WRITE),
            };
            effect(walk, action, effects);
            let touch = if tag == "NotifyStmt" {
                Touch::Write
            } else {
                Touch::Read
            };
            walk.touch(
                ResourceKind::Channel,
                None,
                string(&body["conditionname"]),
                touch,
            );
        }
        "ExplainStmt" => explain(walk, body),

        // === Code ===
        "DoStmt" => effect(walk, "DO", EXECUTE | Effects::UNCLASSIFIED),
        "CallStmt" => {
            effect(walk, "CALL", EXECUTE);
            walk.any(&body["funccall"]);
        }
        "CreateFunctionStmt" => {
            let procedure = body["is_procedure"].as_bool() == Some(true);
            effect(
                walk,
                if procedure {
                    "CREATE PROCEDURE"
                } else {
                    "CREATE FUNCTION"
                },
                SCHEMA | EXECUTE,
            );
            named(walk, ResourceKind::Function, &strings(&body["funcname"]));
        }
        "AlterFunctionStmt" => {
            effect(walk, "ALTER FUNCTION", SCHEMA | EXECUTE);
            named(
                walk,
                ResourceKind::Function,
                &strings(&body["func"]["objname"]),
            );
        }
        "CreateTrigStmt" => {
            effect(walk, "CREATE TRIGGER", SCHEMA | EXECUTE);
            walk.table(&body["relation"], Touch::Write);
            named(walk, ResourceKind::Function, &strings(&body["funcname"]));
        }
        "RuleStmt" => {
            effect(walk, "CREATE RULE", SCHEMA | EXECUTE);
            walk.table(&body["relation"], Touch::Write);
            walk.fields_but(body, &["relation"]);
        }
        "CreateEventTrigStmt" => {
            effect(walk, "CREATE EVENT TRIGGER", SCHEMA | EXECUTE | ADMIN);
            named(walk, ResourceKind::Function, &strings(&body["funcname"]));
        }
        "LoadStmt" => {
            effect(walk, "LOAD", ADMIN | EXECUTE);
            walk.touch(
                ResourceKind::File,
                None,
                string(&body["filename"]),
                Touch::Read,
            );
        }

        // === Definitions ===
        "CreateStmt" => define(walk, "CREATE TABLE", body, &["relation"]),
        "CreateForeignTableStmt" => {
            effect(walk, "CREATE FOREIGN TABLE", SCHEMA | Effects::TRANSFER);
            walk.table(&body["base_stmt"]["relation"], Touch::Write);
            walk.fields_but(&body["base_stmt"], &["relation"]);
        }
        "CreateTableAsStmt" => {
            let view = body["objtype"].as_i64() == Some(ObjectType::ObjectMatview as i64);
            effect(
                walk,
                if view {
                    "CREATE MATERIALIZED VIEW"
                } else {
                    "CREATE TABLE AS"
                },
                SCHEMA | WRITE,
            );
            walk.table(&body["into"]["rel"], Touch::Write);
            walk.any(&body["query"]);
        }
        "ViewStmt" => {
            effect(walk, "CREATE VIEW", SCHEMA);
            walk.table(&body["view"], Touch::Write);
            walk.any(&body["query"]);
        }
        "IndexStmt" => define(walk, "CREATE INDEX", body, &["relation"]),
        "CreateSeqStmt" => define(walk, "CREATE SEQUENCE", body, &["sequence"]),
        "AlterSeqStmt" => define(walk, "ALTER SEQUENCE", body, &["sequence"]),
        "AlterTableStmt" => alter_table(walk, body),
        "RenameStmt" | "AlterObjectSchemaStmt" | "AlterObjectDependsStmt" => {
            let kind = body["rename_type"]
                .as_i64()
                .or_else(|| body["object_type"].as_i64())
                .unwrap_or(0);
            let kind = if kind == ObjectType::ObjectColumn as i64 {
                body["relation_type"].as_i64().unwrap_or(0)
            } else {
                kind
            };
            effect(walk, &format!("ALTER {}", object_name(kind)), SCHEMA);
            if body["relation"].is_object() {
                walk.table(&body["relation"], Touch::Write);
            }
            objects(walk, kind, &Value::Array(vec![body["object"].clone()]));
        }
        "DropStmt" => {
            let kind = body["remove_type"].as_i64().unwrap_or(0);
            effect(walk, &format!("DROP {}", object_name(kind)), SCHEMA);
            objects(walk, kind, &body["objects"]);
        }
        "CommentStmt" => effect(walk, "COMMENT", SCHEMA),
        "CreateSchemaStmt" => {
            effect(walk, "CREATE SCHEMA", SCHEMA);
            walk.touch(
                ResourceKind::Object,
                None,
                string(&body["schemaname"]),
                Touch::Write,
            );
            walk.any(&body["schema_elts"]);
        }

        // === Roles, privileges, the server ===
        "GrantStmt" => {
            effect(
                walk,
                if body["is_grant"].as_bool() == Some(true) {
                    "GRANT"
                } else {
                    "REVOKE"
                },
                ADMIN,
            );
            targets(walk, &body["objects"]);
            roles(walk, &body["grantees"]);
        }
        "GrantRoleStmt" => {
            effect(
                walk,
                if body["is_grant"].as_bool() == Some(true) {
                    "GRANT ROLE"
                } else {
                    "REVOKE ROLE"
                },
                ADMIN,
            );
            roles(walk, &body["grantee_roles"]);
        }
        "CreateRoleStmt" => {
            effect(walk, "CREATE ROLE", ADMIN);
            walk.touch(
                ResourceKind::Role,
                None,
                string(&body["role"]),
                Touch::Write,
            );
        }
        "AlterRoleStmt" | "AlterRoleSetStmt" => {
            effect(walk, "ALTER ROLE", ADMIN);
            walk.touch(
                ResourceKind::Role,
                None,
                string(&body["role"]["rolename"]),
                Touch::Write,
            );
        }
        "DropRoleStmt" => {
            effect(walk, "DROP ROLE", ADMIN);
            roles(walk, &body["roles"]);
        }
        "CreatedbStmt"
        | "DropdbStmt"
        | "AlterDatabaseStmt"
        | "AlterDatabaseSetStmt"
        | "AlterDatabaseRefreshCollStmt" => {
            let action = match tag {
                "CreatedbStmt" => "CREATE DATABASE",
                "DropdbStmt" => "DROP DATABASE",
                _ => "ALTER DATABASE",
            };
            effect(walk, action, ADMIN | SCHEMA);
            walk.touch(
                ResourceKind::Database,
                None,
                string(&body["dbname"]),
                Touch::Write,
            );
        }
        "AlterSystemStmt" => {
            effect(walk, "ALTER SYSTEM", ADMIN);
            walk.touch(
                ResourceKind::Setting,
                None,
                string(&body["setstmt"]["name"]),
                Touch::Write,
            );
        }
        "AlterOwnerStmt" => effect(
            walk,
            &format!(
                "ALTER {}",
                object_name(body["object_type"].as_i64().unwrap_or(0))
            ),
            SCHEMA | ADMIN,
        ),
        "VacuumStmt" => {
            let vacuum = body["is_vacuumcmd"].as_bool() == Some(true);
            effect(walk, if vacuum { "VACUUM" } else { "ANALYZE" }, ADMIN);
            walk.fields(body);
        }
        _ => other(walk, tag, body),
    }
}

/// Kinds whose effects follow from their name alone; what is in none of these lists is unclassified.
fn other(walk: &mut Walk, tag: &str, body: &Value) {
    const DEFINITIONS: [&str; 20] = [
        "CreateEnumStmt",
        "CreateDomainStmt",
        "CompositeTypeStmt",
        "CreateRangeStmt",
        "DefineStmt",
        "CreateStatsStmt",
        "AlterStatsStmt",
        "AlterEnumStmt",
        "AlterDomainStmt",
        "AlterTypeStmt",
        "CreateConversionStmt",
        "AlterCollationStmt",
        "AlterOperatorStmt",
        "AlterOpFamilyStmt",
        "CreateOpClassStmt",
        "CreateOpFamilyStmt",
        "AlterTsdictionaryStmt",
        "AlterTsconfigurationStmt",
        "CreateCastStmt",
        "CreateTransformStmt",
    ];
    const ADMINISTRATION: [&str; 18] = [
        "ReassignOwnedStmt",
        "DropOwnedStmt",
        "AlterDefaultPrivilegesStmt",
        "CreatePolicyStmt",
        "AlterPolicyStmt",
        "SecLabelStmt",
        "ClusterStmt",
        "ReindexStmt",
        "CheckPointStmt",
        "CreateTableSpaceStmt",
        "DropTableSpaceStmt",
        "AlterTableSpaceOptionsStmt",
        "AlterTableMoveAllStmt",
        "AlterEventTrigStmt",
        "CreateAmStmt",
        "ReplicaIdentityStmt",
        "CreatePublicationStmt",
        "AlterPublicationStmt",
    ];
    const FOREIGN: [&str; 14] = [
        "CreateFdwStmt",
        "AlterFdwStmt",
        "CreateForeignServerStmt",
        "AlterForeignServerStmt",
        "CreateUserMappingStmt",
        "AlterUserMappingStmt",
        "DropUserMappingStmt",
        "ImportForeignSchemaStmt",
        "CreateSubscriptionStmt",
        "AlterSubscriptionStmt",
        "DropSubscriptionStmt",
        "CreateExtensionStmt",
        "AlterExtensionStmt",
        "AlterExtensionContentsStmt",
    ];
    let action = spelled(tag);
    if DEFINITIONS.contains(&tag) {
        effect(walk, &action, SCHEMA);
    } else if ADMINISTRATION.contains(&tag) {
        effect(walk, &action, SCHEMA | ADMIN);
    } else if FOREIGN.contains(&tag) {
        effect(walk, &action, SCHEMA | ADMIN | Effects::TRANSFER | EXECUTE);
    } else if tag == "CreatePlangStmt" {
        effect(walk, "CREATE LANGUAGE", SCHEMA | ADMIN | EXECUTE);
    } else if tag == "PlassignStmt" || tag == "ReturnStmt" || tag == "RawStmt" {
        walk.action(&action);
    } else {
        effect(walk, &action, Effects::UNCLASSIFIED);
    }
    walk.fields(body);
}

/// `CreateForeignServerStmt` as `CREATE FOREIGN SERVER`.
fn spelled(tag: &str) -> String {
    let known = match tag {
        "SecLabelStmt" => "SECURITY LABEL",
        "CheckPointStmt" => "CHECKPOINT",
        "CreateForeignServerStmt" => "CREATE SERVER",
        "AlterForeignServerStmt" => "ALTER SERVER",
        "CreateFdwStmt" => "CREATE FOREIGN DATA WRAPPER",
        "AlterFdwStmt" => "ALTER FOREIGN DATA WRAPPER",
        "CreateTableSpaceStmt" => "CREATE TABLESPACE",
        "DropTableSpaceStmt" => "DROP TABLESPACE",
        "CreateEnumStmt" | "CompositeTypeStmt" | "CreateRangeStmt" => "CREATE TYPE",
        "DefineStmt" => "CREATE OBJECT",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let mut out = String::new();
    for character in tag.trim_end_matches("Stmt").chars() {
        if character.is_ascii_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.push(character.to_ascii_uppercase());
    }
    out
}

pub(super) fn effect(walk: &mut Walk, action: &str, effects: Effects) {
    walk.action(action);
    walk.effects |= effects;
}

/// What a statement inside another one does by itself.
pub(super) fn inner(query: &Value) -> Described {
    let mut walk = Walk::new();
    match tagged(query) {
        Some((tag, body)) => walk.statement(tag, body),
        None => walk.effects = Effects::UNCLASSIFIED,
    }
    let barrier = walk.barrier || !(READ | WRITE).contains(walk.effects);
    Described {
        description: Arc::new(Description {
            actions: walk.actions.into(),
            effects: walk.effects,
            resources: walk.resources.into_iter().collect(),
            attributes: walk.attributes,
        }),
        statements: 1,
        runs: walk.runs.into(),
        names: walk.names.into(),
        barrier,
    }
}

/// What is inserted: VALUES is no query of its own, anything else is.
fn insert_source(walk: &mut Walk, source: &Value) {
    match tagged(source) {
        Some((_, select))
            if select["values_lists"]
                .as_array()
                .is_some_and(|rows| !rows.is_empty()) =>
        {
            walk.any(&select["with_clause"]);
            walk.fields_but(select, &["with_clause"]);
        }
        _ => walk.any(source),
    }
}

fn select(walk: &mut Walk, body: &Value) {
    let into = &body["into_clause"];
    if into.is_object() {
        effect(walk, "SELECT INTO", READ | SCHEMA | WRITE);
        walk.table(&into["rel"], Touch::Write);
    } else {
        effect(walk, "SELECT", READ);
    }
    walk.fields_but(body, &["into_clause", "with_clause"]);
}

fn copy(walk: &mut Walk, body: &Value) {
    let from = body["is_from"].as_bool() == Some(true);
    let program = body["is_program"].as_bool() == Some(true);
    let file = string(&body["filename"]);
    let direction = if from { "FROM" } else { "TO" };
    let (action, beyond) = match (program, file) {
        (true, _) => (
            format!("COPY {direction} PROGRAM"),
            EXECUTE | ADMIN | Effects::TRANSFER,
        ),
        (false, "") => (format!("COPY {direction}"), Effects::empty()),
        (false, _) => (format!("COPY {direction} FILE"), ADMIN | Effects::TRANSFER),
    };
    effect(
        walk,
        &action,
        beyond | if from { WRITE } else { READ | Effects::EXPORT },
    );
    if !file.is_empty() {
        let (kind, touch) = if program {
            (ResourceKind::Program, Touch::Write)
        } else {
            (
                ResourceKind::File,
                if from { Touch::Read } else { Touch::Write },
            )
        };
        walk.touch(kind, None, file, touch);
    }
    if body["relation"].is_object() {
        walk.table(
            &body["relation"],
            if from { Touch::Write } else { Touch::Read },
        );
    }
    walk.any(&body["query"]);
    walk.any(&body["where_clause"]);
    // The client's rows follow; what comes after them is read once the server has answered.
    walk.barrier = true;
}

fn transaction(walk: &mut Walk, body: &Value) {
    use pg_query::protobuf::TransactionStmtKind as Kind;
    let kind = body["kind"]
        .as_i64()
        .and_then(|kind| i32::try_from(kind).ok());
    let action = match kind.and_then(|kind| Kind::try_from(kind).ok()) {
        Some(Kind::TransStmtBegin | Kind::TransStmtStart) => "BEGIN",
        Some(Kind::TransStmtCommit) => "COMMIT",
        Some(Kind::TransStmtRollback) => "ROLLBACK",
        Some(Kind::TransStmtSavepoint) => "SAVEPOINT",
        Some(Kind::TransStmtRelease) => "RELEASE",
        Some(Kind::TransStmtRollbackTo) => "ROLLBACK TO SAVEPOINT",
        Some(Kind::TransStmtPrepare) => "PREPARE TRANSACTION",
        Some(Kind::TransStmtCommitPrepared) => "COMMIT PREPARED",
        Some(Kind::TransStmtRollbackPrepared) => "ROLLBACK PREPARED",
        _ => return effect(walk, "UNCLASSIFIED", Effects::UNCLASSIFIED),
    };
    effect(
        walk,
        action,
        if action.contains("PREPARE") {
            READ | WRITE
        } else {
            READ
        },
    );
}

fn explain(walk: &mut Walk, body: &Value) {
    let runs = body["options"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|option| {
            let Some((_, option)) = tagged(option) else {
                return true;
            };
            let off = || {
                literal(&option["arg"]).is_some_and(|value| {
                    matches!(&*value.to_ascii_lowercase(), "false" | "off" | "0")
                })
            };
            string(&option["defname"]) == "analyze" && !off()
        });
    if runs {
        walk.action("EXPLAIN ANALYZE");
        walk.any(&body["query"]);
        return;
    }
    // Only planned: its tables are looked at, and nothing is changed. Planning may evaluate functions
    // that claim to be immutable, so foreign functions count as run.
    let planned = inner(&body["query"]);
    effect(
        walk,
        "EXPLAIN",
        READ | (planned.description.effects & (EXECUTE | Effects::UNCLASSIFIED)),
    );
    for resource in &planned.description.resources {
        walk.touch(
            resource.kind,
            resource.namespace.as_deref(),
            &resource.name,
            Touch::Read,
        );
    }
    walk.runs.extend(planned.runs);
}
