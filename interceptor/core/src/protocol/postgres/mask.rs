//! Masks on rows, copies, errors and notices.
//!
//! A column is masked by where PostgreSQL says it comes from; what it calls an expression (no origin)
//! is masked by its name, if the operation touches a masked table, and by patterns. A value whose type
//! can't carry a mask becomes NULL. Where the origin can't be told, the value becomes NULL as well.

use bytes::{BufMut, BytesMut};
use serde_json::Value;

use super::{
    catalog::{Catalog, FIRST_USER_OID, Resolution},
    wire::{Malformed, Reader},
};
use crate::{
    mask::{MaskKind, MaskPlan, Patterns},
    operation::{Description, ResourceKind},
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

/// What stands in a value's place.
#[derive(Debug, PartialEq, Eq)]
enum Masked {
    Same,
    Null,
    Instead(Vec<u8>),
}

fn put(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => out.put_i32(-1),
        Some(value) => {
            out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
            out.put_slice(value);
        }
    }
}

fn mask_text(kind: MaskKind, value: &[u8]) -> Masked {
    match kind.apply(&String::from_utf8_lossy(value)) {
        Some(text) => Masked::Instead(text.into_bytes()),
        None => Masked::Null,
    }
}

fn mask_value(kind: MaskKind, value: &Value) -> Value {
    let text = match value {
        Value::Null => return Value::Null,
        Value::String(text) => text.clone(),
        _ => return Value::String("[redacted]".to_owned()),
    };
    kind.apply(&text).map_or(Value::Null, Value::String)
}

fn mask_json(kind: MaskKind, text: &[u8]) -> Option<Vec<u8>> {
    let value = serde_json::from_slice(text).unwrap_or_else(|_| Value::String(String::new()));
    serde_json::to_vec(&mask_value(kind, &value)).ok()
}

/// The version byte of a jsonb value in binary form, and its text.
fn jsonb(value: &[u8], binary: bool) -> (&[u8], &[u8]) {
    value.split_at(usize::from(binary).min(value.len()))
}

/// An array in its binary form with each element masked. What isn't one becomes NULL.
fn array(value: &[u8], mask: &mut dyn FnMut(&[u8]) -> Masked) -> Masked {
    binary_array(value, mask).unwrap_or(Masked::Null)
}

fn binary_array(value: &[u8], mask: &mut dyn FnMut(&[u8]) -> Masked) -> Result<Masked, Malformed> {
    let mut reader = Reader::new(value, "array");
    let dimensions = reader.i32()?;
    reader.i32()?;
    let element = reader.u32()?;
    let mut count = i64::from(dimensions != 0);
    let bounds = reader.rest();
    for _ in 0..dimensions {
        count = count.saturating_mul(i64::from(reader.i32()?));
        reader.i32()?;
    }
    let bounds = bounds
        .get(..bounds.len() - reader.rest().len())
        .unwrap_or_default();
    let (mut out, mut nulls, mut changed) = (BytesMut::with_capacity(value.len()), false, false);
    for _ in 0..count {
        match reader.value()? {
            None => {
                nulls = true;
                put(&mut out, None);
            }
            Some(value) => match mask(value) {
                Masked::Same => put(&mut out, Some(value)),
                Masked::Null => {
                    (nulls, changed) = (true, true);
                    put(&mut out, None);
                }
                Masked::Instead(bytes) => {
                    changed = true;
                    put(&mut out, Some(&bytes));
                }
            },
        }
    }
    reader.end()?;
    if !changed {
        return Ok(Masked::Same);
    }
    let mut whole = BytesMut::with_capacity(out.len() + bounds.len() + 12);
    whole.put_i32(dimensions);
    whole.put_i32(i32::from(nulls));
    whole.put_u32(element);
    whole.put_slice(bounds);
    whole.put_slice(&out);
    Ok(Masked::Instead(whole.to_vec()))
}

