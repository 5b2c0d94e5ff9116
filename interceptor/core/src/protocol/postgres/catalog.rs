//! What the server's tables and views are, as far as masks need to know.
//!
//! PostgreSQL says of each result column which table or view it comes from, by OID. What it doesn't
//! say is what a view's column is made of. Both are asked of the server itself, on the agent's own
//! connection; a view's definition is read with PostgreSQL's parser, by name and on the safe side:
//! a column of a view stands for every column that its expression mentions, in any table that the
//! view reads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;

use crate::mask::MaskPlan;

/// First OID of relations that aren't the server's own.
pub const FIRST_USER_OID: u32 = 16_384;

/// Views upon views that are followed; PostgreSQL's users stay far below.
const VIEW_DEPTH_MAX: usize = 32;

/// A column of a table, by names.
pub type Source = (Box<str>, Box<str>, Box<str>);

/// Tables, views and where their columns come from.
#[derive(Debug, Default)]
pub struct Catalog {
    relations: HashMap<u32, Relation>,
    by_type: HashMap<u32, u32>,
    by_name: HashMap<Box<str>, Vec<u32>>,
}

#[derive(Debug, Default)]
struct Relation {
    schema: Box<str>,
    name: Box<str>,
    columns: BTreeMap<i16, Box<str>>,
    parents: Vec<u32>,
    view: Option<View>,
}

/// What a view's columns are made of.
#[derive(Debug, Default)]
struct View {
    /// The tables and views that it reads, by schema and name.
    reads: Vec<(Box<str>, Box<str>)>,
    /// Names of the columns that each output column mentions; `None` is all there are.
    columns: Vec<Option<BTreeSet<Box<str>>>>,
    /// Its definition can't be read, so its columns may be anything.
    unreadable: bool,
}

/// Where a result column comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// These columns, of tables or views.
    Known(Vec<Source>),
    /// A relation that the catalogue doesn't hold.
    Unknown,
}

/// Collects the rows that [`Catalog::query`] returns.
#[derive(Debug, Default)]
pub struct CatalogBuilder {
    catalog: Catalog,
}

impl Catalog {
    /// The statement to ask the server, where `plan` needs one.
    ///
    /// It reads pg_catalog only, and names every operator's schema: a search path that the agent
    /// chose can't put another one in its place.
    #[must_use]
    pub fn query(plan: &MaskPlan) -> Option<String> {
        if plan.columns.is_empty() {
            return None;
        }
        let mut tables = Vec::new();
        for mask in &plan.columns {
            match mask.tables() {
                [] => tables.push("true".to_owned()),
                some => tables.extend(some.iter().map(|(schema, name)| {
                    format!(
                        "(n.nspname {{~}} {} AND c.relname {{~}} {})",
                        regex(schema.as_str()),
                        regex(name.as_str())
                    )
                })),
            }
        }
        tables.sort();
        tables.dedup();
        let tables = if tables.iter().any(|condition| condition == "true") {
            "true".to_owned()
        } else {
            tables.join(" OR ")
        };
        let mut columns: Vec<String> = plan
            .columns
            .iter()
            .map(|mask| format!("a.attname {{~}} {}", regex(mask.column_glob().as_str())))
            .collect();
        columns.sort();
        columns.dedup();
        let text = QUERY
            .replace("{tables}", &tables)
            .replace("{columns}", &columns.join(" OR "));
        Some(
            text.replace("{=}", "OPERATOR(pg_catalog.=)")
                .replace("{~}", "OPERATOR(pg_catalog.~)")
                .replace("{>}", "OPERATOR(pg_catalog.>=)"),
        )
    }

