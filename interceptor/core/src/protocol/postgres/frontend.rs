//! What the client sends, once it may ask: queries become operations, the rest is tracked and passed.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::{
    Copy, Phase, Postgres,
    describe::{Described, Reference},
    names::{Portal, Possibility},
    pipeline::Expect,
    wire::{self, Frame, FunctionCall, Malformed},
};
use crate::{
    decoder::{Closing, Step},
    limits,
    operation::{Description, Effects, Operation, Protocol, Resource, ResourceKind, Touch},
    record::{Event, OperationRecord},
};

/// What waits for a ruling. The bytes are here and nowhere else.
#[derive(Debug)]
pub(super) enum Proposal {
    Startup(Bytes),
    Cancel(Bytes),
    Query {
        frame: Bytes,
        text: Bytes,
        described: Arc<Described>,
    },
    /// A Bind whose planning alone may run code; its Execute needs no further leave.
    Bind {
        frame: Bytes,
        name: Bytes,
        portal: Arc<Portal>,
    },
    /// Its frame still stands at the front of the buffer.
    Execute {
        portal: Arc<Portal>,
        described: Arc<Described>,
    },
    FunctionCall {
        frame: Bytes,
        described: Arc<Described>,
    },
}

/// Rows that the client copies in, until they are recorded.
#[derive(Debug, Default)]
pub(super) struct CopiedIn {
    number: u64,
    description: Arc<Description>,
    rows: Vec<u8>,
    part: u64,
}

/// Further wire facts of an operation, by name.
pub(super) type Options = Vec<(Box<str>, Box<str>)>;

/// What to do with the client's next message.
pub(super) enum Next {
    /// It may be sent.
    Accept,
    /// It is dropped, as the server would drop it.
    Drop,
    /// It was taken off the buffer, or something else has to happen first.
    Taken,
    /// It has to wait.
    Wait,
}

impl Postgres {
    /// Reads what the client has sent, as far as that can be done now.
    pub(super) fn read_client(&mut self) {
        loop {
            if self.proposal.is_some() || self.phase == Phase::Closed {
                return;
            }
            if self.barrier {
                if !self.pipeline.is_empty() {
                    return;
                }
                self.barrier = false;
            }
            if let Some((number, proposal, permit)) = self.deferred.take() {
                self.permitted(number, proposal, permit);
                continue;
            }
            if self.pipeline.len() >= limits::PIPELINE_MAX {
                return;
            }
            let read = match self.phase {
                Phase::Startup => self.read_startup(),
                Phase::Login => self.read_login(),
                Phase::Authentication => self.read_authentication(),
                Phase::Ready => self.read_message(),
                Phase::Encryption | Phase::Cancelling | Phase::Closed => return,
            };
            match read {
                Ok(true) => {}
                Ok(false) => return,
                Err(malformed) => {
                    self.violated(&malformed);
                    return;
                }
            }
        }
    }

    /// The header of the client's next message, once all of it is here.
    pub(super) fn next_client_frame(&self) -> Result<Option<Frame>, Malformed> {
        let rest = self.client.get(self.accepted..).unwrap_or_default();
        let frame = Frame::peek(rest, self.shared.message_bytes_max)?;
        Ok(frame.filter(|frame| rest.len() >= frame.len))
    }

