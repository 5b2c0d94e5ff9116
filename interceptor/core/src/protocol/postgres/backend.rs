//! What the server answers: matched to what it owes, masked, recorded, passed on.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Copy, Phase, Postgres,
    answer::Answer,
    describe::Encoding,
    mask,
    names::{Layout, Leave, Portal},
    pipeline::{Expect, Ours},
    refuse,
    rows::{self, Shape},
    wire::{self, Frame, Malformed, Reader},
};
use crate::{
    decoder::{CancelKey, Peer, Step},
    mask::MaskPlan,
    operation::{Effects, Protocol},
    record::{Event, ResponseRecord, ResponseStatus},
};

/// What to do with a message of the server.
#[derive(Debug)]
pub(super) enum Pass {
    /// It goes to the client as it is.
    Whole,
    /// This goes in its place.
    Instead(Bytes),
    /// The client doesn't see it.
    Never,
}

/// Whether a message ends the answer to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    No,
    /// The answer ended before this message.
    Before,
    /// This message is the answer's last.
    After,
}

impl Postgres {
    /// Reads what the server has sent.
    pub(super) fn read_upstream(&mut self) {
        if self.phase == Phase::Encryption {
            return self.read_encryption_answer();
        }
        while self.phase != Phase::Closed {
            let rest = self.upstream.get(self.passed..).unwrap_or_default();
            let frame = match Frame::peek(rest, self.shared.message_bytes_max) {
                Ok(Some(frame)) if rest.len() >= frame.len => frame,
                Ok(_) => break,
                Err(malformed) => return self.upstream_violated(&malformed),
            };
            let (pass, ends) = match self.answer_message(frame) {
                Ok(what) => what,
                Err(malformed) => return self.upstream_violated(&malformed),
            };
            if ends == Ends::Before {
                self.end_answer();
            }
            match pass {
                Pass::Whole => {
                    let range = self.passed..self.passed + frame.len;
                    self.passed = range.end;
                    if let Some(answer) = &mut self.answer {
                        let start = answer
                            .unsplit
                            .as_ref()
                            .map_or(range.start, |before| before.start);
                        answer.unsplit = Some(start..range.end);
                    }
                }
                Pass::Instead(bytes) => {
                    self.send_passed();
                    self.upstream.advance(frame.len);
                    if let Some(answer) = &mut self.answer {
                        answer.bytes += bytes.len() as u64;
                        answer.data.push(bytes.clone());
                    }
                    self.send(Peer::Client, bytes);
                }
                Pass::Never => {
                    self.send_passed();
                    self.upstream.advance(frame.len);
                }
            }
            if ends == Ends::After {
                self.end_answer();
            }
        }
        self.send_passed();
    }

    /// The answer is over; it is recorded as soon as its bytes are split off.
    pub(super) fn end_answer(&mut self) {
        self.answered.extend(self.answer.take());
    }

    // === Messages ===

    pub(super) fn answer_message(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        match self.phase {
            Phase::Startup | Phase::Encryption | Phase::Cancelling | Phase::Closed => {
                return Err(Malformed(format!(
                    "message `{}` before it was asked anything",
                    frame.tag.escape_ascii()
                )));
            }
            Phase::Login => return self.answer_login(frame).map(|pass| (pass, Ends::No)),
            Phase::Authentication => {
                return self.answer_startup(frame).map(|pass| (pass, Ends::No));
            }
            Phase::Ready => {}
        }
        match frame.tag {
            b'D' => self.data_row(frame),
            b'T' => self.row_description(frame),
            b'C' | b'I' | b's' => self.completed(frame),
            b'Z' => self.ready(frame),
            b'E' => self.error(frame),
            b'1' | b'2' | b'3' | b'n' | b't' => {
                self.simple_answer(frame).map(|pass| (pass, Ends::No))
            }
            b'S' => self.parameter_status(frame).map(|pass| (pass, Ends::No)),
            b'N' | b'A' => Ok((self.unasked(frame), Ends::No)),
            b'G' | b'H' | b'W' => self.copy_starts(frame).map(|pass| (pass, Ends::No)),
            b'd' => Ok((self.copy_data(frame), Ends::No)),
            b'c' => Ok((Pass::Whole, Ends::No)),
            b'V' => self.function_result(frame),
            tag => Err(Malformed(format!(
                "message type `{}` is not one that a server sends here",
                tag.escape_ascii()
            ))),
        }
    }