    /// Where column `attnum` of the relation `oid` comes from.
    #[must_use]
    pub fn resolve(&self, oid: u32, attnum: i16) -> Resolution {
        if oid < FIRST_USER_OID {
            return Resolution::Known(Vec::new());
        }
        let Some(relation) = self.relations.get(&oid) else {
            return Resolution::Unknown;
        };
        let mut sources = Vec::new();
        if let Some(column) = relation.columns.get(&attnum) {
            self.name_sources(relation, column, &mut sources, &mut HashSet::new());
        }
        if relation.view.as_ref().is_some_and(|view| view.unreadable) {
            return Resolution::Unknown;
        }
        if let Some(view) = &relation.view {
            let index = usize::try_from(attnum)
                .ok()
                .and_then(|number| number.checked_sub(1));
            let mentioned = index
                .and_then(|index| view.columns.get(index))
                .cloned()
                .flatten();
            self.view_sources(view, mentioned.as_ref(), &mut sources, 0);
        }
        Resolution::Known(sources)
    }

    /// Whether the type `oid` is that of whole rows of a relation with masked columns.
    #[must_use]
    pub fn is_masked_row_type(&self, oid: u32, plan: &MaskPlan) -> bool {
        self.by_type
            .get(&oid)
            .and_then(|relation| self.relations.get(relation))
            .is_some_and(|relation| self.concerns(relation, plan, 0))
    }

    /// Whether a relation of that name has, or is made of, masked columns.
    #[must_use]
    pub fn concerns_table(&self, schema: Option<&str>, name: &str, plan: &MaskPlan) -> bool {
        self.by_name.get(name).is_some_and(|oids| {
            oids.iter()
                .filter_map(|oid| self.relations.get(oid))
                .any(|relation| {
                    schema.is_none_or(|schema| *relation.schema == *schema)
                        && self.concerns(relation, plan, 0)
                })
        })
    }

    fn concerns(&self, relation: &Relation, plan: &MaskPlan, depth: usize) -> bool {
        depth > VIEW_DEPTH_MAX
            || plan.concerns_table(Some(&relation.schema), &relation.name)
            || relation
                .parents
                .iter()
                .filter_map(|oid| self.relations.get(oid))
                .any(|parent| self.concerns(parent, plan, depth + 1))
            || relation.view.as_ref().is_some_and(|view| {
                view.reads
                    .iter()
                    .flat_map(|(schema, name)| self.named(schema, name))
                    .any(|read| self.concerns(read, plan, depth + 1))
            })
    }

    fn named<'a>(&'a self, schema: &'a str, name: &str) -> impl Iterator<Item = &'a Relation> {
        let oids = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        oids.iter()
            .filter_map(|oid| self.relations.get(oid))
            .filter(move |relation| schema.is_empty() || *relation.schema == *schema)
    }

    /// `column` of `relation` and of all that it inherits from.
    fn name_sources(
        &self,
        relation: &Relation,
        column: &str,
        sources: &mut Vec<Source>,
        seen: &mut HashSet<u32>,
    ) {
        sources.push((
            relation.schema.clone(),
            relation.name.clone(),
            column.into(),
        ));
        for parent in &relation.parents {
            if seen.insert(*parent)
                && let Some(parent) = self.relations.get(parent)
            {
                self.name_sources(parent, column, sources, seen);
            }
        }
    }

    /// The columns named `mentioned` (`None`: all) of all that `view` reads.
    fn view_sources(
        &self,
        view: &View,
        mentioned: Option<&BTreeSet<Box<str>>>,
        sources: &mut Vec<Source>,
        depth: usize,
    ) {
        if depth > VIEW_DEPTH_MAX {
            return;
        }
        for (schema, name) in &view.reads {
            for relation in self.named(schema, name) {
                for (attnum, column) in &relation.columns {
                    if mentioned.is_some_and(|mentioned| !mentioned.contains(column)) {
                        continue;
                    }
                    self.name_sources(relation, column, sources, &mut HashSet::new());
                    if let Some(inner) = &relation.view {
                        let index = usize::try_from(*attnum)
                            .ok()
                            .and_then(|number| number.checked_sub(1));
                        let mentioned = index
                            .and_then(|index| inner.columns.get(index))
                            .cloned()
                            .flatten();
                        self.view_sources(inner, mentioned.as_ref(), sources, depth + 1);
                    }
                }
            }
        }
    }
}