    pub(super) fn read_message(&mut self) -> Result<bool, Malformed> {
        let Some(frame) = self.next_client_frame()? else {
            return Ok(false);
        };
        match self.next(frame)? {
            Next::Accept => self.accepted += frame.len,
            Next::Drop => {
                self.send_accepted();
                self.client.advance(frame.len);
            }
            Next::Taken => {}
            Next::Wait => {
                // What was accepted before may be what the answer depends on.
                self.send_accepted();
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn next(&mut self, frame: Frame) -> Result<Next, Malformed> {
        if self.copy != Copy::None {
            return self.next_in_copy(frame);
        }
        if self.skipping && !matches!(frame.tag, b'S' | b'X') {
            return Ok(Next::Drop);
        }
        match frame.tag {
            b'Q' => self.query(frame),
            b'P' => self.parse(frame),
            b'B' => self.bind(frame),
            b'D' => self.describe(frame),
            b'E' => self.execute(frame),
            b'C' => self.close_name(frame),
            b'H' => Ok(Next::Accept),
            b'S' => {
                self.skipping = false;
                self.segment_open = false;
                self.pipeline.push(Expect::Sync);
                Ok(Next::Accept)
            }
            b'F' => self.function_call(frame),
            // Left over from a COPY that the server has already ended with an error; it drops them too.
            b'd' | b'c' | b'f' => Ok(Next::Drop),
            b'X' => {
                self.accepted += frame.len;
                self.send_accepted();
                self.client_finished = true;
                self.close(Closing::Finished);
                Ok(Next::Taken)
            }
            tag => Err(Malformed(format!(
                "message type `{}` is not one that a client sends",
                tag.escape_ascii()
            ))),
        }
    }

    pub(super) fn next_in_copy(&mut self, frame: Frame) -> Result<Next, Malformed> {
        match frame.tag {
            b'd' => {
                self.copied_in(frame);
                Ok(Next::Accept)
            }
            b'c' | b'f' => {
                self.flush_copied_in();
                if self.copy == Copy::In {
                    self.copy = Copy::None;
                    // What follows is read once the server has said what became of the COPY.
                    self.barrier = self
                        .pipeline
                        .front()
                        .is_some_and(|front| matches!(front, Expect::Query(_)));
                }
                Ok(Next::Accept)
            }
            // The server ignores both while it copies; to count them would be to disagree with it.
            b'H' | b'S' => Ok(Next::Drop),
            b'X' => {
                self.accepted += frame.len;
                self.send_accepted();
                self.close(Closing::Finished);
                Ok(Next::Taken)
            }
            tag => Err(Malformed(format!(
                "message type `{}` in the middle of a COPY",
                tag.escape_ascii()
            ))),
        }
    }

    /// The payload of the client's next message.
    pub(super) fn payload(&self, frame: Frame) -> &[u8] {
        self.client
            .get(self.accepted + wire::HEADER..self.accepted + frame.len)
            .unwrap_or_default()
    }

    /// Takes the client's next message off the buffer, whole.
    pub(super) fn take_frame(&mut self, frame: Frame) -> Bytes {
        self.send_accepted();
        self.client.split_to(frame.len).freeze()
    }

    // === Simple query ===

    pub(super) fn query(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let payload = self.payload(frame);
        let mut reader = wire::Reader::new(payload, "Query");
        reader.string()?;
        reader.end()?;
        let frame = self.take_frame(frame);
        let text = frame.slice(wire::HEADER..frame.len() - 1);
        let described = self.shared.describer.describe(&text, self.lexing);
        if !described.names.is_empty() && self.names.is_full_of_sql() {
            return Err(Malformed(format!(
                "more than {} prepared statements and cursors in one session",
                limits::NAMES_MAX
            )));
        }
        let (described, options) = self.resolve(described);
        let operation = Operation {
            protocol: Protocol::Postgres,
            description: described.description.clone(),
            content: text.clone(),
            parameters: [].into(),
            options,
            http: None,
        };
        self.propose(
            operation,
            Proposal::Query {
                frame,
                text,
                described,
            },
        );
        Ok(Next::Taken)
    }

    /// `described` with all that the names in it may stand for, and the texts that defined them.
    pub(super) fn resolve(&self, described: Arc<Described>) -> (Arc<Described>, Options) {
        if described.runs.is_empty() {
            return (described, Vec::new());
        }
        let mut description = (*described.description).clone();
        let mut options = Vec::new();
        for reference in &described.runs {
            let (kind, name) = match reference {
                Reference::Prepared(name) => ("prepared statement", name),
                Reference::Cursor(name) => ("cursor", name),
            };
            let mut add = |meaning: &Description, defined_by: &[u8]| {
                description = description.merged(meaning);
                let defined_by = String::from_utf8_lossy(defined_by);
                options.push((format!("{kind} {name}").into(), defined_by.into()));
            };
            let mut known = false;
            let sql = match reference {
                Reference::Prepared(name) => self.names.sql_statement(name),
                Reference::Cursor(name) => self.names.cursor(name),
            };
            for Possibility {
                described,
                defined_by,
            } in sql
            {
                known = true;
                add(&described.description, defined_by);
            }
            let wire = match reference {
                Reference::Prepared(name) => self.names.statements.find(name.as_bytes()).cloned(),
                Reference::Cursor(name) => self
                    .names
                    .portals
                    .find(name.as_bytes())
                    .map(|portal| portal.statement.clone()),
            };
            if let Some(statement) = wire {
                known = true;
                add(&statement.described.description, &statement.text);
            }
            if !known {
                // It may have been defined where nobody looked: in a function, before a failure.
                description.effects |= Effects::UNCLASSIFIED;
                options.push((
                    format!("{kind} {name}").into(),
                    "not seen being defined".into(),
                ));
            }
        }
        let resolved = Described {
            description: Arc::new(description),
            statements: described.statements,
            runs: [].into(),
            names: described.names.clone(),
            barrier: true,
        };
        (Arc::new(resolved), options)
    }

    // === FunctionCall ===

    pub(super) fn function_call(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let frame = self.take_frame(frame);
        let call = FunctionCall::read(frame.get(wire::HEADER..).unwrap_or_default())?;
        let name = format!("oid {}", call.function_oid);
        let description = Description {
            actions: [Box::from("FUNCTION CALL")].into(),
            effects: Effects::READ | Effects::WRITE | Effects::EXECUTE,
            resources: [Resource {
                kind: ResourceKind::Function,
                namespace: None,
                name: name.clone().into(),
                touch: Touch::Write,
            }]
            .into(),
            ..Default::default()
        };
        let described = Arc::new(Described {
            description: Arc::new(description),
            statements: 1,
            runs: [].into(),
            names: [].into(),
            barrier: true,
        });
        let parameters = call.values.parameters(&frame, &[]);
        let operation = Operation {
            protocol: Protocol::Postgres,
            description: described.description.clone(),
            content: format!("FunctionCall {name}").into(),
            parameters,
            options: Vec::new(),
            http: None,
        };
        self.propose(operation, Proposal::FunctionCall { frame, described });
        Ok(Next::Taken)
    }

    // === COPY FROM STDIN ===

    pub(super) fn copied_in(&mut self, frame: Frame) {
        if self.copied_in.rows.is_empty()
            && let Some(Expect::Query(running) | Expect::Execute(running, _)) =
                self.pipeline.front()
        {
            if self.copied_in.number != running.number {
                self.copied_in.part = 0;
            }
            self.copied_in.number = running.number;
            self.copied_in.description = running.described.description.clone();
        }
        let range = self.accepted + wire::HEADER..self.accepted + frame.len;
        self.copied_in
            .rows
            .extend_from_slice(self.client.get(range).unwrap_or_default());
        if self.copied_in.rows.len() >= limits::RESPONSE_PART_BYTES {
            self.flush_copied_in();
        }
    }

    /// Records what was copied in so far: it is part of what the agent did.
    pub(super) fn flush_copied_in(&mut self) {
        if self.copied_in.rows.is_empty() {
            return;
        }
        self.copied_in.part += 1;
        let operation = Operation {
            protocol: Protocol::Postgres,
            description: self.copied_in.description.clone(),
            http: None,
            content: std::mem::take(&mut self.copied_in.rows).into(),
            parameters: [].into(),
            options: vec![(
                "copy data, part".into(),
                self.copied_in.part.to_string().into(),
            )],
        };
        let record = OperationRecord {
            number: self.copied_in.number,
            operation,
        };
        self.steps.push_back(Step::Record(Event::Operation(record)));
    }
}
