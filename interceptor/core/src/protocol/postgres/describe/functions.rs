//! What PostgreSQL's built-in functions do beyond computing.
//!
//! A name that isn't here may be anybody's function: it is `execute`. Names are taken for the built-in
//! ones where they are not qualified, as PostgreSQL searches pg_catalog first; a function of the same
//! name with better fitting argument types in another schema of the search path would be preferred,
//! which takes CREATE FUNCTION (decided as such) to bring about.

use std::sync::LazyLock;

use rustc_hash::FxHashSet;

use crate::operation::{Effects, ResourceKind};

static HARMLESS: LazyLock<FxHashSet<&'static str>> = LazyLock::new(|| {
    include_str!("harmless.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .chain(VOLATILE)
        .collect()
});

/// Volatile only because they answer differently each time, or wait.
const VOLATILE: [&str; 63] = [
    "clock_timestamp",
    "currtid2",
    "currval",
    "gen_random_uuid",
    "lastval",
    "lo_get",
    "pg_blocking_pids",
    "pg_collation_actual_version",
    "pg_control_checkpoint",
    "pg_control_init",
    "pg_control_recovery",
    "pg_control_system",
    "pg_current_logfile",
    "pg_current_wal_flush_lsn",
    "pg_current_wal_insert_lsn",
    "pg_current_wal_lsn",
    "pg_database_collation_actual_version",
    "pg_database_size",
    "pg_get_multixact_members",
    "pg_get_wal_replay_pause_state",
    "pg_get_wal_resource_managers",
    "pg_indexes_size",
    "pg_is_in_recovery",
    "pg_is_wal_replay_paused",
    "pg_isolation_test_session_is_blocked",
    "pg_jit_available",
    "pg_last_committed_xact",
    "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn",
    "pg_last_xact_replay_timestamp",
    "pg_lock_status",
    "pg_notification_queue_usage",
    "pg_partition_ancestors",
    "pg_partition_tree",
    "pg_prepared_xact",
    "pg_relation_size",
    "pg_safe_snapshot_blocking_pids",
    "pg_sequence_last_value",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_stat_get_xact_blocks_fetched",
    "pg_stat_get_xact_blocks_hit",
    "pg_stat_get_xact_function_calls",
    "pg_stat_get_xact_numscans",
    "pg_stat_get_xact_tuples_deleted",
    "pg_stat_get_xact_tuples_fetched",
    "pg_stat_get_xact_tuples_hot_updated",
    "pg_stat_get_xact_tuples_inserted",
    "pg_stat_get_xact_tuples_returned",
    "pg_stat_get_xact_tuples_updated",
    "pg_stat_have_stats",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    "pg_xact_commit_timestamp",
    "pg_xact_commit_timestamp_origin",
    "pg_xact_status",
    "random",
    "setseed",
    "timeofday",
    "txid_status",
    "uuidv7",
];

/// PostgreSQL's built-in operators, and what the parser calls BETWEEN. Unqualified names are taken for
/// these as function names are.
const OPERATORS: &str = "\
    !! !~ !~* !~~ !~~* # ## #- #> #>> % & && &< &<| &> * *< *<= *<> *= *> *>= + - -> ->> -|- / < <-> << <<= \
    <<| <= <> <@ <^ = > >= >> >>= >^ ? ?# ?& ?- ?-| ?| ?|| @ @-@ @> @? @@ @@@ ^ ^@ | |&> |/ |>> || ||/ ~ ~* \
    ~<=~ ~<~ ~= ~>=~ ~>~ ~~ ~~*";

/// Whether `name` is an operator that PostgreSQL brings along.
pub(super) fn is_operator(name: &str) -> bool {
    name.ends_with("BETWEEN")
        || name.ends_with("BETWEEN SYMMETRIC")
        || OPERATORS.split(' ').any(|known| known == name)
}

/// What calling a function does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) effects: Effects,
    /// What its first argument names, where that is a literal.
    pub(super) names: Option<ResourceKind>,
    /// Its arguments decide what it does.
    pub(super) inspected: bool,
}

const fn call(effects: Effects) -> Call {
    Call {
        effects,
        names: None,
        inspected: false,
    }
}

const fn naming(effects: Effects, kind: ResourceKind) -> Call {
    Call {
        effects,
        names: Some(kind),
        inspected: true,
    }
}

/// What the function `schema.name` does, and whether that is known.
pub(super) fn effects(schema: Option<&str>, name: &str) -> Call {
    if schema.is_some_and(|schema| schema != "pg_catalog") {
        return call(Effects::EXECUTE);
    }
    if HARMLESS.contains(name) {
        return call(Effects::empty());
    }
    let read = Effects::READ;
    match name {
        "set_config" => naming(Effects::ADMIN, ResourceKind::Setting),
        "nextval" | "setval" => naming(Effects::WRITE, ResourceKind::Table),
        "pg_notify" => naming(Effects::WRITE, ResourceKind::Channel),
        "pg_read_file" | "pg_read_binary_file" | "pg_read_file_old" | "pg_stat_file" => {
            naming(read | Effects::EXPORT | Effects::ADMIN, ResourceKind::File)
        }
        _ if name.starts_with("pg_ls_") => {
            naming(read | Effects::EXPORT | Effects::ADMIN, ResourceKind::File)
        }
        "lo_import" => naming(
            Effects::WRITE | Effects::TRANSFER | Effects::ADMIN,
            ResourceKind::File,
        ),
        "lo_export" => call(read | Effects::EXPORT | Effects::TRANSFER | Effects::ADMIN),
        "lo_creat" | "lo_create" | "lo_from_bytea" | "lo_put" | "lo_truncate" | "lo_truncate64"
        | "lo_unlink" | "lowrite" | "lo_open" | "lo_close" | "lo_lseek" | "lo_lseek64"
        | "lo_tell" | "lo_tell64" | "loread" => call(Effects::WRITE),
        // They run, or read, what their arguments say.
        "query_to_xml"
        | "query_to_xmlschema"
        | "query_to_xml_and_xmlschema"
        | "ts_stat"
        | "ts_rewrite" => call(read | Effects::EXECUTE | Effects::UNCLASSIFIED),
        "cursor_to_xml" | "cursor_to_xmlschema" => call(read | Effects::UNCLASSIFIED),
        _ if name.contains("_to_xml") => call(read | Effects::EXPORT | Effects::UNCLASSIFIED),
        _ if name.contains("advisory") => call(Effects::WRITE),
        "dblink_connect" | "dblink_connect_u" | "dblink" | "dblink_exec" | "dblink_send_query"
        | "dblink_open" => call(Effects::EXECUTE | Effects::TRANSFER),
        _ if name.starts_with("pg_")
            || name.starts_with("brin_")
            || name.starts_with("gin_")
            || name.starts_with("binary_upgrade_") =>
        {
            call(Effects::ADMIN | Effects::EXECUTE)
        }
        _ => call(Effects::EXECUTE),
    }
}
