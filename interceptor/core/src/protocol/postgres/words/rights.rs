//! Who may do what.

use pg_query::{
    NodeEnum,
    protobuf::{DefElem, GrantRoleStmt, GrantStmt, GrantTargetType, Node, RoleSpec, Token},
};

use super::{
    Speech,
    definitions::{cascade, kind},
    names::{is_on, is_public, name, object, objects, role, some, table, value},
    rows::condition_words,
    session::sets,
    truth::{Truth, truth},
};
use crate::operation::{
    Effects,
    words::{Warning, and},
};

/// Roles of PostgreSQL's own that come near to a superuser: files, programs, all data.
const POWERFUL: [&str; 9] = [
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
    "pg_read_all_data",
    "pg_write_all_data",
    "pg_maintain",
    "pg_signal_backend",
    "pg_create_subscription",
    "pg_monitor",
];

pub(super) fn say(speech: &mut Speech<'_>, node: &NodeEnum) -> Option<String> {
    let text = match node {
        NodeEnum::GrantStmt(grant) => grants(speech, grant),
        NodeEnum::GrantRoleStmt(grant) => grants_roles(speech, grant),
        NodeEnum::AlterDefaultPrivilegesStmt(alter) => {
            let action = alter.action.as_ref()?;
            format!("for what is made from now on: {}", grants(speech, action))
        }
        NodeEnum::CreateRoleStmt(create) => {
            let made = name(&create.role);
            let options = role_options(speech, "it", &create.options);
            match options.as_slice() {
                [] => format!("makes the role {made}"),
                options => format!("makes the role {made}: {}", and(options)),
            }
        }
        NodeEnum::AlterRoleStmt(alter) => {
            let of = role(alter.role.as_ref());
            match role_options(speech, &of, &alter.options).as_slice() {
                [] => format!("changes the role {of}"),
                options => and(options),
            }
        }
        NodeEnum::AlterRoleSetStmt(alter) => {
            let of = alter
                .role
                .as_ref()
                .map_or_else(|| "everybody".to_owned(), |of: &RoleSpec| role(Some(of)));
            let whom = format!("for {of}, from their next session on");
            sets(speech, alter.setstmt.as_ref()?, &whom)
        }
        NodeEnum::DropRoleStmt(drop) => {
            let what = if drop.roles.len() > 1 {
                "roles"
            } else {
                "role"
            };
            format!("drops the {what} {}", objects(&drop.roles))
        }
        NodeEnum::ReassignOwnedStmt(reassign) => format!(
            "gives all that {} owns to {}",
            objects(&reassign.roles),
            role(reassign.newrole.as_ref())
        ),
        NodeEnum::DropOwnedStmt(drop) => {
            let depends = if cascade(speech, drop.behavior()) {
                ", and everything that depends on it (CASCADE)"
            } else {
                ""
            };
            format!(
                "drops EVERYTHING that {} owns in this database{depends}",
                objects(&drop.roles)
            )
        }
        NodeEnum::CreatePolicyStmt(policy) => {
            let to = objects(&policy.roles);
            let (on, own) = (table(policy.table.as_ref()), name(&policy.policy_name));
            let using = policy.qual.as_deref();
            let lets = if policy.permissive {
                "lets"
            } else {
                "alone lets"
            };
            if policy.permissive && using.is_some_and(|using| truth(using) == Truth::Always) {
                speech.warn(Warning::AlwaysTrue);
            }
            let which = using.map_or_else(String::new, |using| {
                format!(" {}", condition_words(speech, Token::Using, using))
            });
            format!("makes the row security policy {own} on {on}, which {lets} {to} at rows{which}")
        }
        NodeEnum::AlterPolicyStmt(policy) => format!(
            "changes the row security policy {} of {}",
            name(&policy.policy_name),
            table(policy.table.as_ref())
        ),
        _ => return None,
    };
    speech.said.covered |= Effects::ADMIN | Effects::SCHEMA | Effects::READ;
    Some(text)
}

