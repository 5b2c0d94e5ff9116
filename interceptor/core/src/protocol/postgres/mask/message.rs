//! Masks on everything that isn't a row: errors, notices, notifications, copies, function results.

use bytes::BytesMut;

use super::{
    super::{catalog::Catalog, wire::Reader},
    value::put,
};
use crate::{
    mask::MaskPlan,
    operation::{Description, ResourceKind},
};

/// Whether an operation that does what `description` says touches a table with masked columns.
pub(super) fn concerns(
    plan: &MaskPlan,
    catalog: Option<&Catalog>,
    description: &Description,
) -> bool {
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
pub(super) fn mask_detail(text: &[u8], plan: &MaskPlan) -> Option<Vec<u8>> {
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