    pub(super) fn upstream_payload(&self, frame: Frame) -> &[u8] {
        self.upstream
            .get(self.passed + wire::HEADER..self.passed + frame.len)
            .unwrap_or_default()
    }

    pub(super) fn upstream_frame(&self, frame: Frame) -> &[u8] {
        self.upstream
            .get(self.passed..self.passed + frame.len)
            .unwrap_or_default()
    }

    pub(super) fn unexpected(&self, frame: Frame) -> Malformed {
        Malformed(format!(
            "message `{}` where {} was due",
            frame.tag.escape_ascii(),
            self.pipeline.due()
        ))
    }

    /// While the server authenticates and introduces itself.
    pub(super) fn answer_startup(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        match frame.tag {
            b'S' => return self.parameter_status(frame),
            b'Z' => {
                self.phase = Phase::Ready;
                self.status = Reader::new(self.upstream_payload(frame), "ReadyForQuery").u8()?;
            }
            b'K' => {
                let key = CancelKey(Bytes::copy_from_slice(self.upstream_payload(frame)));
                self.steps.push_back(Step::Cancellable(key));
            }
            b'R' => return self.relay_demand(frame),
            b'E' | b'N' | b'v' => {}
            tag => {
                return Err(Malformed(format!(
                    "message `{}` during authentication",
                    tag.escape_ascii()
                )));
            }
        }
        Ok(Pass::Whole)
    }

    pub(super) fn parameter_status(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        let mut reader = Reader::new(self.upstream_payload(frame), "ParameterStatus");
        let (name, value) = (reader.string()?, reader.string()?);
        match name {
            b"standard_conforming_strings" => {
                self.lexing.standard_conforming_strings = value == b"on"
            }
            b"client_encoding" => self.lexing.encoding = Encoding::named(value),
            _ => {}
        }
        Ok(Pass::Whole)
    }

    /// NoticeResponse and NotificationResponse: at any time, for nobody's asking.
    pub(super) fn unasked(&mut self, frame: Frame) -> Pass {
        let plan = self.plan();
        let masked = match &plan {
            Some(plan) if !plan.is_empty() => match frame.tag {
                b'N' => mask::mask_fields(self.upstream_payload(frame), plan),
                _ => mask::mask_notification(self.upstream_payload(frame), plan),
            },
            _ => None,
        };
        let pass = masked.map_or(Pass::Whole, |payload| {
            Pass::Instead(framed(frame.tag, &payload))
        });
        if self.answer.is_none() {
            let message = match &pass {
                Pass::Instead(bytes) => bytes.clone(),
                _ => Bytes::copy_from_slice(self.upstream_frame(frame)),
            };
            self.steps
                .push_back(Step::Record(Event::Response(ResponseRecord {
                    number: 0,
                    protocol: Protocol::Postgres,
                    status: ResponseStatus::Complete("".into()),
                    rows: 0,
                    bytes: message.len() as u64,
                    elapsed_ns: 0,
                    shape: None,
                    data: vec![message],
                    masked: [].into(),
                })));
        }
        pass
    }

    /// The masks of the operation that is being answered, or of the last one.
    pub(super) fn plan(&self) -> Option<Arc<MaskPlan>> {
        match self.pipeline.front() {
            Some(
                Expect::Query(running)
                | Expect::Execute(running, _)
                | Expect::FunctionCall(running),
            ) => Some(running.masks.clone()),
            _ => self.last_plan.clone(),
        }
    }

    /// The answer to the operation at the front, begun if it wasn't.
    pub(super) fn open_answer(&mut self) -> Option<&mut Answer> {
        if self.answer.is_none() {
            let (Expect::Query(running)
            | Expect::Execute(running, _)
            | Expect::FunctionCall(running)) = self.pipeline.front()?
            else {
                return None;
            };
            self.answer = Some(Answer::new(
                running.number,
                running.released,
                running.masks.clone(),
            ));
            self.last_plan = Some(running.masks.clone());
        }
        self.answer.as_mut()
    }