/// All user relations by name; of those with masks, the masked columns; of views that read those, all
/// columns and the definition; and what inherits from what.
const QUERY: &str = "\
WITH RECURSIVE tables AS (\
SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid {=} c.relnamespace \
WHERE c.relkind {=} ANY ('{r,p,v,m,f}'::pg_catalog.\"char\"[]) AND c.oid {>} 16384::pg_catalog.oid AND ({tables}) \
UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tables t ON i.inhparent {=} t.oid), \
views AS (\
SELECT r.ev_class AS oid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid {=} d.objid \
JOIN tables t ON d.refobjid {=} t.oid \
WHERE d.classid {=} 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.refclassid {=} 'pg_catalog.pg_class'::pg_catalog.regclass \
UNION SELECT r.ev_class FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid {=} d.objid \
JOIN views v ON d.refobjid {=} v.oid \
WHERE d.classid {=} 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.refclassid {=} 'pg_catalog.pg_class'::pg_catalog.regclass) \
SELECT 'r'::pg_catalog.text, c.oid::pg_catalog.text, n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.reltype::pg_catalog.text \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid {=} c.relnamespace \
WHERE c.relkind {=} ANY ('{r,p,v,m,f}'::pg_catalog.\"char\"[]) AND c.oid {>} 16384::pg_catalog.oid \
UNION ALL SELECT 'c', a.attrelid::pg_catalog.text, a.attnum::pg_catalog.text, a.attname::pg_catalog.text, NULL \
FROM pg_catalog.pg_attribute a WHERE a.attnum {>} 1::pg_catalog.int2 AND NOT a.attisdropped AND (\
a.attrelid {=} ANY (ARRAY(SELECT oid FROM views)) OR (a.attrelid {=} ANY (ARRAY(SELECT oid FROM tables)) AND ({columns}))) \
UNION ALL SELECT 'i', i.inhrelid::pg_catalog.text, i.inhparent::pg_catalog.text, NULL, NULL \
FROM pg_catalog.pg_inherits i WHERE i.inhrelid {=} ANY (ARRAY(SELECT oid FROM tables)) \
UNION ALL SELECT 'v', c.oid::pg_catalog.text, pg_catalog.pg_get_viewdef(c.oid), NULL, NULL \
FROM pg_catalog.pg_class c WHERE c.oid {=} ANY (ARRAY(SELECT oid FROM views)) AND c.relkind {=} ANY ('{v,m}'::pg_catalog.\"char\"[])";

/// A glob as a quoted, anchored regular expression of PostgreSQL's.
fn regex(glob: &str) -> String {
    let mut out = String::from("'^");
    for character in glob.chars() {
        match character {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '\'' => out.push_str("''"),
            // A backslash would mean something else where standard_conforming_strings is off.
            _ if character.is_ascii_alphanumeric() || character == '_' || !character.is_ascii() => {
                out.push(character)
            }
            '^' => out.push('.'),
            _ => {
                out.push('[');
                out.push(character);
                out.push(']');
            }
        }
    }
    out.push_str("$'");
    out
}