fn grants(speech: &mut Speech<'_>, grant: &GrantStmt) -> String {
    let rights: Vec<String> = grant
        .privileges
        .iter()
        .filter_map(|right| match &right.node {
            Some(NodeEnum::AccessPriv(right)) => Some(right),
            _ => None,
        })
        .map(|right| {
            let verb = match right.priv_name.as_str() {
                "" => "do everything".to_owned(),
                verb => super::quote::bounded(&verb.to_ascii_uppercase()),
            };
            match right.cols.as_slice() {
                [] => verb,
                columns => format!("{verb} ({})", objects(columns)),
            }
        })
        .collect();
    let rights = match rights.as_slice() {
        [] => "every right".to_owned(),
        rights => format!("the right to {}", and(rights)),
    };
    let things = format!("{}s", kind(grant.objtype));
    let on = match grant.targtype() {
        GrantTargetType::AclTargetAllInSchema => {
            format!("all {things} of the schema {}", objects(&grant.objects))
        }
        GrantTargetType::AclTargetDefaults => things,
        _ => objects(&grant.objects),
    };
    let who = objects(&grant.grantees);
    if grant.is_grant {
        if grant.grantees.iter().any(is_public) {
            speech.warn(Warning::Everybody);
        }
        let on_to_others = if grant.grant_option {
            ", and to give it on"
        } else {
            ""
        };
        format!("gives {who} {rights} on {on}{on_to_others}")
    } else {
        let only = if grant.grant_option {
            " to give on"
        } else {
            ""
        };
        let others = if cascade(speech, grant.behavior()) {
            ", and from those who have it from them (CASCADE)"
        } else {
            ""
        };
        format!("takes from {who} {rights}{only} on {on}{others}")
    }
}

fn grants_roles(speech: &mut Speech<'_>, grant: &GrantRoleStmt) -> String {
    let roles: Vec<String> = grant.granted_roles.iter().map(object).collect();
    let (who, of) = (objects(&grant.grantee_roles), some(&roles));
    if !grant.is_grant {
        cascade(speech, grant.behavior());
        return format!("takes membership in {of} from {who}");
    }
    if grant.grantee_roles.iter().any(is_public) {
        speech.warn(Warning::Everybody);
    }
    if roles.iter().any(|role| POWERFUL.contains(&role.as_str())) {
        speech.warn(Warning::Superuser);
    }
    let admin = grant.opt.iter().any(|option| match &option.node {
        Some(NodeEnum::DefElem(option)) => {
            option.defname == "admin" && is_on(option.arg.as_deref())
        }
        _ => false,
    });
    let admin = if admin {
        ", and lets them take others in"
    } else {
        ""
    };
    format!("makes {who} a member of {of}{admin}")
}

/// What the options of a role make of `of`.
fn role_options(speech: &mut Speech<'_>, of: &str, options: &[Node]) -> Vec<String> {
    let options = options.iter().filter_map(|option| match &option.node {
        Some(NodeEnum::DefElem(option)) => Some(&**option),
        _ => None,
    });
    options
        .map(|option| role_option(speech, of, option))
        .collect()
}

fn role_option(speech: &mut Speech<'_>, of: &str, option: &DefElem) -> String {
    let is_on = is_on(option.arg.as_deref());
    let arg = || option.arg.as_deref().and_then(value).unwrap_or_default();
    let list = || match option.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
        Some(NodeEnum::List(list)) => objects(&list.items),
        _ => "?".to_owned(),
    };
    let gives = match option.defname.as_str() {
        "superuser" => ("makes", "a superuser", "takes from", "being a superuser"),
        "createdb" => ("lets", "make databases", "forbids", "to make databases"),
        "createrole" => ("lets", "make and change roles", "forbids", "to make roles"),
        "canlogin" => ("lets", "log in", "forbids", "to log in"),
        "isreplication" => (
            "lets",
            "copy all data by replication",
            "forbids",
            "replication",
        ),
        "bypassrls" => ("lets", "pass by row security", "holds", "to row security"),
        "inherit" => (
            "gives",
            "the rights of its groups",
            "has",
            "ask for its groups' rights",
        ),
        "password" => {
            return match option.arg {
                Some(_) => format!("sets the password of {of}"),
                None => format!("takes the password of {of} away"),
            };
        }
        "connectionlimit" => return format!("lets {of} have {} connections", arg()),
        "validUntil" => return format!("has the password of {of} end at {}", arg()),
        "addroleto" => {
            return format!("makes {of} a member of {}", list());
        }
        "rolemembers" => return format!("makes {} members of {of}", list()),
        "adminmembers" => {
            return format!("makes {} members of {of} who may take others in", list());
        }
        other => return format!("sets {} of {of}", name(other)),
    };
    if is_on {
        match option.defname.as_str() {
            "superuser" | "createrole" | "isreplication" => speech.warn(Warning::Superuser),
            "bypassrls" => speech.warn(Warning::RowSecurityOff),
            _ => {}
        }
        format!("{} {of} {}", gives.0, gives.1)
    } else {
        format!("{} {of} {}", gives.2, gives.3)
    }
}