    pub(super) fn row_description(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        let message = self
            .upstream
            .get(self.passed..self.passed + frame.len)
            .unwrap_or_default();
        match self.pipeline.front() {
            Some(Expect::Query(running)) => {
                let shape = self.shapes.shape(
                    message,
                    &running.masks,
                    self.catalog.as_ref(),
                    &running.described.description,
                )?;
                let refusal = shape.mask.refusal().map(str::to_owned);
                self.notice_unknown(&shape);
                let Some(answer) = self.open_answer() else {
                    return Ok((Pass::Whole, Ends::No));
                };
                answer.shape = Some(shape);
                answer.shape_recorded = true;
                if let Some(reason) = refusal {
                    return Ok((self.withhold(&reason), Ends::No));
                }
                Ok((Pass::Whole, Ends::No))
            }
            Some(Expect::DescribeStatement(statement)) => {
                if let Some(statement) = statement {
                    set(&statement.layout, Layout::Known(self.shapes.keep(message)));
                }
                self.pipeline.pop();
                Ok((Pass::Whole, Ends::No))
            }
            Some(Expect::DescribePortal(portal)) => {
                if let Some(portal) = portal {
                    set(&portal.layout, Layout::Known(self.shapes.keep(message)));
                }
                self.pipeline.pop();
                Ok((Pass::Whole, Ends::No))
            }
            Some(Expect::Ours(Ours::Layout(portal))) => {
                set(&portal.layout, Layout::Known(self.shapes.keep(message)));
                self.pipeline.pop();
                Ok((Pass::Never, Ends::No))
            }
            _ => Err(self.unexpected(frame)),
        }
    }

    /// A result whose layout a rule refuses is kept back whole; the client gets an error for it.
    pub(super) fn withhold(&mut self, reason: &str) -> Pass {
        if let Some(answer) = &mut self.answer {
            answer.withheld = true;
            answer.status = ResponseStatus::Refused;
        }
        let hint = "Select the masked columns themselves, without functions or casts around them.";
        Pass::Instead(refuse::error(
            "ERROR",
            refuse::INSUFFICIENT_PRIVILEGE,
            &format!("interceptor: {reason}"),
            "The statement ran, but its result was kept back.",
            hint,
        ))
    }

    pub(super) fn data_row(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        match self.pipeline.front() {
            Some(Expect::Query(_)) => {}
            Some(Expect::Execute(running, portal)) => {
                if self
                    .answer
                    .as_ref()
                    .is_none_or(|answer| answer.shape.is_none())
                {
                    let (masks, described, portal) = (
                        running.masks.clone(),
                        running.described.clone(),
                        portal.clone(),
                    );
                    self.shape_portal(&portal, &masks, &described.description)?;
                }
            }
            Some(Expect::Ours(Ours::Catalog)) => {
                self.catalog_row(frame)?;
                return Ok((Pass::Never, Ends::No));
            }
            _ => return Err(self.unexpected(frame)),
        }
        let passed = self.passed;
        let Some(answer) = self.open_answer() else {
            return Ok((Pass::Whole, Ends::No));
        };
        answer.rows += 1;
        if answer.withheld {
            return Ok((Pass::Never, Ends::No));
        }
        if answer.masks.is_empty() {
            return Ok((Pass::Whole, Ends::No));
        }
        let Some(shape) = answer.shape.clone() else {
            return Err(Malformed(
                "rows whose layout was never described, under masks".to_owned(),
            ));
        };
        if shape.mask.is_noop() {
            return Ok((Pass::Whole, Ends::No));
        }
        let payload = self
            .upstream
            .get(passed + wire::HEADER..passed + frame.len)
            .unwrap_or_default();
        let mut masked = BytesMut::with_capacity(frame.len + 64);
        let mut changed = Ok(false);
        wire::frame(&mut masked, b'D', |out| {
            changed = shape.mask.apply(payload, out)
        });
        Ok((
            if changed? {
                Pass::Instead(masked.freeze())
            } else {
                Pass::Whole
            },
            Ends::No,
        ))
    }

    /// Finds the layout of the rows that an Execute returns.
    pub(super) fn shape_portal(
        &mut self,
        portal: &Portal,
        masks: &Arc<MaskPlan>,
        description: &Arc<crate::operation::Description>,
    ) -> Result<(), Malformed> {
        let Some(message) = self.layout(portal) else {
            return Ok(());
        };
        let shape = self
            .shapes
            .shape(&message, masks, self.catalog.as_ref(), description)?;
        let refusal = shape.mask.refusal().map(str::to_owned);
        self.notice_unknown(&shape);
        if let Some(answer) = self.open_answer() {
            answer.shape = Some(shape);
        }
        match refusal {
            // It was not foreseen before the portal ran, and half a refusal would leave both sides
            // with different ideas of the pipeline.
            Some(reason) => Err(Malformed(reason)),
            None => Ok(()),
        }
    }

