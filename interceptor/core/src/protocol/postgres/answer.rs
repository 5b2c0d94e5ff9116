//! The answer to one operation: collected while it passes, recorded when it is over.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{Postgres, pipeline::Expect, rows::Shape};
use crate::{
    decoder::{Peer, Step},
    limits,
    mask::MaskPlan,
    operation::Protocol,
    record::{Event, ResponseRecord, ResponseStatus, Timestamp},
};

/// What has come back for one operation so far.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) number: u64,
    pub(super) released: Timestamp,
    pub(super) masks: Arc<MaskPlan>,
    pub(super) rows: u64,
    /// Messages that reached the client and aren't recorded yet.
    pub(super) data: Vec<Bytes>,
    pub(super) bytes: u64,
    /// Where in the unsent part of the server's buffer its unsplit messages stand.
    pub(super) unsplit: Option<Range<usize>>,
    pub(super) shape: Option<Arc<Shape>>,
    /// The rows' layout is in `data` or was recorded before.
    pub(super) shape_recorded: bool,
    pub(super) status: ResponseStatus,
    /// The rest of this statement's result is kept from the client.
    pub(super) withheld: bool,
    pub(super) failed: bool,
}

impl Answer {
    pub(super) fn new(number: u64, released: Timestamp, masks: Arc<MaskPlan>) -> Self {
        Self {
            number,
            released,
            masks,
            rows: 0,
            data: Vec::new(),
            bytes: 0,
            unsplit: None,
            shape: None,
            shape_recorded: false,
            status: ResponseStatus::Continues,
            withheld: false,
            failed: false,
        }
    }

    pub(super) fn record(&mut self, now: Timestamp) -> Event {
        let (shape, masked) = match &self.shape {
            Some(shape) => {
                let message = (!self.shape_recorded).then(|| shape.message.clone());
                (message, shape.masked.clone())
            }
            None => (None, [].into()),
        };
        self.shape_recorded = true;
        Event::Response(ResponseRecord {
            number: self.number,
            protocol: Protocol::Postgres,
            status: self.status.clone(),
            rows: std::mem::take(&mut self.rows),
            bytes: std::mem::take(&mut self.bytes),
            elapsed_ns: now.0.saturating_sub(self.released.0),
            shape,
            data: std::mem::take(&mut self.data),
            masked,
        })
    }
}

impl Postgres {
    /// Sends what may be sent, and records the answers that it completes.
    pub(super) fn send_passed(&mut self) {
        if self.passed > 0 {
            let chunk = self.upstream.split_to(self.passed).freeze();
            self.passed = 0;
            for answer in self.answered.iter_mut().chain(&mut self.answer) {
                if let Some(range) = answer.unsplit.take() {
                    answer.bytes += range.len() as u64;
                    answer.data.push(chunk.slice(range));
                }
            }
            self.steps.push_back(Step::Send(Peer::Client, chunk));
        }
        for mut answer in self.answered.drain(..) {
            self.steps.push_back(Step::Record(answer.record(self.now)));
        }
        if let Some(answer) = &mut self.answer
            && answer.data.iter().map(Bytes::len).sum::<usize>() >= limits::RESPONSE_PART_BYTES
        {
            self.steps.push_back(Step::Record(answer.record(self.now)));
        }
    }

    /// The session is over: what was still awaited is recorded as such.
    pub(super) fn interrupt(&mut self) {
        self.send_accepted();
        self.flush_copied_in();
        self.send_passed();
        if let Some(mut answer) = self.answer.take() {
            if answer.status == ResponseStatus::Continues {
                answer.status = ResponseStatus::Interrupted;
            }
            self.steps.push_back(Step::Record(answer.record(self.now)));
            self.pipeline.pop();
        }
        let now = self.now;
        for expect in self.pipeline.drain() {
            if let Expect::Query(running)
            | Expect::Execute(running, _)
            | Expect::FunctionCall(running) = expect
            {
                let mut answer = Answer::new(running.number, running.released, running.masks);
                answer.status = ResponseStatus::Interrupted;
                self.steps.push_back(Step::Record(answer.record(now)));
            }
        }
    }
}
