//! Masks on the rows of one layout, column by column.

use bytes::{BufMut, BytesMut};
use serde_json::Value;

use super::{
    super::{
        catalog::{Catalog, FIRST_USER_OID, Resolution},
        wire::{Malformed, Reader},
    },
    message::concerns,
    value::{Masked, array, jsonb, mask_json, mask_text, mask_value, put, text_array},
};
use crate::{
    mask::{MaskKind, MaskPlan, Patterns},
    operation::Description,
};

/// What is masked in the rows of one layout.
#[derive(Debug, Default)]
pub struct RowMask {
    columns: Vec<Column>,
    patterns: Patterns,
    keys: Option<MaskPlan>,
    masked: Vec<Box<str>>,
    refusal: Option<String>,
    unknown_origin: bool,
    noop: bool,
}

#[derive(Debug)]
struct Column {
    action: Action,
    carries: Carries,
    binary: bool,
}

/// What becomes of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Keep,
    Mask(MaskKind),
    /// Whatever patterns find in it.
    Patterns,
    Null,
}

/// How a type's values are written, as far as a mask can be written into them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    /// Plain text, in both formats.
    Text,
    /// JSON text.
    Json,
    /// JSON text behind a version byte, in the binary format.
    Jsonb,
    /// An array of one of these.
    Array,
    /// Bytes, in hexadecimal in the text format.
    Bytes,
    /// A type of the user's: readable as text in the text format.
    User,
    /// Rows of the type of a whole table, or of no named type.
    Record,
    /// Numbers, times and the like: a mask isn't one.
    Nothing,
}

impl Carries {
    const fn of(type_oid: u32) -> Self {
        match type_oid {
            // "char", name, text, xml, unknown, bpchar, varchar, cstring, refcursor.
            18 | 19 | 25 | 142 | 705 | 1042 | 1043 | 2275 | 1790 => Self::Text,
            114 => Self::Json,
            3802 => Self::Jsonb,
            // xml[], json[], bytea[], "char"[], name[], text[], bpchar[], varchar[], uuid[], jsonb[].
            143 | 199 | 1001 | 1002 | 1003 | 1009 | 1014 | 1015 | 2951 | 3807 => Self::Array,
            17 => Self::Bytes,
            // record, record[].
            2249 | 2287 => Self::Record,
            _ if type_oid >= FIRST_USER_OID => Self::User,
            _ => Self::Nothing,
        }
    }
}

/// anyarray: what pg_stats shows samples of columns in.
const ANYARRAY: u32 = 2277;

impl RowMask {
    /// The masks for rows whose RowDescription has this payload, of an operation that does what
    /// `description` says.
    ///
    /// # Errors
    /// Where the payload is malformed.
    pub fn new(
        payload: &[u8],
        plan: &MaskPlan,
        catalog: Option<&Catalog>,
        description: &Description,
    ) -> Result<Self, Malformed> {
        if plan.is_empty() {
            return Ok(Self {
                noop: true,
                ..Self::default()
            });
        }
        let concerned = concerns(plan, catalog, description);
        let mut mask = Self {
            patterns: plan.patterns.clone(),
            ..Self::default()
        };
        let mut reader = Reader::new(payload, "RowDescription");
        for _ in 0..reader.count()? {
            let name = String::from_utf8_lossy(reader.string()?).into_owned();
            let table = reader.u32()?;
            let attnum = reader.i16()?;
            let type_oid = reader.u32()?;
            reader.take(6)?;
            let binary = reader.i16()? == 1;
            let carries = Carries::of(type_oid);
            let action = mask.action(plan, catalog, concerned, &name, (table, attnum, type_oid));
            let action = mask.fit(action, carries, binary, &name, type_oid);
            mask.columns.push(Column {
                action,
                carries,
                binary,
            });
        }
        reader.end()?;
        if concerned {
            mask.keys = Some(plan.clone());
        }
        mask.noop = mask
            .columns
            .iter()
            .all(|column| column.action == Action::Keep);
        Ok(mask)
    }

    /// Columns that are masked, by name.
    #[must_use]
    pub fn masked(&self) -> &[Box<str>] {
        &self.masked
    }