    /// The RowDescription of a portal's rows, where it is known.
    pub(super) fn layout(&self, portal: &Portal) -> Option<Bytes> {
        if let Ok(layout) = portal.layout.lock()
            && let Layout::Known(message) = &*layout
        {
            return Some(message.clone());
        }
        let layout = portal.statement.layout.lock().ok()?;
        match &*layout {
            Layout::Known(message) => rows::with_formats(message, &portal.result_formats).ok(),
            _ => None,
        }
    }

    /// A table that the catalogue doesn't know was made since: ask again before the next operation.
    pub(super) fn notice_unknown(&mut self, shape: &Shape) {
        if shape.mask.has_unknown_origin() {
            self.catalog = None;
        }
    }

    /// CommandComplete, EmptyQueryResponse, PortalSuspended.
    pub(super) fn completed(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        let status = match frame.tag {
            b'C' => {
                let tag = Reader::new(self.upstream_payload(frame), "CommandComplete").string()?;
                ResponseStatus::Complete(String::from_utf8_lossy(tag).into())
            }
            b's' => ResponseStatus::Complete("PORTAL SUSPENDED".into()),
            _ => ResponseStatus::Complete("".into()),
        };
        match self.pipeline.front() {
            Some(Expect::Query(_)) if frame.tag != b's' => {
                if self.copy == Copy::In {
                    self.copy = Copy::None;
                }
                let Some(answer) = self.open_answer() else {
                    return Ok((Pass::Whole, Ends::No));
                };
                // Another statement of the same message may follow with a layout of its own.
                answer.shape_recorded = true;
                if std::mem::take(&mut answer.withheld) {
                    return Ok((Pass::Never, Ends::No));
                }
                if answer.status != ResponseStatus::Refused {
                    answer.status = status;
                }
                Ok((Pass::Whole, Ends::No))
            }
            Some(Expect::Execute(..)) => {
                if let Some(answer) = self.open_answer() {
                    answer.status = status;
                }
                if let Some(Expect::Execute(running, portal)) = self.pipeline.pop() {
                    self.copy = Copy::None;
                    if frame.tag == b's' {
                        if let Ok(mut leave) = portal.leave.lock() {
                            *leave = Some(Leave::Continues(running.number, running.masks));
                        }
                    } else {
                        self.names
                            .confirm_changes(&running.described.names, &running.text);
                        self.after(running.described.description.effects);
                    }
                }
                Ok((Pass::Whole, Ends::After))
            }
            Some(Expect::Ours(Ours::Catalog)) if frame.tag == b'C' => {
                self.pipeline.pop();
                self.catalog = self.catalog_rows.take().map(|rows| Arc::new(rows.finish()));
                Ok((Pass::Never, Ends::No))
            }
            _ => Err(self.unexpected(frame)),
        }
    }

    /// An operation with `effects` has run.
    pub(super) fn after(&self, effects: Effects) {
        if !(Effects::READ | Effects::WRITE).contains(effects) {
            self.schema_may_have_changed();
        }
    }

    pub(super) fn ready(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        let status = Reader::new(self.upstream_payload(frame), "ReadyForQuery").u8()?;
        match self.pipeline.pop() {
            Some(Expect::Query(running)) => {
                let failed = self.answer.as_ref().is_some_and(|answer| answer.failed);
                if !failed {
                    self.names
                        .confirm_changes(&running.described.names, &running.text);
                }
                self.after(running.described.description.effects);
                self.copy = Copy::None;
            }
            Some(Expect::FunctionCall(_)) => self.schema_may_have_changed(),
            Some(Expect::Sync | Expect::Ready) => {}
            Some(Expect::Ours(Ours::Sync)) => {
                self.status = status;
                return Ok((Pass::Never, Ends::No));
            }
            Some(other) => {
                self.pipeline.put_back(other);
                return Err(self.unexpected(frame));
            }
            None => return Err(self.unexpected(frame)),
        }
        self.status = status;
        self.pipeline.segment_answered();
        if status == b'I' && self.pipeline.is_empty() {
            // Portals end with their transaction.
            self.names.portals.clear();
            self.names.statements.sweep(self.pipeline.answered());
        }
        Ok((Pass::Whole, Ends::Before))
    }