impl CatalogBuilder {
    /// Takes one row, its values as text. What can't be read is left out, and so unknown.
    pub fn row(&mut self, values: &[Option<&[u8]>]) {
        let text = |index: usize| {
            values
                .get(index)
                .copied()
                .flatten()
                .and_then(|value| std::str::from_utf8(value).ok())
        };
        let (Some(kind), Some(oid)) = (text(0), text(1).and_then(|oid| oid.parse::<u32>().ok()))
        else {
            return;
        };
        match kind {
            "r" => {
                let (Some(schema), Some(name)) = (text(2), text(3)) else {
                    return;
                };
                let relation = self.catalog.relations.entry(oid).or_default();
                relation.schema = schema.into();
                relation.name = name.into();
                self.catalog
                    .by_name
                    .entry(name.into())
                    .or_default()
                    .push(oid);
                if let Some(row_type) = text(4).and_then(|oid| oid.parse().ok()) {
                    self.catalog.by_type.insert(row_type, oid);
                }
            }
            "c" => {
                let (Some(attnum), Some(name)) =
                    (text(2).and_then(|number| number.parse().ok()), text(3))
                else {
                    return;
                };
                self.catalog
                    .relations
                    .entry(oid)
                    .or_default()
                    .columns
                    .insert(attnum, name.into());
            }
            "i" => {
                if let Some(parent) = text(2).and_then(|oid| oid.parse().ok()) {
                    self.catalog
                        .relations
                        .entry(oid)
                        .or_default()
                        .parents
                        .push(parent);
                }
            }
            "v" => {
                let view = text(2).map(View::read).unwrap_or_default();
                self.catalog.relations.entry(oid).or_default().view = Some(view);
            }
            _ => {}
        }
    }

    /// The catalogue of all rows taken.
    #[must_use]
    pub fn finish(self) -> Catalog {
        self.catalog
    }
}

impl View {
    fn read(definition: &str) -> Self {
        let parsed = pg_query::parse(definition, pg_query::ParserOptions::default()).ok();
        let tree = parsed.and_then(|parsed| serde_json::to_value(&parsed.protobuf).ok());
        let Some(tree) = tree else {
            return Self {
                unreadable: true,
                ..Self::default()
            };
        };
        let mut names = Names::default();
        names.walk(&tree);
        let select = tree.pointer("/stmts/0/stmt/node/SelectStmt");
        let columns = select
            .map(|select| names.outputs(select))
            .unwrap_or_default();
        Self {
            reads: names.reads.into_iter().collect(),
            columns,
            unreadable: false,
        }
    }
}

/// The names in a view's definition.
#[derive(Debug, Default)]
struct Names {
    reads: BTreeSet<(Box<str>, Box<str>)>,
    /// Names that stand for whole rows.
    rows: BTreeSet<Box<str>>,
    /// A name given inside, and the column names that it may stand for; `None` is all there are.
    renamed: BTreeMap<Box<str>, Option<BTreeSet<Box<str>>>>,
}

