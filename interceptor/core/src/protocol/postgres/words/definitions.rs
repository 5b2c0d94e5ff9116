//! What defines, changes and drops tables and everything else.

use pg_query::{
    NodeEnum,
    protobuf::{
        AlterTableCmd, AlterTableStmt, AlterTableType, ColumnDef, ConstrType, Constraint,
        CreateStmt, CreateTrigStmt, DefElem, DropBehavior, DropStmt, IndexStmt, Node, ObjectType,
        RenameStmt,
    },
};

use super::{
    Speech,
    names::{dotted, is_on, name, object, objects, role, some, table, text_of, type_name},
};
use crate::{
    operation::{
        Effects,
        words::{Warning, and},
    },
    protocol::postgres::describe::object_name,
};

/// Changes of one ALTER TABLE that are told one by one.
const CHANGES_MAX: usize = 12;

pub(super) fn say(speech: &mut Speech<'_>, node: &NodeEnum) -> Option<String> {
    let covers = Effects::SCHEMA | Effects::READ;
    let (text, covers) = match node {
        NodeEnum::CreateStmt(create) => (creates(create), covers),
        NodeEnum::CreateForeignTableStmt(create) => {
            let made = create
                .base_stmt
                .as_ref()
                .map(|base| table(base.relation.as_ref()));
            let text = format!(
                "makes the table {}, whose rows are on another server ({})",
                made.unwrap_or_default(),
                name(&create.servername)
            );
            (text, covers | Effects::TRANSFER)
        }
        NodeEnum::CreateTableAsStmt(create) => {
            let into = create.into.as_deref();
            let made = table(into.and_then(|into| into.rel.as_ref()));
            let what = match create.objtype() {
                ObjectType::ObjectMatview => "materialized view",
                _ => "table",
            };
            let query = speech.inner(create.query.as_deref());
            speech.said.calls = true;
            let text = format!("makes the {what} {made} of what this gives: {query}");
            (text, Effects::all())
        }
        NodeEnum::ViewStmt(view) => {
            let makes = makes(view.replace);
            let query = speech.inner(view.query.as_deref());
            speech.said.calls = true;
            let text = format!(
                "{makes} the view {}, which {query}",
                table(view.view.as_ref())
            );
            (text, covers | Effects::EXECUTE)
        }
        NodeEnum::IndexStmt(index) => (indexes(index), covers),
        NodeEnum::CreateSeqStmt(sequence) => (
            format!("makes the sequence {}", table(sequence.sequence.as_ref())),
            covers,
        ),
        NodeEnum::AlterSeqStmt(sequence) => (
            format!("changes the sequence {}", table(sequence.sequence.as_ref())),
            covers,
        ),
        NodeEnum::AlterTableStmt(alter) => (alters(speech, alter), covers | Effects::ADMIN),
        NodeEnum::RenameStmt(rename) => (renames(rename), covers | Effects::ADMIN),
        NodeEnum::AlterObjectSchemaStmt(moves) => {
            let moved = match (&moves.relation, &moves.object) {
                (Some(range), _) => table(Some(range)),
                (None, Some(node)) => object(node),
                (None, None) => return None,
            };
            let kind = kind(moves.object_type);
            (
                format!(
                    "moves the {kind} {moved} to the schema {}",
                    name(&moves.newschema)
                ),
                covers,
            )
        }
        NodeEnum::AlterOwnerStmt(alter) => {
            let owned = match (&alter.relation, &alter.object) {
                (Some(range), _) => table(Some(range)),
                (None, Some(node)) => object(node),
                (None, None) => return None,
            };
            let (kind, owner) = (kind(alter.object_type), role(alter.newowner.as_ref()));
            (
                format!("makes {owner} the owner of the {kind} {owned}"),
                covers | Effects::ADMIN,
            )
        }
        NodeEnum::DropStmt(drop) => (drops(speech, drop), covers | Effects::ADMIN),
        NodeEnum::CommentStmt(comment) => {
            let of = comment.object.as_deref().map(object).unwrap_or_default();
            let does = if comment.comment.is_empty() {
                "removes"
            } else {
                "sets"
            };
            (
                format!("{does} the comment on the {} {of}", kind(comment.objtype)),
                covers,
            )
        }
        NodeEnum::CreateSchemaStmt(schema) => {
            let made = match (schema.schemaname.as_str(), &schema.authrole) {
                ("", owner) => format!("of {}", role(owner.as_ref())),
                (text, _) => name(text),
            };
            let with = match schema.schema_elts.len() {
                0 => String::new(),
                _ => {
                    let parts: Vec<String> = schema
                        .schema_elts
                        .iter()
                        .map(|node| speech.inner(Some(node)))
                        .collect();
                    format!(", and in it {}", some(&parts))
                }
            };
            (
                format!("makes the schema {made}{with}"),
                covers | Effects::all(),
            )
        }
        NodeEnum::CreateEnumStmt(of) => {
            (format!("makes the type {}", dotted(&of.type_name)), covers)
        }
        NodeEnum::AlterEnumStmt(of) => (
            format!("changes the values of the type {}", dotted(&of.type_name)),
            covers,
        ),
        NodeEnum::CreateDomainStmt(of) => (
            format!("makes the domain {}", dotted(&of.domainname)),
            covers,
        ),
        NodeEnum::CompositeTypeStmt(of) => (
            format!("makes the type {}", table(of.typevar.as_ref())),
            covers,
        ),
        NodeEnum::CreateFunctionStmt(function) => {
            let what = if function.is_procedure {
                "procedure"
            } else {
                "function"
            };
            let (language, owners) = function_options(&function.options);
            speech.said.calls = true;
            let owners = if owners {
                speech.warn(Warning::OwnersRights);
                ", which runs with its owner's rights (SECURITY DEFINER)"
            } else {
                ""
            };
            let language = match language.as_str() {
                "" => String::new(),
                language => format!(" ({language})"),
            };
            let text = format!(
                "{} the {what} {}{language}{owners}; what it does when it is called isn't said here",
                makes(function.replace),
                dotted(&function.funcname),
            );
            (text, covers | Effects::EXECUTE)
        }
        NodeEnum::AlterFunctionStmt(function) => {
            let of = function
                .func
                .as_ref()
                .map(|func| dotted(&func.objname))
                .unwrap_or_default();
            speech.said.calls = true;
            let owners = if function_options(&function.actions).1 {
                speech.warn(Warning::OwnersRights);
                ": it runs with its owner's rights (SECURITY DEFINER)"
            } else {
                ""
            };
            (
                format!("changes the function {of}{owners}"),
                covers | Effects::EXECUTE,
            )
        }
        NodeEnum::CreateTrigStmt(trigger) => {
            speech.said.calls = true;
            (triggers(trigger), covers | Effects::EXECUTE)
        }
        NodeEnum::RuleStmt(rule) => {
            speech.said.calls = true;
            let instead = if rule.instead {
                "instead of it"
            } else {
                "besides"
            };
            let on = match rule.event {
                2 => "SELECT",
                3 => "UPDATE",
                4 => "INSERT",
                5 => "DELETE",
                _ => "something",
            };
            let does = match rule.actions.len() {
                0 => "nothing".to_owned(),
                _ => {
                    let parts: Vec<String> = rule
                        .actions
                        .iter()
                        .map(|node| speech.inner(Some(node)))
                        .collect();
                    format!("this: {}", some(&parts))
                }
            };
            let text = format!(
                "{} the rule {} on {}: on {on} the server does, {instead}, {does}",
                makes(rule.replace),
                name(&rule.rulename),
                table(rule.relation.as_ref())
            );
            (text, Effects::all())
        }
        NodeEnum::CreateEventTrigStmt(trigger) => {
            speech.said.calls = true;
            let text = format!(
                "has the function {} run on {} in the whole database (event trigger {})",
                dotted(&trigger.funcname),
                name(&trigger.eventname),
                name(&trigger.trigname)
            );
            (text, covers | Effects::EXECUTE | Effects::ADMIN)
        }
        NodeEnum::RefreshMatViewStmt(view) => {
            let fills = if view.skip_data { "empties" } else { "fills" };
            let of = table(view.relation.as_ref());
            (
                format!("{fills} the materialized view {of} anew"),
                covers | Effects::WRITE,
            )
        }
        _ => return None,
    };
    speech.said.covered |= covers;
    Some(text)
}

