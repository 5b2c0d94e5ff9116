//! What concerns the server, its databases, and code that it loads.

use pg_query::{
    NodeEnum,
    protobuf::{LockStmt, Node, ReindexObjectType, VacuumStmt},
};

use super::{
    Speech,
    names::{is_on, name, objects, role, table},
    quote::string,
    session::sets,
};
use crate::operation::{Effects, words::Warning};

/// The strongest lock of a table, which keeps readers out as well.
const ACCESS_EXCLUSIVE: i32 = 8;

pub(super) fn say(speech: &mut Speech<'_>, node: &NodeEnum) -> Option<String> {
    let text = match node {
        NodeEnum::VacuumStmt(vacuum) => vacuums(vacuum),
        NodeEnum::LockStmt(lock) => {
            speech.said.covered |= Effects::WRITE;
            for relation in &lock.relations {
                if let Some(NodeEnum::RangeVar(range)) = &relation.node {
                    speech.writes(Some(range));
                }
            }
            locks(lock)
        }
        NodeEnum::ReindexStmt(reindex) => match (reindex.kind(), &reindex.relation) {
            (_, Some(of)) => format!("builds indexes of {} anew", table(Some(of))),
            (ReindexObjectType::ReindexObjectSchema, None) => {
                format!(
                    "builds all indexes of the schema {} anew",
                    name(&reindex.name)
                )
            }
            _ => "builds all indexes of the database anew".to_owned(),
        },
        NodeEnum::ClusterStmt(cluster) => match &cluster.relation {
            Some(of) => format!(
                "rewrites {} in the order of an index; nobody can use it meanwhile",
                table(Some(of))
            ),
            None => "rewrites all clustered tables; nobody can use them meanwhile".to_owned(),
        },
        NodeEnum::CheckPointStmt(_) => "has the server write everything to disk now".to_owned(),
        NodeEnum::CreatedbStmt(create) => format!("makes the database {}", name(&create.dbname)),
        NodeEnum::DropdbStmt(drop) => {
            let force = if options(&drop.options).any(|option| option == "force") {
                ", and ends the sessions of whoever uses it"
            } else {
                ""
            };
            format!(
                "drops the DATABASE {} with everything in it{force}",
                name(&drop.dbname)
            )
        }
        NodeEnum::AlterDatabaseStmt(alter) => {
            format!("changes the database {}", name(&alter.dbname))
        }
        NodeEnum::AlterDatabaseSetStmt(alter) => {
            let whom = format!("for everybody in the database {}", name(&alter.dbname));
            sets(speech, alter.setstmt.as_ref()?, &whom)
        }
        NodeEnum::AlterSystemStmt(alter) => {
            sets(speech, alter.setstmt.as_ref()?, "for the whole server")
        }
        NodeEnum::LoadStmt(load) => {
            speech.said.covered |= Effects::EXECUTE;
            speech.warn(Warning::HiddenCode);
            format!(
                "loads the library {} into the server",
                string(&load.filename)
            )
        }
        NodeEnum::CreateExtensionStmt(create) => {
            speech.said.covered |= Effects::EXECUTE | Effects::TRANSFER;
            format!(
                "installs the extension {}, with the code that it brings",
                name(&create.extname)
            )
        }
        NodeEnum::AlterExtensionStmt(alter) => {
            speech.said.covered |= Effects::EXECUTE | Effects::TRANSFER;
            format!(
                "changes the version of the extension {}",
                name(&alter.extname)
            )
        }
        NodeEnum::CreateForeignServerStmt(create) => {
            speech.said.covered |= Effects::EXECUTE | Effects::TRANSFER;
            format!(
                "makes {} known as another server to fetch from",
                name(&create.servername)
            )
        }
        NodeEnum::CreateUserMappingStmt(create) => {
            speech.said.covered |= Effects::EXECUTE | Effects::TRANSFER;
            let (who, server) = (role(create.user.as_ref()), name(&create.servername));
            format!("sets as whom {who} logs in to the other server {server}")
        }
        NodeEnum::CreateSubscriptionStmt(create) => {
            speech.said.covered |= Effects::EXECUTE | Effects::TRANSFER;
            format!(
                "has the server fetch changes from another one (subscription {})",
                name(&create.subname)
            )
        }
        NodeEnum::CreatePublicationStmt(create) => {
            let what = if create.for_all_tables {
                "ALL tables"
            } else {
                "some tables"
            };
            format!(
                "offers the changes of {what} to other servers (publication {})",
                name(&create.pubname)
            )
        }
        NodeEnum::AlterEventTrigStmt(alter) => {
            let own = name(&alter.trigname);
            if alter.tgenabled == "D" {
                speech.warn(Warning::TriggersOff);
                format!("turns the event trigger {own} off")
            } else {
                format!("turns the event trigger {own} on")
            }
        }
        _ => return None,
    };
    speech.said.covered |= Effects::ADMIN | Effects::SCHEMA | Effects::READ;
    Some(text)
}

fn vacuums(vacuum: &VacuumStmt) -> String {
    let of = match vacuum.rels.as_slice() {
        [] => "all tables".to_owned(),
        some => objects(some),
    };
    let is_full = options(&vacuum.options).any(|option| option == "full");
    match (vacuum.is_vacuumcmd, is_full) {
        (true, true) => {
            format!("rewrites {of} without dead rows (VACUUM FULL); nobody can use it meanwhile")
        }
        (true, false) => format!("clears dead rows out of {of} (VACUUM)"),
        (false, _) => format!("gathers statistics of {of} for plans (ANALYZE)"),
    }
}

/// Options that are on.
fn options(options: &[Node]) -> impl Iterator<Item = &str> {
    options.iter().filter_map(|option| match &option.node {
        Some(NodeEnum::DefElem(option)) if is_on(option.arg.as_deref()) => {
            Some(option.defname.as_str())
        }
        _ => None,
    })
}

fn locks(lock: &LockStmt) -> String {
    let mode = match lock.mode {
        1 => "ACCESS SHARE",
        2 => "ROW SHARE",
        3 => "ROW EXCLUSIVE",
        4 => "SHARE UPDATE EXCLUSIVE",
        5 => "SHARE",
        6 => "SHARE ROW EXCLUSIVE",
        7 => "EXCLUSIVE",
        ACCESS_EXCLUSIVE => "ACCESS EXCLUSIVE",
        _ => "in some way",
    };
    let others = if lock.mode == ACCESS_EXCLUSIVE {
        ": nobody else can even read it until the transaction ends"
    } else {
        ""
    };
    format!("locks {} ({mode}){others}", objects(&lock.relations))
}