impl Names {
    fn walk(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.walk(item)),
            Value::Object(fields) => {
                let text =
                    |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
                if fields.contains_key("relname") && fields.contains_key("relpersistence") {
                    self.reads
                        .insert((text("schemaname").into(), text("relname").into()));
                    self.rows.insert(text("relname").into());
                }
                if fields.contains_key("aliasname") {
                    self.rows.insert(text("aliasname").into());
                    // `AS s(a, b)`: which is which isn't followed.
                    self.rename_all(fields.get("colnames"));
                }
                if fields.contains_key("ctename") {
                    self.rows.insert(text("ctename").into());
                    self.rename_all(fields.get("aliascolnames"));
                }
                if fields.contains_key("target_list") && fields.contains_key("from_clause") {
                    self.select(value);
                }
                fields.values().for_each(|field| self.walk(field));
            }
            _ => {}
        }
    }

    fn rename_all(&mut self, names: Option<&Value>) {
        for name in names.into_iter().filter_map(Value::as_array).flatten() {
            if let Some(name) = name.pointer("/node/String/sval").and_then(Value::as_str) {
                self.renamed.insert(name.into(), None);
            }
        }
    }

    /// Notes what each output name of a SELECT, or of the halves of a UNION, is made of.
    fn select(&mut self, select: &Value) {
        let leaves = leaves(select);
        let Some((first, _)) = leaves.split_first() else {
            return;
        };
        for (index, target) in targets(first).iter().enumerate() {
            let Some(name) = output_name(target) else {
                continue;
            };
            for leaf in &leaves {
                let columns = targets(leaf).get(index).map(mentioned);
                let merged = self
                    .renamed
                    .entry(name.into())
                    .or_insert_with(|| Some(BTreeSet::new()));
                match (merged.as_mut(), columns) {
                    (Some(merged), Some(Some(columns))) => merged.extend(columns),
                    (_, None) => {}
                    _ => *merged = None,
                }
            }
        }
    }

    /// What each output column of the outermost SELECT mentions, renames undone.
    fn outputs(&self, select: &Value) -> Vec<Option<BTreeSet<Box<str>>>> {
        let leaves = leaves(select);
        let count = leaves.first().map_or(0, |leaf| targets(leaf).len());
        (0..count)
            .map(|index| {
                let mut all = BTreeSet::new();
                for leaf in &leaves {
                    all.extend(mentioned(targets(leaf).get(index)?)?);
                }
                self.closure(all)
            })
            .collect()
    }

    fn closure(&self, mut names: BTreeSet<Box<str>>) -> Option<BTreeSet<Box<str>>> {
        let mut open: Vec<Box<str>> = names.iter().cloned().collect();
        while let Some(name) = open.pop() {
            if self.rows.contains(&name) {
                return None;
            }
            match self.renamed.get(&name) {
                Some(None) => return None,
                Some(Some(inner)) => {
                    for name in inner {
                        if names.insert(name.clone()) {
                            open.push(name.clone());
                        }
                    }
                }
                None => {}
            }
        }
        Some(names)
    }
}

/// The SELECTs that a UNION, INTERSECT or EXCEPT is made of.
fn leaves(select: &Value) -> Vec<&Value> {
    let (mut out, mut open) = (Vec::new(), vec![select]);
    while let Some(select) = open.pop() {
        match (select.get("larg"), select.get("rarg")) {
            (Some(left @ Value::Object(_)), Some(right @ Value::Object(_))) => {
                open.extend([right, left])
            }
            _ => out.push(select),
        }
    }
    out
}

fn targets(select: &Value) -> &[Value] {
    select
        .get("target_list")
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The name that a target gives its column: its alias, or the last name of a column.
fn output_name(target: &Value) -> Option<&str> {
    let target = target.pointer("/node/ResTarget")?;
    match target.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Some(name),
        _ => target
            .pointer("/val/node/ColumnRef/fields")?
            .as_array()?
            .last()?
            .pointer("/node/String/sval")?
            .as_str(),
    }
}