const fn makes(or_replaces: bool) -> &'static str {
    if or_replaces {
        "makes or replaces"
    } else {
        "makes"
    }
}

/// What kind of thing it is, in small letters.
pub(super) fn kind(of: i32) -> String {
    object_name(of.into()).to_ascii_lowercase()
}

/// Whether what depends on it goes as well, which is warned of.
pub(super) fn cascade(speech: &mut Speech<'_>, behavior: DropBehavior) -> bool {
    let does = behavior == DropBehavior::DropCascade;
    if does {
        speech.warn(Warning::Cascade);
    }
    does
}

fn with_dependents(speech: &mut Speech<'_>, behavior: DropBehavior) -> &'static str {
    if cascade(speech, behavior) {
        " and everything that depends on it (CASCADE)"
    } else {
        ""
    }
}

fn creates(create: &CreateStmt) -> String {
    let made = table(create.relation.as_ref());
    let is_temporary = create
        .relation
        .as_ref()
        .is_some_and(|relation| relation.relpersistence == "t");
    let temporary = if is_temporary { "temporary " } else { "" };
    let columns = create
        .table_elts
        .iter()
        .filter(|part| matches!(part.node, Some(NodeEnum::ColumnDef(_))))
        .count();
    let columns = match columns {
        0 => String::new(),
        1 => " of 1 column".to_owned(),
        columns => format!(" of {columns} columns"),
    };
    let exists = if create.if_not_exists {
        ", unless there is one"
    } else {
        ""
    };
    let parent = match (create.partbound.is_some(), create.inh_relations.as_slice()) {
        (_, []) => String::new(),
        (true, parents) => format!(", a partition of {}", objects(parents)),
        (false, parents) => format!(", which is part of {}", objects(parents)),
    };
    format!("makes the {temporary}table {made}{columns}{parent}{exists}")
}

fn indexes(index: &IndexStmt) -> String {
    let on = table(index.relation.as_ref());
    let columns: Vec<String> = index
        .index_params
        .iter()
        .map(|part| match &part.node {
            Some(NodeEnum::IndexElem(element)) if !element.name.is_empty() => name(&element.name),
            _ => "an expression".to_owned(),
        })
        .collect();
    let unique = if index.unique { "a unique" } else { "an" };
    let meanwhile = if index.concurrent {
        ", while others go on writing"
    } else {
        "; nobody can write to it meanwhile"
    };
    format!(
        "makes {unique} index on {} of {on}{meanwhile}",
        some(&columns)
    )
}

fn drops(speech: &mut Speech<'_>, drop: &DropStmt) -> String {
    let of = drop.remove_type();
    speech.said.calls = true;
    let kind = kind(drop.remove_type);
    let parts = |node: &Node| match &node.node {
        Some(NodeEnum::List(list)) => list.items.clone(),
        _ => Vec::new(),
    };
    let names: Vec<String> = match of {
        // The last part is its own name, the others are its table.
        ObjectType::ObjectTrigger | ObjectType::ObjectRule | ObjectType::ObjectPolicy => drop
            .objects
            .iter()
            .map(|node| match parts(node).split_last() {
                Some((own, table)) => format!("{} of {}", object(own), dotted(table)),
                None => object(node),
            })
            .collect(),
        ObjectType::ObjectCast
        | ObjectType::ObjectTransform
        | ObjectType::ObjectOpclass
        | ObjectType::ObjectOpfamily => drop
            .objects
            .iter()
            .map(|node| and(&parts(node).iter().map(object).collect::<Vec<_>>()))
            .collect(),
        _ => drop.objects.iter().map(object).collect(),
    };
    let many = names.len() > 1;
    let kind = match (many, kind.as_str()) {
        (true, "index") => "indexes".to_owned(),
        (true, kind) if kind.ends_with('y') => format!("{}ies", kind.trim_end_matches('y')),
        (true, kind) => format!("{kind}s"),
        (false, kind) => kind.to_owned(),
    };
    let rows = match (of, many) {
        (ObjectType::ObjectTable, false) => " with all its rows",
        (ObjectType::ObjectTable, true) => " with all their rows",
        _ => "",
    };
    let depends = match (cascade(speech, drop.behavior()), many) {
        (false, _) => "",
        (true, false) => " and everything that depends on it (CASCADE)",
        (true, true) => " and everything that depends on them (CASCADE)",
    };
    let exists = if drop.missing_ok { ", if there" } else { "" };
    format!("drops the {kind} {}{rows}{depends}{exists}", some(&names))
}

fn renames(rename: &RenameStmt) -> String {
    let new = name(&rename.newname);
    let of = rename.relation.as_ref().map(|range| table(Some(range)));
    match (rename.rename_type(), of) {
        (ObjectType::ObjectColumn, Some(of)) => {
            format!(
                "renames the column {} of {of} to {new}",
                name(&rename.subname)
            )
        }
        (_, Some(of)) if !rename.subname.is_empty() => {
            format!(
                "renames the {} {} of {of} to {new}",
                kind(rename.rename_type),
                name(&rename.subname)
            )
        }
        (_, Some(of)) => format!("renames the {} {of} to {new}", kind(rename.rename_type)),
        (_, None) => {
            let old = match rename.object.as_deref() {
                Some(node) => object(node),
                None => name(&rename.subname),
            };
            format!("renames the {} {old} to {new}", kind(rename.rename_type))
        }
    }
}

fn triggers(trigger: &CreateTrigStmt) -> String {
    let when = match trigger.timing {
        2 => "before",
        64 => "instead of",
        _ => "after",
    };
    let events = [
        (4, "INSERT"),
        (8, "DELETE"),
        (16, "UPDATE"),
        (32, "TRUNCATE"),
    ];
    let events = events.iter().filter(|(bit, _)| trigger.events & bit != 0);
    let events: Vec<&str> = events.map(|(_, event)| *event).collect();
    let each = if trigger.row {
        "each row of an"
    } else {
        "each"
    };
    format!(
        "{} the trigger {}: the function {} runs {when} {each} {} on {}",
        makes(trigger.replace),
        name(&trigger.trigname),
        dotted(&trigger.funcname),
        events.join(" or "),
        table(trigger.relation.as_ref())
    )
}

/// The language, and whether it runs with its owner's rights.
fn function_options(options: &[Node]) -> (String, bool) {
    let options = || {
        options.iter().filter_map(|option| match &option.node {
            Some(NodeEnum::DefElem(option)) => Some(option),
            _ => None,
        })
    };
    let arg = |option: &DefElem| option.arg.as_deref().and_then(text_of).map(name);
    let language = options().find(|option| option.defname == "language");
    let owners = options()
        .filter(|option| option.defname == "security")
        .any(|option| is_on(option.arg.as_deref()));
    (
        language.and_then(|option| arg(option)).unwrap_or_default(),
        owners,
    )
}

fn alters(speech: &mut Speech<'_>, alter: &AlterTableStmt) -> String {
    let of = table(alter.relation.as_ref());
    let commands: Vec<&AlterTableCmd> = alter
        .cmds
        .iter()
        .filter_map(|command| match &command.node {
            Some(NodeEnum::AlterTableCmd(command)) => Some(&**command),
            _ => None,
        })
        .collect();
    // All of them, for their warnings.
    let mut changes: Vec<String> = commands
        .iter()
        .map(|command| change(speech, command))
        .collect();
    let more = changes.len().saturating_sub(CHANGES_MAX);
    changes.truncate(CHANGES_MAX);
    if more > 0 {
        speech.warn(Warning::NotAllSaid);
        changes.push(format!("makes {more} more changes"));
    }
    let kind = match alter.objtype() {
        ObjectType::ObjectTable => String::new(),
        _ => format!("{} ", kind(alter.objtype)),
    };
    format!("alters {kind}{of}: {}", and(&changes))
}

fn change(speech: &mut Speech<'_>, command: &AlterTableCmd) -> String {
    use AlterTableType as Type;
    let own = name(&command.name);
    let def = command.def.as_deref().and_then(|def| def.node.as_ref());
    let depends = with_dependents(speech, command.behavior());
    let text = match command.subtype() {
        Type::AtAddColumn => match def {
            Some(NodeEnum::ColumnDef(column)) => {
                format!("adds the column {}", column_words(column))
            }
            _ => "adds a column".to_owned(),
        },
        Type::AtDropColumn => format!("drops the column {own} with all that is in it"),
        Type::AtAlterColumnType => {
            let to = match def {
                Some(NodeEnum::ColumnDef(column)) => column.type_name.as_ref().map(type_name),
                _ => None,
            };
            let to = to.unwrap_or_else(|| "another".to_owned());
            format!(
                "changes the type of the column {own} to {to} (which may rewrite the whole table)"
            )
        }
        Type::AtColumnDefault if command.def.is_none() => {
            format!("drops the default of the column {own}")
        }
        Type::AtColumnDefault => format!("sets the default of the column {own}"),
        Type::AtSetNotNull => format!("forbids NULL in the column {own}"),
        Type::AtDropNotNull => format!("allows NULL in the column {own}"),
        Type::AtAddConstraint => match def {
            Some(NodeEnum::Constraint(constraint)) => constraint_words(constraint),
            _ => "adds a constraint".to_owned(),
        },
        Type::AtDropConstraint => format!("drops the constraint {own}"),
        Type::AtValidateConstraint => format!("checks all rows against the constraint {own}"),
        Type::AtChangeOwner => format!("makes {} its owner", role(command.newowner.as_ref())),
        Type::AtDisableTrig => {
            speech.warn(Warning::TriggersOff);
            format!("turns the trigger {own} off")
        }
        Type::AtDisableTrigAll => {
            speech.warn(Warning::TriggersOff);
            "turns ALL its triggers off, foreign keys as well".to_owned()
        }
        Type::AtDisableTrigUser => {
            speech.warn(Warning::TriggersOff);
            "turns its triggers off".to_owned()
        }
        Type::AtEnableTrig => format!("turns the trigger {own} on"),
        Type::AtEnableAlwaysTrig => format!("turns the trigger {own} on, for replicas as well"),
        Type::AtEnableReplicaTrig => {
            speech.warn(Warning::TriggersOff);
            format!("turns the trigger {own} on for replicas, and off for everybody else")
        }
        Type::AtEnableTrigAll | Type::AtEnableTrigUser => "turns its triggers on".to_owned(),
        Type::AtDisableRule => {
            speech.warn(Warning::TriggersOff);
            format!("turns the rule {own} off")
        }
        Type::AtEnableRule | Type::AtEnableAlwaysRule => format!("turns the rule {own} on"),
        Type::AtEnableRowSecurity => "turns row security on".to_owned(),
        Type::AtForceRowSecurity => "has row security hold for its owner too".to_owned(),
        Type::AtDisableRowSecurity => {
            speech.warn(Warning::RowSecurityOff);
            "turns row security OFF".to_owned()
        }
        Type::AtNoForceRowSecurity => {
            speech.warn(Warning::RowSecurityOff);
            "lets its owner pass by row security".to_owned()
        }
        Type::AtSetLogged => "rewrites it, to be safe from crashes".to_owned(),
        Type::AtSetUnLogged => "rewrites it, to be empty after a crash (UNLOGGED)".to_owned(),
        Type::AtSetTableSpace => format!("moves it to the tablespace {own}"),
        Type::AtAttachPartition | Type::AtDetachPartition => {
            let part = match def {
                Some(NodeEnum::PartitionCmd(part)) => table(part.name.as_ref()),
                _ => "?".to_owned(),
            };
            match command.subtype() {
                Type::AtAttachPartition => format!("takes {part} in as a partition"),
                _ => format!("detaches the partition {part}, whose rows are no longer in it"),
            }
        }
        other => {
            // `AT_SetStorage` as `set storage`.
            let mut words = String::new();
            for character in other.as_str_name().trim_start_matches("AT_").chars() {
                if character.is_ascii_uppercase() && !words.is_empty() {
                    words.push(' ');
                }
                words.push(character.to_ascii_lowercase());
            }
            match command.name.as_str() {
                "" => format!("makes another change ({words})"),
                _ => format!("makes another change ({words}) to {own}"),
            }
        }
    };
    format!("{text}{depends}")
}

fn column_words(column: &ColumnDef) -> String {
    let of = column.type_name.as_ref().map(type_name).unwrap_or_default();
    let has_default = column.constraints.iter().any(|part| match &part.node {
        Some(NodeEnum::Constraint(constraint)) => constraint.contype() == ConstrType::ConstrDefault,
        _ => false,
    });
    let default = if has_default { ", with a default" } else { "" };
    format!("{} ({of}{default})", name(&column.colname))
}

fn constraint_words(constraint: &Constraint) -> String {
    let columns = |nodes: &[Node]| objects(nodes);
    match constraint.contype() {
        ConstrType::ConstrPrimary => format!("makes {} its primary key", columns(&constraint.keys)),
        ConstrType::ConstrUnique => format!("demands that {} is unique", columns(&constraint.keys)),
        ConstrType::ConstrForeign => format!(
            "has {} refer to {}",
            columns(&constraint.fk_attrs),
            table(constraint.pktable.as_ref())
        ),
        ConstrType::ConstrCheck => "adds a check to its rows".to_owned(),
        _ => "adds a constraint".to_owned(),
    }
}