    /// Why a strict rule refuses the result, if one does.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether no row can change.
    #[must_use]
    pub const fn is_noop(&self) -> bool {
        self.noop
    }

    /// Whether a column comes from a table that the catalogue doesn't know.
    #[must_use]
    pub const fn has_unknown_origin(&self) -> bool {
        self.unknown_origin
    }

    /// What the plan says of a column.
    fn action(
        &mut self,
        plan: &MaskPlan,
        catalog: Option<&Catalog>,
        concerned: bool,
        name: &str,
        (table, attnum, type_oid): (u32, i16, u32),
    ) -> Action {
        let patterns = if plan.patterns.is_empty() {
            Action::Keep
        } else {
            Action::Patterns
        };
        if plan.columns.is_empty() {
            return patterns;
        }
        if type_oid == ANYARRAY {
            return Action::Null;
        }
        if table != 0 && attnum > 0 {
            let resolved = match catalog {
                None if table >= FIRST_USER_OID => Resolution::Unknown,
                None => Resolution::Known(Vec::new()),
                Some(catalog) => catalog.resolve(table, attnum),
            };
            return match resolved {
                Resolution::Unknown => {
                    self.unknown_origin = true;
                    Action::Null
                }
                Resolution::Known(sources) => sources
                    .iter()
                    .find_map(|(schema, table, column)| plan.column(schema, table, column))
                    .map_or(patterns, |mask| Action::Mask(mask.with)),
            };
        }
        let whole_row = catalog.is_some_and(|catalog| catalog.is_masked_row_type(type_oid, plan));
        if !concerned && !whole_row {
            return patterns;
        }
        if let Some(strict) = plan.columns.iter().find(|mask| mask.strict) {
            self.refusal.get_or_insert_with(|| {
                format!(
                    "rule \"{}\" masks columns of this table strictly, and the column \"{name}\" of the result is an \
                     expression whose origin the server doesn't tell",
                    strict.rule
                )
            });
        }
        if whole_row {
            return Action::Null;
        }
        match plan.columns.iter().find(|mask| mask.is_for_column(name)) {
            Some(mask) => Action::Mask(mask.with),
            None if Carries::of(type_oid) == Carries::Record => Action::Null,
            None if matches!(Carries::of(type_oid), Carries::Json | Carries::Jsonb) => {
                Action::Patterns
            }
            None => patterns,
        }
    }

    /// `action`, as far as the type can carry it; what is masked is noted by name.
    fn fit(
        &mut self,
        action: Action,
        carries: Carries,
        binary: bool,
        name: &str,
        type_oid: u32,
    ) -> Action {
        let fitted = match (action, carries) {
            (Action::Mask(MaskKind::Null), _) => Action::Null,
            (Action::Mask(_), Carries::Nothing | Carries::Record | Carries::Bytes) => Action::Null,
            (Action::Mask(_), Carries::User) if binary => Action::Null,
            // A masked uuid is none.
            (Action::Mask(_), Carries::Array) if type_oid == 2951 => Action::Null,
            (Action::Patterns, Carries::Nothing) => Action::Keep,
            (action, _) => action,
        };
        match (action, fitted) {
            (Action::Mask(_), Action::Null) if action != Action::Mask(MaskKind::Null) => {
                self.masked
                    .push(format!("{name} (null: its type can't carry the mask)").into());
            }
            (Action::Null, _) => self
                .masked
                .push(format!("{name} (null: of unknown origin or a whole row)").into()),
            (Action::Mask(_), _) => self.masked.push(name.into()),
            _ => {}
        }
        fitted
    }