/// An array in its text form with each element masked.
fn text_array(value: &[u8], mask: &mut dyn FnMut(&[u8]) -> Masked) -> Masked {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'{' | b'}' | b',' => {
                out.push(byte);
                rest = after;
            }
            b'"' => {
                let mut element = Vec::new();
                let mut inside = after;
                loop {
                    match inside.split_first() {
                        Some((b'\\', after)) => {
                            let Some((escaped, after)) = after.split_first() else {
                                return Masked::Null;
                            };
                            element.push(*escaped);
                            inside = after;
                        }
                        Some((b'"', after)) => {
                            inside = after;
                            break;
                        }
                        Some((byte, after)) => {
                            element.push(*byte);
                            inside = after;
                        }
                        None => return Masked::Null,
                    }
                }
                rest = inside;
                quote(mask(&element), &element, &mut out);
            }
            _ => {
                let end = rest
                    .iter()
                    .position(|byte| matches!(byte, b',' | b'}'))
                    .unwrap_or(rest.len());
                let (element, after) = rest.split_at(end);
                rest = after;
                if element == b"NULL" {
                    out.extend_from_slice(element);
                } else {
                    quote(mask(element), element, &mut out);
                }
            }
        }
    }
    Masked::Instead(out)
}

fn quote(masked: Masked, element: &[u8], out: &mut Vec<u8>) {
    let bytes = match masked {
        Masked::Null => return out.extend_from_slice(b"NULL"),
        Masked::Same => element.to_vec(),
        Masked::Instead(bytes) => bytes,
    };
    out.push(b'"');
    for byte in bytes {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// Whether an operation that does what `description` says touches a table with masked columns.
fn concerns(plan: &MaskPlan, catalog: Option<&Catalog>, description: &Description) -> bool {
    description
        .resources
        .iter()
        .filter(|resource| resource.kind == ResourceKind::Table)
        .any(|resource| {
            let (schema, name) = (resource.namespace.as_deref(), &*resource.name);
            plan.concerns_table(schema, name)
                || catalog.is_some_and(|catalog| catalog.concerns_table(schema, name, plan))
        })
}

/// The payload of an ErrorResponse or NoticeResponse with masks applied, where that changes it.
#[must_use]
pub fn mask_fields(payload: &[u8], plan: &MaskPlan) -> Option<Vec<u8>> {
    let mut reader = Reader::new(payload, "ErrorResponse");
    let (mut out, mut changed) = (Vec::with_capacity(payload.len()), false);
    loop {
        let field = reader.u8().ok()?;
        out.push(field);
        if field == 0 {
            return changed.then_some(out);
        }
        let text = reader.string().ok()?;
        let detail = if field == b'D' && !plan.columns.is_empty() {
            mask_detail(text, plan)
        } else {
            None
        };
        let masked = match &detail {
            Some(detail) => plan.patterns.apply(detail).or(detail.clone().into()),
            None => plan.patterns.apply(text),
        };
        changed |= masked.is_some();
        out.extend(
            masked
                .as_deref()
                .unwrap_or(text)
                .iter()
                .filter(|byte| **byte != 0),
        );
        out.push(0);
    }
}

/// The server's details that quote values: `Failing row contains (…).`, `Key (a, b)=(x, y) …`.
fn mask_detail(text: &[u8], plan: &MaskPlan) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with("Failing row contains (") {
        return Some(b"Failing row contains ([redacted]).".to_vec());
    }
    let (columns, rest) = text.strip_prefix("Key (")?.split_once(")=(")?;
    let masked = |column: &str| {
        plan.columns
            .iter()
            .any(|mask| mask.is_for_column(column.trim().trim_matches('"')))
    };
    // An expression index names an expression here: it may be of anything.
    let concerned = columns.contains('(') || columns.split(',').any(masked);
    let tail = rest.rfind(')').and_then(|at| rest.get(at..)).unwrap_or(")");
    concerned.then(|| format!("Key ({columns})=([redacted]{tail}").into_bytes())
}

/// The payload of a NotificationResponse with masks applied, where that changes it.
#[must_use]
pub fn mask_notification(payload: &[u8], plan: &MaskPlan) -> Option<Vec<u8>> {
    let mut reader = Reader::new(payload, "NotificationResponse");
    reader.u32().ok()?;
    reader.string().ok()?;
    let (head, text) = payload.split_at_checked(payload.len().checked_sub(reader.rest().len())?)?;
    let masked = plan.patterns.apply(text.strip_suffix(b"\0")?)?;
    Some([head, &masked, b"\0"].concat())
}

/// The payload of a CopyData from the server with masks applied, where that changes it.
#[must_use]
pub fn mask_copy_data(payload: &[u8], plan: &MaskPlan) -> Option<Vec<u8>> {
    plan.patterns.apply(payload)
}

/// The payload of a FunctionCallResponse with masks applied, where that changes it.
#[must_use]
pub fn mask_function_result(payload: &[u8], plan: &MaskPlan) -> Option<Vec<u8>> {
    let masked = plan.patterns.apply(
        Reader::new(payload, "FunctionCallResponse")
            .value()
            .ok()??,
    )?;
    let mut out = BytesMut::with_capacity(masked.len() + 4);
    put(&mut out, Some(&masked));
    Some(out.to_vec())
}

/// Why a COPY TO STDOUT that does what `description` says can't be masked, where that is so.
#[must_use]
pub fn copy_out_refusal(
    plan: &MaskPlan,
    catalog: Option<&Catalog>,
    description: &Description,
) -> Option<String> {
    let rule = plan.columns.first().map(|mask| mask.rule.clone())?;
    // A copy stream says nothing of where its columns come from.
    concerns(plan, catalog, description)
        .then(|| format!("rule \"{rule}\" masks columns of this table, and COPY can't be masked by column; use SELECT"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::{BufMut, BytesMut};

    use super::RowMask;
    use crate::{
        mask::{ColumnMask, MaskKind, MaskPlan, Pattern, PatternMask, Patterns},
        operation::{Description, Resource, ResourceKind, Touch},
    };

    fn plan(strict: bool) -> MaskPlan {
        let rule: Arc<str> = Arc::from("r");
        let tables = ["*.customers".to_owned()];
        MaskPlan {
            columns: vec![ColumnMask::new(
                &rule,
                &tables,
                "email",
                MaskKind::Email,
                strict,
            )],
            patterns: Patterns::new(vec![PatternMask {
                rule,
                pattern: Pattern::Card,
                with: MaskKind::Last4,
            }]),
        }
    }

    fn description(table: &str) -> Description {
        let resource = Resource {
            kind: ResourceKind::Table,
            namespace: None,
            name: table.into(),
            touch: Touch::Read,
        };
        Description {
            resources: [resource].into(),
            ..Description::default()
        }
    }

    fn layout(columns: &[(&str, u32, u32, i16)]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_i16(columns.len() as i16);
        for (name, table, type_oid, format) in columns {
            out.put_slice(name.as_bytes());
            out.put_u8(0);
            out.put_u32(*table);
            out.put_i16(i16::from(*table != 0));
            out.put_u32(*type_oid);
            out.put_slice(&[0; 6]);
            out.put_i16(*format);
        }
        out
    }

    /// One expression column of a type, masked as part of an operation on `customers`.
    fn expression(name: &str, type_oid: u32, format: i16, value: &[u8]) -> Option<Vec<u8>> {
        let mask = RowMask::new(
            &layout(&[(name, 0, type_oid, format)]),
            &plan(false),
            None,
            &description("customers"),
        )
        .unwrap();
        let mut row = BytesMut::new();
        row.put_i16(1);
        super::put(&mut row, Some(value));
        let mut out = BytesMut::new();
        mask.apply(&row, &mut out).unwrap();
        let mut reader = crate::protocol::postgres::wire::Reader::new(&out, "DataRow");
        reader.count().unwrap();
        reader.value().unwrap().map(<[u8]>::to_vec)
    }

    #[test]
    fn values_of_every_kind_are_masked_in_a_form_that_clients_can_read() {
        let email = b"ada@example.com";
        let masked = |bytes: &[u8]| Some(bytes.to_vec());
        for format in [0, 1] {
            assert_eq!(
                expression("email", 25, format, email),
                masked(b"a***@example.com")
            );
            assert_eq!(
                expression("email", 114, format, b"\"ada@example.com\""),
                masked(b"\"a***@example.com\"")
            );
            assert_eq!(expression("email", 20, format, b"12345678"), None);
            assert_eq!(expression("email", 17, format, email), None);
            assert_eq!(
                expression("whole", 2249, format, b"(1,ada@example.com)"),
                None
            );
        }
        assert_eq!(
            expression("email", 3802, 1, b"\x01\"ada@example.com\""),
            masked(b"\x01\"a***@example.com\"")
        );
        assert_eq!(
            expression("email", 1009, 0, b"{ada@example.com,NULL,\"b\\\"@c.de\"}"),
            masked(b"{\"a***@example.com\",NULL,\"b***@c.de\"}")
        );
        assert_eq!(
            expression("j", 114, 0, b"{\"email\":\"ada@example.com\",\"n\":1}"),
            masked(b"{\"email\":\"a***@example.com\",\"n\":1}")
        );
        assert_eq!(
            expression("j", 3802, 0, b"{\"n\":\"4111\\u003111111111111\"}"),
            masked(b"{\"n\":\"************1111\"}")
        );
        assert_eq!(
            expression("t", 25, 0, b"card 4111111111111111"),
            masked(b"card ************1111")
        );
        assert_eq!(expression("n", 23, 0, b"42"), masked(b"42"));
        assert_eq!(
            expression("b", 17, 0, b"\\x34313131313131313131313131313131"),
            None
        );
    }

    #[test]
    fn binary_arrays_keep_their_shape() {
        let mut value = BytesMut::new();
        value.put_i32(1);
        value.put_i32(0);
        value.put_u32(25);
        value.put_i32(2);
        value.put_i32(1);
        super::put(&mut value, Some(b"x"));
        super::put(&mut value, Some(b"4111111111111111"));
        let masked = expression("a", 1009, 1, &value).unwrap();
        assert!(
            masked.ends_with(b"************1111") && masked.starts_with(&value[..20]),
            "{masked:?}"
        );
        assert_eq!(expression("a", 1009, 1, b"\0\0"), None);
    }

    #[test]
    fn what_comes_from_nobody_knows_where_becomes_null() {
        let mask = RowMask::new(
            &layout(&[("x", 99_999, 25, 0)]),
            &plan(false),
            None,
            &description("t"),
        )
        .unwrap();
        assert!(mask.has_unknown_origin() && !mask.is_noop());
        let system = RowMask::new(
            &layout(&[("x", 1_259, 23, 0)]),
            &plan(false),
            None,
            &description("t"),
        )
        .unwrap();
        assert!(system.is_noop());
    }

    #[test]
    fn strict_rules_refuse_expressions_over_their_tables() {
        let of = |table: &str| {
            RowMask::new(
                &layout(&[("lower", 0, 25, 0)]),
                &plan(true),
                None,
                &description(table),
            )
            .unwrap()
        };
        assert!(of("customers").refusal().unwrap().contains("\"lower\""));
        assert_eq!(of("orders").refusal(), None);
    }

    #[test]
    fn details_that_quote_rows_are_masked() {
        let payload = b"SERROR\0DFailing row contains (1, ada@example.com).\0\0";
        assert_eq!(
            super::mask_fields(payload, &plan(false)).unwrap(),
            b"SERROR\0DFailing row contains ([redacted]).\0\0"
        );
        let payload = b"DKey (email)=(ada@example.com) already exists.\0\0";
        assert_eq!(
            super::mask_fields(payload, &plan(false)).unwrap(),
            b"DKey (email)=([redacted]) already exists.\0\0"
        );
        assert_eq!(
            super::mask_fields(b"DKey (id)=(1) already exists.\0\0", &plan(false)),
            None
        );
    }
}