    /// ParseComplete, BindComplete, CloseComplete, NoData, ParameterDescription.
    pub(super) fn simple_answer(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        match (frame.tag, self.pipeline.front()) {
            (b'1', Some(Expect::Parse(_)))
            | (b'2', Some(Expect::Bind(_)))
            | (b'3', Some(Expect::CloseStatement(_) | Expect::ClosePortal(_))) => {
                self.pipeline.pop();
                Ok(Pass::Whole)
            }
            (b'1' | b'2' | b'3', Some(Expect::Ours(Ours::Complete))) => {
                self.pipeline.pop();
                Ok(Pass::Never)
            }
            (b't', Some(Expect::DescribeStatement(_))) => Ok(Pass::Whole),
            (b'n', Some(Expect::DescribeStatement(statement))) => {
                if let Some(statement) = statement {
                    set(&statement.layout, Layout::NoData);
                }
                self.pipeline.pop();
                Ok(Pass::Whole)
            }
            (b'n', Some(Expect::DescribePortal(portal))) => {
                if let Some(portal) = portal {
                    set(&portal.layout, Layout::NoData);
                }
                self.pipeline.pop();
                Ok(Pass::Whole)
            }
            (b'n', Some(Expect::Ours(Ours::Layout(portal)))) => {
                set(&portal.layout, Layout::NoData);
                self.pipeline.pop();
                Ok(Pass::Never)
            }
            _ => Err(self.unexpected(frame)),
        }
    }

    // === COPY and FunctionCall ===

    pub(super) fn copy_starts(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        if !matches!(
            self.pipeline.front(),
            Some(Expect::Query(_) | Expect::Execute(..))
        ) {
            return Err(self.unexpected(frame));
        }
        self.open_answer();
        match frame.tag {
            b'G' => self.copy = Copy::In,
            b'W' => self.copy = Copy::Both,
            _ => {}
        }
        // The client has to answer it before anything else is answered.
        if self.copy != Copy::None {
            self.barrier = false;
        }
        Ok(Pass::Whole)
    }

    pub(super) fn copy_data(&mut self, frame: Frame) -> Pass {
        let plan = self.plan();
        if let Some(answer) = self.open_answer() {
            answer.rows += 1;
        }
        match plan {
            Some(plan) if !plan.is_empty() => {
                mask::mask_copy_data(self.upstream_payload(frame), &plan)
                    .map_or(Pass::Whole, |payload| {
                        Pass::Instead(framed(frame.tag, &payload))
                    })
            }
            _ => Pass::Whole,
        }
    }

    pub(super) fn function_result(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        if !matches!(self.pipeline.front(), Some(Expect::FunctionCall(_))) {
            return Err(self.unexpected(frame));
        }
        let plan = self.plan();
        if let Some(answer) = self.open_answer() {
            answer.status = ResponseStatus::Complete("FUNCTION CALL".into());
        }
        let payload = self.upstream_payload(frame);
        let masked = plan
            .filter(|plan| !plan.is_empty())
            .and_then(|plan| mask::mask_function_result(payload, &plan))
            .map_or(Pass::Whole, |payload| Pass::Instead(framed(b'V', &payload)));
        Ok((masked, Ends::No))
    }

    pub(super) fn catalog_row(&mut self, frame: Frame) -> Result<(), Malformed> {
        let Some(mut rows) = self.catalog_rows.take() else {
            return Ok(());
        };
        let mut reader = Reader::new(self.upstream_payload(frame), "DataRow");
        let count = reader.count()?;
        let values = (0..count)
            .map(|_| reader.value())
            .collect::<Result<Vec<_>, _>>()?;
        reader.end()?;
        rows.row(&values);
        self.catalog_rows = Some(rows);
        Ok(())
    }
}

pub(super) fn framed(tag: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + wire::HEADER);
    wire::frame(&mut out, tag, |out| out.extend_from_slice(payload));
    out.freeze()
}

pub(super) fn set(layout: &std::sync::Mutex<Layout>, to: Layout) {
    if let Ok(mut layout) = layout.lock() {
        *layout = to;
    }
}

pub(super) fn forget(layout: &std::sync::Mutex<Layout>) {
    if let Ok(mut layout) = layout.lock()
        && matches!(*layout, Layout::Asked)
    {
        *layout = Layout::Unknown;
    }
}