    /// Writes the masked payload of a DataRow to `out`; whether it differs.
    ///
    /// # Errors
    /// Where the payload is malformed.
    pub fn apply(&self, payload: &[u8], out: &mut BytesMut) -> Result<bool, Malformed> {
        let mut reader = Reader::new(payload, "DataRow");
        let count = reader.count()?;
        if count != self.columns.len() {
            return Err(Malformed(format!(
                "DataRow has {count} columns, its RowDescription {}",
                self.columns.len()
            )));
        }
        out.put_i16(i16::try_from(count).unwrap_or(i16::MAX));
        let mut changed = false;
        for column in &self.columns {
            let Some(value) = reader.value()? else {
                out.put_i32(-1);
                continue;
            };
            match self.value(column, value) {
                Masked::Same => put(out, Some(value)),
                Masked::Null => {
                    changed = true;
                    put(out, None);
                }
                Masked::Instead(bytes) => {
                    changed = true;
                    put(out, Some(&bytes));
                }
            }
        }
        reader.end()?;
        Ok(changed)
    }

    fn value(&self, column: &Column, value: &[u8]) -> Masked {
        match column.action {
            Action::Keep => Masked::Same,
            Action::Null => Masked::Null,
            Action::Mask(kind) => self.mask(column, kind, value),
            Action::Patterns => self.find(column, value),
        }
    }

    fn mask(&self, column: &Column, kind: MaskKind, value: &[u8]) -> Masked {
        match (column.carries, column.binary) {
            (Carries::Array, true) => array(value, &mut |element| mask_text(kind, element)),
            (Carries::Array, false) => text_array(value, &mut |element| mask_text(kind, element)),
            (Carries::Json, _) => mask_json(kind, value).map_or(Masked::Null, Masked::Instead),
            (Carries::Jsonb, binary) => {
                let (version, text) = jsonb(value, binary);
                mask_json(kind, text).map_or(Masked::Null, |text| {
                    Masked::Instead([version, &text].concat())
                })
            }
            _ => mask_text(kind, value),
        }
    }

    fn find(&self, column: &Column, value: &[u8]) -> Masked {
        let found = |bytes: Option<Vec<u8>>| bytes.map_or(Masked::Same, Masked::Instead);
        match (column.carries, column.binary) {
            (Carries::Array, true) => {
                array(value, &mut |element| found(self.patterns.apply(element)))
            }
            (Carries::Json, _) => found(self.json(value)),
            (Carries::Jsonb, binary) => {
                let (version, text) = jsonb(value, binary);
                found(self.json(text).map(|text| [version, &text].concat()))
            }
            (Carries::Bytes, binary) => {
                let raw = if binary {
                    Some(value.to_vec())
                } else {
                    value
                        .strip_prefix(b"\\x")
                        .and_then(|text| hex::decode(text).ok())
                };
                match raw.and_then(|raw| self.patterns.apply(&raw)) {
                    Some(_) => Masked::Null,
                    None => Masked::Same,
                }
            }
            // Its binary form may hold lengths that a replacement would belie.
            (Carries::User | Carries::Record, true) => match self.patterns.apply(value) {
                Some(_) => Masked::Null,
                None => Masked::Same,
            },
            _ => found(self.patterns.apply(value)),
        }
    }

    /// JSON with patterns applied to its strings, as they are meant and not as they are written, and
    /// with masked columns' names masked as keys where the operation touched their tables.
    fn json(&self, text: &[u8]) -> Option<Vec<u8>> {
        let plain = self.patterns.apply(text);
        if self.keys.is_none() && !text.contains(&b'\\') {
            return plain;
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
            return plain;
        };
        let mut changed = false;
        self.json_value(&mut value, &mut changed);
        if changed {
            serde_json::to_vec(&value).ok()
        } else {
            plain
        }
    }

    fn json_value(&self, value: &mut Value, changed: &mut bool) {
        match value {
            Value::String(text) => {
                if let Some(masked) = self.patterns.apply(text.as_bytes()) {
                    *text = String::from_utf8_lossy(&masked).into_owned();
                    *changed = true;
                }
            }
            Value::Array(items) => items
                .iter_mut()
                .for_each(|item| self.json_value(item, changed)),
            Value::Object(fields) => {
                for (key, field) in fields {
                    let column = self
                        .keys
                        .as_ref()
                        .and_then(|plan| plan.columns.iter().find(|mask| mask.is_for_column(key)));
                    match column {
                        Some(mask) => {
                            *field = mask_value(mask.with, field);
                            *changed = true;
                        }
                        None => self.json_value(field, changed),
                    }
                }
            }
            _ => {}
        }
    }
}