/// The names of all columns in an expression; `None` where it mentions a whole row.
fn mentioned(value: &Value) -> Option<BTreeSet<Box<str>>> {
    let mut names = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                if let Some(parts) = fields
                    .get("ColumnRef")
                    .and_then(|column| column.get("fields"))
                    .and_then(Value::as_array)
                {
                    match parts
                        .last()
                        .and_then(|part| part.pointer("/node/String/sval"))
                        .and_then(Value::as_str)
                    {
                        Some(name) => names.insert(name.into()),
                        None => return None,
                    };
                } else {
                    open.extend(fields.values());
                }
            }
            _ => {}
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Catalog, CatalogBuilder, Resolution};
    use crate::mask::{ColumnMask, MaskKind, MaskPlan};

    fn plan() -> MaskPlan {
        let mask = ColumnMask::new(
            &Arc::from("r"),
            &["*.customers".to_owned()],
            "email",
            MaskKind::Redact,
            false,
        );
        MaskPlan {
            columns: vec![mask],
            ..MaskPlan::default()
        }
    }

    fn catalog(view: &str) -> Catalog {
        let mut builder = CatalogBuilder::default();
        let mut row = |values: [&str; 5]| {
            let values: Vec<Option<&[u8]>> = values
                .iter()
                .map(|value| (!value.is_empty()).then_some(value.as_bytes()))
                .collect();
            builder.row(&values);
        };
        row(["r", "20000", "public", "customers", "20002"]);
        row(["c", "20000", "2", "email", ""]);
        row(["r", "20010", "public", "v", "20012"]);
        for (number, name) in [("1", "a"), ("2", "b"), ("3", "c")] {
            row(["c", "20010", number, name, ""]);
        }
        row(["v", "20010", view, "", ""]);
        builder.finish()
    }

    fn masked(view: &str) -> Vec<bool> {
        let catalog = catalog(view);
        (1..=3)
            .map(|attnum| match catalog.resolve(20_010, attnum) {
                Resolution::Known(sources) => sources
                    .iter()
                    .any(|(schema, table, column)| plan().column(schema, table, column).is_some()),
                Resolution::Unknown => panic!("unknown"),
            })
            .collect()
    }

    #[test]
    fn a_view_is_followed_to_the_columns_that_it_is_made_of() {
        for (view, expected) in [
            (
                "SELECT c.id AS a, c.email AS b, c.name AS c FROM customers c",
                [false, true, false],
            ),
            (
                "SELECT c.id AS a, lower(c.email) AS b, c.name AS c FROM public.customers c",
                [false, true, false],
            ),
            (
                "SELECT s.x AS a, s.y AS b, 1 AS c FROM (SELECT id AS x, email AS y FROM customers) s",
                [false, true, false],
            ),
            (
                "WITH q AS (SELECT email AS e FROM customers) SELECT 1 AS a, q.e AS b, 2 AS c FROM q",
                [false, true, false],
            ),
            (
                "SELECT 1 AS a, x.n AS b, 2 AS c FROM (SELECT email FROM customers) x(n)",
                [false, true, false],
            ),
            (
                "SELECT id AS a, name AS b, 1 AS c FROM customers UNION SELECT id, email, 2 FROM customers",
                [false, true, false],
            ),
            (
                "SELECT s.i AS a, s.n AS b, 1 AS c FROM (SELECT id AS i, name AS n FROM customers UNION SELECT id, email FROM customers) s",
                [false, true, false],
            ),
            (
                "SELECT 1 AS a, row_to_json(c.*) AS b, 2 AS c FROM customers c",
                [false, true, false],
            ),
            (
                "SELECT 1 AS a, row_to_json(c) AS b, 2 AS c FROM customers c",
                [false, true, false],
            ),
            (
                "SELECT 1 AS a, (SELECT max(email) FROM customers) AS b, 2 AS c",
                [false, true, false],
            ),
            (
                "SELECT count(*) AS a, 1 AS b, 2 AS c FROM customers",
                [false, false, false],
            ),
        ] {
            assert_eq!(masked(view), expected, "{view}");
        }
        assert_eq!(
            catalog("not SQL at all").resolve(20_010, 1),
            Resolution::Unknown
        );
    }

    #[test]
    fn relations_that_are_not_there_are_unknown() {
        let catalog = catalog("SELECT 1 AS a");
        assert_eq!(catalog.resolve(30_000, 1), Resolution::Unknown);
        assert_eq!(catalog.resolve(1_259, 1), Resolution::Known(Vec::new()));
        assert!(catalog.is_masked_row_type(20_002, &plan()));
        assert!(!catalog.is_masked_row_type(2_249, &plan()));
    }

    #[test]
    fn the_question_can_not_be_led_astray_by_a_search_path() {
        let text = Catalog::query(&plan()).unwrap();
        assert!(
            text.contains("n.nspname OPERATOR(pg_catalog.~) '^.*$'"),
            "{text}"
        );
        assert!(
            !text.contains(" = ") && !text.contains(" ~ ") && !text.contains('{')
                || text.contains("'{r,p"),
            "{text}"
        );
        assert!(pg_query::parse(&text, pg_query::ParserOptions::default()).is_ok());
    }
}
