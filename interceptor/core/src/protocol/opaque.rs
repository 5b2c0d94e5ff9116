//! Bytes that no decoder claims: one operation, decided before the first byte goes either way.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    limits,
    operation::{Description, Effects, Operation, Protocol},
    record::Timestamp,
    ruling::{Permit, Ruling},
};

/// A connection whose content isn't understood.
#[derive(Debug, Default)]
pub struct Opaque {
    state: State,
    waiting: [BytesMut; 2],
    finished: [bool; 2],
    /// Whose end was passed on.
    passed_on: [bool; 2],
    closing: Option<Closing>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    Proposed,
    Permitted,
    Closed,
}

/// Most of the first bytes that a reviewer is shown.
const SHOWN_BYTES_MAX: usize = 256;

impl Opaque {
    /// A connection that was decided already.
    #[must_use]
    pub fn permitted(_permit: Permit) -> Self {
        Self {
            state: State::Permitted,
            ..Self::default()
        }
    }

    fn operation(&self) -> Operation {
        let [client, _] = &self.waiting;
        let shown = client
            .get(..client.len().min(SHOWN_BYTES_MAX))
            .unwrap_or_default();
        Operation {
            protocol: Protocol::Opaque,
            description: Arc::new(Description {
                actions: [Box::from("CONNECT")].into(),
                effects: Effects::UNCLASSIFIED,
                ..Default::default()
            }),
            content: Bytes::copy_from_slice(shown),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        }
    }
}

const fn side(peer: Peer) -> usize {
    match peer {
        Peer::Client => 0,
        Peer::Upstream => 1,
    }
}

impl Decoder for Opaque {
    fn receive(&mut self, from: Peer, bytes: &mut BytesMut, _now: Timestamp) {
        if let Some(waiting) = self.waiting.get_mut(side(from)) {
            if waiting.is_empty() {
                std::mem::swap(waiting, bytes);
            } else {
                waiting.extend_from_slice(bytes);
            }
        }
        bytes.clear();
    }

    fn finish(&mut self, from: Peer) {
        if let Some(finished) = self.finished.get_mut(side(from)) {
            *finished = true;
        }
    }

    fn fail(&mut self, failure: &Failure) {
        self.closing = Some(Closing::Refused(failure.to_string()));
    }

    fn rule(&mut self, ruling: Ruling, _now: Timestamp) {
        match ruling {
            Ruling::Permit(_) => self.state = State::Permitted,
            // All of it that counts is there.
            Ruling::Gather => self.fail(&Failure::Unreachable("it can't be decided".to_owned())),
            Ruling::Refuse(refusal) => {
                self.closing = Some(Closing::Refused(format!(
                    "rule {}: {}",
                    refusal.rule, refusal.reason
                )));
            }
        }
    }

    fn poll(&mut self) -> Step {
        if self.state == State::Closed {
            return Step::Wait;
        }
        if let Some(closing) = self.closing.take() {
            self.state = State::Closed;
            return Step::Close(closing);
        }
        if self.state == State::New {
            self.state = State::Proposed;
            return Step::Propose(self.operation());
        }
        if self.state == State::Permitted {
            let [client, upstream] = &mut self.waiting;
            if !client.is_empty() {
                return Step::Send(Peer::Upstream, client.split().freeze());
            }
            if !upstream.is_empty() {
                return Step::Send(Peer::Client, upstream.split().freeze());
            }
            // One direction may end before the other.
            for (from, to) in [
                (Peer::Client, Peer::Upstream),
                (Peer::Upstream, Peer::Client),
            ] {
                let ended = self.finished.get(side(from)) == Some(&true);
                if let Some(passed_on) = self.passed_on.get_mut(side(from))
                    && ended
                    && !*passed_on
                {
                    *passed_on = true;
                    return Step::Finish(to);
                }
            }
        }
        // A side that waits for a ruling has no other.
        if self.finished == [true, true]
            || (self.state == State::Proposed && self.finished != [false, false])
        {
            self.state = State::Closed;
            return Step::Close(Closing::Finished);
        }
        Step::Wait
    }

    fn wants(&self, from: Peer) -> bool {
        let index = side(from);
        self.waiting
            .get(index)
            .is_some_and(|waiting| waiting.len() < limits::QUEUED_BYTES_MAX)
            && self.finished.get(index) == Some(&false)
    }
}
