//! What concerns the session, what is run by a name, and code.

use pg_query::{
    NodeEnum,
    protobuf::{
        DiscardMode, DoStmt, TransactionStmt, TransactionStmtKind, VariableSetKind, VariableSetStmt,
    },
};

use super::{
    Speech,
    names::{dotted, name, objects, some, value},
};
use crate::operation::{Description, Effects, words::Warning};

pub(super) fn say(
    speech: &mut Speech<'_>,
    node: &NodeEnum,
    description: &Description,
) -> Option<String> {
    let text = match node {
        NodeEnum::TransactionStmt(transaction) => transacts(speech, transaction),
        NodeEnum::VariableSetStmt(set) => {
            speech.said.covered |= Effects::READ | Effects::ADMIN | Effects::EXECUTE;
            sets(speech, set, "for this session")
        }
        NodeEnum::VariableShowStmt(show) if show.name == "all" => "shows all settings".to_owned(),
        NodeEnum::VariableShowStmt(show) => format!("shows the setting {}", name(&show.name)),
        NodeEnum::ConstraintsSetStmt(set) => {
            let which = match set.constraints.as_slice() {
                [] => "all constraints".to_owned(),
                some => format!("the constraints {}", objects(some)),
            };
            let when = if set.deferred {
                "at the end of the transaction"
            } else {
                "at once"
            };
            format!("has {which} checked {when}")
        }
        NodeEnum::ListenStmt(listen) => {
            format!("listens on the channel {}", name(&listen.conditionname))
        }
        NodeEnum::UnlistenStmt(_) => "stops listening".to_owned(),
        NodeEnum::NotifyStmt(notify) => {
            speech.said.covered |= Effects::WRITE;
            format!(
                "notifies whoever listens on the channel {}",
                name(&notify.conditionname)
            )
        }
        NodeEnum::ExplainStmt(explain) => {
            let query = explain.query.as_deref();
            let analyzes =
                description.actions.first().map_or("", |action| &**action) == "EXPLAIN ANALYZE";
            let outside = std::mem::take(&mut speech.warnings);
            let inner = speech.inner(query);
            let inside = std::mem::replace(&mut speech.warnings, outside);
            if analyzes {
                // It is all said inside.
                speech.said.covered = Effects::all();
                speech.said.calls = true;
                inside.into_iter().for_each(|warning| speech.warn(warning));
                if !Effects::READ.contains(description.effects) {
                    speech.warn(Warning::ReallyRuns);
                }
                format!("really runs, and tells how it went: {inner}")
            } else {
                speech.said.calls = true;
                let code = Effects::EXECUTE | Effects::UNCLASSIFIED;
                speech.said.covered |= code;
                let plans = if description.effects.intersects(code) {
                    "tells how this would be run, for which it may run its functions"
                } else {
                    "tells how this would be run, without running it"
                };
                format!("{plans}: {inner}")
            }
        }
        NodeEnum::PrepareStmt(prepare) => {
            let inner = speech.inner(prepare.query.as_deref());
            format!(
                "prepares, to be run later as {}: {inner}",
                name(&prepare.name)
            )
        }
        NodeEnum::ExecuteStmt(execute) => {
            format!("runs what was prepared as {}", name(&execute.name))
        }
        NodeEnum::DeallocateStmt(deallocate) => match deallocate.name.as_str() {
            "" => "forgets all that was prepared".to_owned(),
            prepared => format!("forgets what was prepared as {}", name(prepared)),
        },
        NodeEnum::DeclareCursorStmt(declare) => {
            speech.said.covered = Effects::all();
            speech.said.calls = true;
            let inner = speech.inner(declare.query.as_deref());
            format!(
                "opens the cursor {} on a query that {inner}",
                name(&declare.portalname)
            )
        }
        NodeEnum::FetchStmt(fetch) => {
            let cursor = name(&fetch.portalname);
            if fetch.ismove {
                format!("moves the cursor {cursor}")
            } else {
                format!("fetches rows from the cursor {cursor}")
            }
        }
        NodeEnum::ClosePortalStmt(close) => match close.portalname.as_str() {
            "" => "closes all cursors".to_owned(),
            cursor => format!("closes the cursor {}", name(cursor)),
        },
        NodeEnum::DiscardStmt(discard) => match discard.target() {
            DiscardMode::DiscardAll => "puts the session back to how it began (DISCARD ALL)",
            DiscardMode::DiscardPlans => "forgets plans that were made",
            DiscardMode::DiscardSequences => "forgets where sequences are in this session",
            DiscardMode::DiscardTemp => "drops the temporary tables of this session",
            DiscardMode::Undefined => return None,
        }
        .to_owned(),
        NodeEnum::DoStmt(code) => {
            speech.said.covered |= Effects::EXECUTE | Effects::UNCLASSIFIED;
            speech.warn(Warning::HiddenCode);
            format!("runs code (DO, {}) that can't be seen into", language(code))
        }
        NodeEnum::CallStmt(stmt) => {
            speech.said.covered |= Effects::EXECUTE;
            speech.warn(Warning::HiddenCode);
            let called = stmt.funccall.as_deref();
            let called = called.map_or_else(|| "?".to_owned(), |called| dotted(&called.funcname));
            let text = format!("calls the procedure {called}, which can't be seen into");
            speech.said.called = Some(called);
            text
        }
        _ => return None,
    };
    speech.said.covered |= Effects::READ;
    Some(text)
}

