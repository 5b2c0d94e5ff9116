//! Errors of the server: those that were asked for in the place of refused operations, and its own.

use std::sync::Arc;

use super::{
    Copy, Postgres,
    answer::Answer,
    backend::{Ends, Pass, forget, framed},
    mask,
    pipeline::{Expect, Ours, Refused},
    refuse,
    wire::{self, Fields, Frame, Malformed},
};
use crate::record::ResponseStatus;

impl Postgres {
    pub(super) fn error(&mut self, frame: Frame) -> Result<(Pass, Ends), Malformed> {
        let payload = self.upstream_payload(frame);
        let fields = Fields::read(payload)?;
        if fields.severity == b"FATAL" || fields.severity == b"PANIC" {
            // The server closes; nothing that it owed will come.
            return Ok((self.masked_error(frame), Ends::No));
        }
        match self.pipeline.front() {
            Some(Expect::Refused { .. }) => Ok(self.failed_as_asked()),
            Some(Expect::Query(_) | Expect::FunctionCall(_)) => {
                let pass = self.masked_error(frame);
                let status = self.error_status(&pass, frame)?;
                if self.copy == Copy::In {
                    self.copy = Copy::None;
                }
                if let Some(answer) = self.open_answer() {
                    answer.failed = true;
                    answer.withheld = false;
                    answer.status = status;
                }
                Ok((pass, Ends::No))
            }
            Some(Expect::Ours(_)) => {
                let code = String::from_utf8_lossy(fields.code).into_owned();
                self.skip_to_sync();
                let message = format!(
                    "interceptor: the server's catalogue can't be read (SQLSTATE {code}), so the result can't be masked"
                );
                let error =
                    refuse::error("ERROR", refuse::INSUFFICIENT_PRIVILEGE, &message, "", "");
                // Between segments nobody waits for this answer; what follows is masked without the catalogue.
                let alone = matches!(self.pipeline.front(), Some(Expect::Ours(Ours::Sync)));
                Ok((
                    if alone {
                        Pass::Never
                    } else {
                        Pass::Instead(error)
                    },
                    Ends::No,
                ))
            }
            Some(Expect::Ready | Expect::Sync) | None => Ok((self.masked_error(frame), Ends::No)),
            Some(_) => {
                let pass = self.masked_error(frame);
                let status = self.error_status(&pass, frame)?;
                let executing = matches!(self.pipeline.front(), Some(Expect::Execute(..)));
                if executing {
                    if let Some(answer) = self.open_answer() {
                        answer.status = status;
                    }
                    if let Some(Expect::Execute(running, _)) = self.pipeline.pop() {
                        self.after(running.described.description.effects);
                    }
                }
                self.copy = Copy::None;
                self.skip_to_sync();
                Ok((pass, if executing { Ends::After } else { Ends::No }))
            }
        }
    }

    pub(super) fn masked_error(&self, frame: Frame) -> Pass {
        match self.plan() {
            Some(plan) if !plan.is_empty() => {
                mask::mask_fields(self.upstream_payload(frame), &plan)
                    .map_or(Pass::Whole, |payload| {
                        Pass::Instead(framed(frame.tag, &payload))
                    })
            }
            _ => Pass::Whole,
        }
    }

    /// The status to record for an error, as the client gets it.
    pub(super) fn error_status(
        &self,
        pass: &Pass,
        frame: Frame,
    ) -> Result<ResponseStatus, Malformed> {
        let payload = match pass {
            Pass::Instead(bytes) => bytes.get(wire::HEADER..).unwrap_or_default(),
            _ => self.upstream_payload(frame),
        };
        let fields = Fields::read(payload)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
        Ok(ResponseStatus::Error {
            code: text(fields.code),
            message: text(fields.message),
        })
    }

    /// The server failed where it was asked to: the client gets the refusal in the place of its error.
    pub(super) fn failed_as_asked(&mut self) -> (Pass, Ends) {
        let Some(Expect::Refused { refused, ready }) = self.pipeline.pop() else {
            return (Pass::Whole, Ends::No);
        };
        let Refused { number, refusal } = refused;
        if ready {
            self.pipeline.put_back(Expect::Ready);
        } else {
            self.skip_to_sync();
        }
        let mut answer = Answer::new(number, self.now, Arc::default());
        answer.status = ResponseStatus::Refused;
        self.answer = Some(answer);
        (
            Pass::Instead(refuse::refusal(&refusal, "ERROR")),
            Ends::After,
        )
    }

    /// An error in the extended protocol: the server skips all up to Sync, so nothing else is owed.
    pub(super) fn skip_to_sync(&mut self) {
        let mut skipped = Vec::new();
        loop {
            match self.pipeline.front() {
                Some(Expect::Sync | Expect::Ours(Ours::Sync)) => break,
                Some(_) => skipped.extend(self.pipeline.pop()),
                None => {
                    self.skipping = true;
                    break;
                }
            }
        }
        // Newest first: each undo restores what its predecessor had set.
        for expect in skipped.into_iter().rev() {
            match expect {
                Expect::Parse(undo) | Expect::CloseStatement(undo) => {
                    self.names.statements.undo(undo)
                }
                Expect::Bind(undo) | Expect::ClosePortal(undo) => self.names.portals.undo(undo),
                Expect::DescribeStatement(Some(statement)) => forget(&statement.layout),
                Expect::DescribePortal(Some(portal)) | Expect::Ours(Ours::Layout(portal)) => {
                    forget(&portal.layout);
                }
                Expect::Execute(running, _) => self.skipped(running.number),
                Expect::Query(running) | Expect::FunctionCall(running) => {
                    self.pipeline.segment_answered();
                    self.skipped(running.number);
                }
                Expect::Refused { refused, ready } => {
                    if ready {
                        self.pipeline.segment_answered();
                    }
                    self.skipped(refused.number);
                }
                Expect::Ours(Ours::Catalog) => self.catalog_rows = None,
                _ => {}
            }
        }
    }

    pub(super) fn skipped(&mut self, number: u64) {
        let mut answer = Answer::new(number, self.now, Arc::default());
        answer.status = ResponseStatus::Skipped;
        self.answered.push(answer);
    }
}