fn transacts(speech: &mut Speech<'_>, transaction: &TransactionStmt) -> String {
    let point = name(&transaction.savepoint_name);
    let prepared = super::quote::string(&transaction.gid);
    speech.said.covered |= Effects::READ | Effects::WRITE;
    match transaction.kind() {
        TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart => {
            "begins a transaction".to_owned()
        }
        TransactionStmtKind::TransStmtCommit => {
            "ends the transaction and keeps what it did (COMMIT)".to_owned()
        }
        TransactionStmtKind::TransStmtRollback => {
            "ends the transaction and undoes what it did (ROLLBACK)".to_owned()
        }
        TransactionStmtKind::TransStmtSavepoint => format!("marks a point, {point}, to go back to"),
        TransactionStmtKind::TransStmtRelease => format!("gives up going back to {point}"),
        TransactionStmtKind::TransStmtRollbackTo => format!("undoes what was done since {point}"),
        TransactionStmtKind::TransStmtPrepare => {
            format!("readies the transaction, as {prepared}, to be committed by whoever likes")
        }
        TransactionStmtKind::TransStmtCommitPrepared => {
            format!("keeps what the transaction {prepared}, which was readied before, did")
        }
        TransactionStmtKind::TransStmtRollbackPrepared => {
            format!("undoes what the transaction {prepared}, which was readied before, did")
        }
        TransactionStmtKind::Undefined => "does something to the transaction".to_owned(),
    }
}

/// A setting, and whom it is for.
pub(super) fn sets(speech: &mut Speech<'_>, set: &VariableSetStmt, whom: &str) -> String {
    let values: Vec<String> = set
        .args
        .iter()
        .map(|arg| value(arg).unwrap_or_else(|| "something".to_owned()))
        .collect();
    let whom = if set.is_local {
        "for this transaction"
    } else {
        whom
    };
    let sets_value = set.kind() == VariableSetKind::VarSetValue;
    match set.name.to_ascii_lowercase().as_str() {
        // Triggers and rules don't fire in replicas, and foreign keys are triggers.
        "session_replication_role"
            if sets_value && !values.iter().any(|value| value == "'origin'") =>
        {
            speech.warn(Warning::TriggersOff);
        }
        "archive_command"
        | "archive_cleanup_command"
        | "restore_command"
        | "recovery_end_command"
        | "ssl_passphrase_command" => speech.warn(Warning::Program),
        "shared_preload_libraries"
        | "session_preload_libraries"
        | "local_preload_libraries"
        | "archive_library"
        | "dynamic_library_path" => speech.warn(Warning::HiddenCode),
        _ => {}
    }
    match (set.kind(), set.name.as_str()) {
        (VariableSetKind::VarSetValue, "role") => match values.as_slice() {
            [role] if role == "'none'" => "acts as itself again".to_owned(),
            [role] => format!("acts with the rights of {role} from now on"),
            _ => "acts as another role from now on".to_owned(),
        },
        (VariableSetKind::VarSetValue, "session_authorization") => {
            format!("acts as {} from now on", some(&values))
        }
        (VariableSetKind::VarSetValue, _) => {
            format!("sets {} to {} {whom}", setting(&set.name), some(&values))
        }
        (VariableSetKind::VarSetDefault | VariableSetKind::VarReset, _) => {
            format!("puts {} back to its default {whom}", setting(&set.name))
        }
        (VariableSetKind::VarSetCurrent, _) => {
            format!("keeps {} as it is now {whom}", setting(&set.name))
        }
        (VariableSetKind::VarSetMulti, _) => match &*set.name.to_ascii_lowercase() {
            "session characteristics" => "sets how transactions of this session behave",
            _ => "sets how the transaction behaves",
        }
        .to_owned(),
        (VariableSetKind::VarResetAll, _) => format!("puts all settings back {whom}"),
        (VariableSetKind::Undefined, _) => format!("does something to {}", setting(&set.name)),
    }
}

/// Settings of extensions have a dot in their name.
fn setting(text: &str) -> String {
    text.split('.').map(name).collect::<Vec<_>>().join(".")
}

fn language(code: &DoStmt) -> String {
    let named = code.args.iter().find_map(|arg| match &arg.node {
        Some(NodeEnum::DefElem(option)) if option.defname == "language" => {
            option.arg.as_deref().and_then(super::names::text_of)
        }
        _ => None,
    });
    named.map_or_else(|| "plpgsql".to_owned(), name)
}
