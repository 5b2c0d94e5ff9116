//! What the client sends, once it may ask: queries become operations, the rest is tracked and passed.

use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    Copy, Phase, Postgres,
    describe::{Described, Reference},
    names::{Certainty, Layout, Leave, Portal, Possibility, Prepared},
    pipeline::{Expect, Ours, Refused, Running},
    refuse,
    wire::{self, Bind, Execute, Frame, FunctionCall, Malformed, Named, Parse},
};
use crate::{
    decoder::{Closing, Peer, Step},
    limits,
    operation::{
        Description, Effects, Operation, Parameter, Protocol, Resource, ResourceKind, Touch,
    },
    record::{Event, OperationRecord},
    ruling::{Cause, Permit, Refusal},
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
type Options = Vec<(Box<str>, Box<str>)>;

/// What to do with the client's next message.
enum Next {
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
                Phase::Authentication => self.read_authentication(),
                Phase::Ready => self.read_message(),
                Phase::Cancelling | Phase::Closed => return,
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

    fn read_message(&mut self) -> Result<bool, Malformed> {
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

    fn next(&mut self, frame: Frame) -> Result<Next, Malformed> {
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

    fn next_in_copy(&mut self, frame: Frame) -> Result<Next, Malformed> {
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
    fn payload(&self, frame: Frame) -> &[u8] {
        self.client
            .get(self.accepted + wire::HEADER..self.accepted + frame.len)
            .unwrap_or_default()
    }

    /// Takes the client's next message off the buffer, whole.
    fn take_frame(&mut self, frame: Frame) -> Bytes {
        self.send_accepted();
        self.client.split_to(frame.len).freeze()
    }

    // === Simple query ===

    fn query(&mut self, frame: Frame) -> Result<Next, Malformed> {
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
            parameters: Vec::new(),
            options,
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
    fn resolve(&self, described: Arc<Described>) -> (Arc<Described>, Options) {
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

    // === Extended query ===

    fn parse(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let parse = Parse::read(self.payload(frame))?;
        let name = Bytes::copy_from_slice(parse.statement);
        if !name.is_empty() && self.statement_certainty(&name) == Certainty::Wait {
            return Ok(Next::Wait);
        }
        let prepared = Prepared {
            text: Bytes::copy_from_slice(parse.text),
            described: self.shared.describer.describe(parse.text, self.lexing),
            parameter_types: parse.parameter_types,
            layout: Mutex::default(),
        };
        self.check_names()?;
        let undo =
            self.names
                .statements
                .set(name, Some(Arc::new(prepared)), self.pipeline.current());
        self.segment_open = true;
        self.pipeline.push(Expect::Parse(undo));
        Ok(Next::Accept)
    }

    fn check_names(&self) -> Result<(), Malformed> {
        if self.names.is_full() {
            return Err(Malformed(format!(
                "more than {} prepared statements or portals in one session; close those no longer used",
                limits::NAMES_MAX
            )));
        }
        Ok(())
    }

    fn statement_certainty(&self, name: &[u8]) -> Certainty {
        self.names
            .statements
            .certainty(name, self.pipeline.answered(), self.pipeline.current())
    }

    fn portal_certainty(&self, name: &[u8]) -> Certainty {
        self.names
            .portals
            .certainty(name, self.pipeline.answered(), self.pipeline.current())
    }

    fn bind(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let bind = Bind::read(self.payload(frame))?;
        if self.statement_certainty(bind.statement) == Certainty::Wait
            || (!bind.portal.is_empty() && self.portal_certainty(bind.portal) == Certainty::Wait)
        {
            return Ok(Next::Wait);
        }
        let statement = self.statement(bind.statement);
        // One copy that all values share; the read buffer may be large and is needed again.
        let values = Bytes::copy_from_slice(self.payload(frame));
        let bind = Bind::read(&values)?;
        let name = Bytes::copy_from_slice(bind.portal);
        let portal = Arc::new(Portal {
            name: name.clone(),
            parameters: bind.parameters(&values, &statement.parameter_types),
            result_formats: bind.result_formats.clone(),
            layout: Mutex::default(),
            leave: Mutex::default(),
            statement,
        });
        self.check_names()?;
        // Bind plans the statement, and planning evaluates functions that claim to be immutable.
        let effects = portal.statement.described.description.effects;
        if effects.intersects(Effects::EXECUTE | Effects::UNCLASSIFIED) {
            let (described, options) = self.resolve(portal.statement.described.clone());
            let operation = portal_operation(&portal, &described, options);
            let frame = self.take_frame(frame);
            self.propose(
                operation,
                Proposal::Bind {
                    frame,
                    name,
                    portal,
                },
            );
            return Ok(Next::Taken);
        }
        self.bound(name, portal);
        Ok(Next::Accept)
    }

    fn bound(&mut self, name: Bytes, portal: Arc<Portal>) {
        let undo = self
            .names
            .portals
            .set(name, Some(portal), self.pipeline.current());
        self.segment_open = true;
        self.pipeline.push(Expect::Bind(undo));
    }

    /// What the prepared statement `name` stands for, all possibilities together.
    fn statement(&self, name: &[u8]) -> Arc<Prepared> {
        let wire = self.names.statements.find(name);
        let sql = std::str::from_utf8(name).map_or(&[][..], |name| self.names.sql_statement(name));
        match (wire, sql) {
            (Some(wire), []) => wire.clone(),
            (None, []) => Arc::new(unknown("prepared statement", name)),
            (wire, sql) => {
                let wire = wire.map(|wire| (&wire.described, &wire.text));
                Arc::new(together(
                    wire.into_iter()
                        .chain(sql.iter().map(|one| (&one.described, &one.defined_by))),
                ))
            }
        }
    }

    fn describe(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let payload = Bytes::copy_from_slice(self.payload(frame));
        let expect = match Named::read(&payload, "Describe")? {
            Named::Statement(name) => {
                if self.statement_certainty(name) == Certainty::Wait {
                    return Ok(Next::Wait);
                }
                let statement = self.names.statements.find(name).cloned();
                if let Some(statement) = &statement {
                    ask(&statement.layout);
                }
                Expect::DescribeStatement(statement)
            }
            Named::Portal(name) => {
                if self.portal_certainty(name) == Certainty::Wait {
                    return Ok(Next::Wait);
                }
                let portal = self.names.portals.find(name).cloned();
                if let Some(portal) = &portal {
                    ask(&portal.layout);
                }
                Expect::DescribePortal(portal)
            }
        };
        self.segment_open = true;
        self.pipeline.push(expect);
        Ok(Next::Accept)
    }

    fn close_name(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let payload = Bytes::copy_from_slice(self.payload(frame));
        let segment = self.pipeline.current();
        let expect = match Named::read(&payload, "Close")? {
            Named::Statement(name) => {
                if self.statement_certainty(name) == Certainty::Wait {
                    return Ok(Next::Wait);
                }
                let name = payload.slice_ref(name);
                Expect::CloseStatement(self.names.statements.set(name, None, segment))
            }
            Named::Portal(name) => {
                if self.portal_certainty(name) == Certainty::Wait {
                    return Ok(Next::Wait);
                }
                let name = payload.slice_ref(name);
                Expect::ClosePortal(self.names.portals.set(name, None, segment))
            }
        };
        self.segment_open = true;
        self.pipeline.push(expect);
        Ok(Next::Accept)
    }

    fn execute(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let execute = Execute::read(self.payload(frame))?;
        if self.portal_certainty(execute.portal) == Certainty::Wait {
            return Ok(Next::Wait);
        }
        let rows_max = execute.rows_max;
        let portal = self.portal(execute.portal);
        let left = portal.leave.lock().ok().and_then(|mut leave| leave.take());
        if let Some(Leave::Granted(number, permit)) = left {
            let described = portal.statement.described.clone();
            self.permitted(number, Proposal::Execute { portal, described }, permit);
            return Ok(Next::Taken);
        }
        if let Some(Leave::Continues(number, masks)) = left {
            let running = Running {
                number,
                released: self.now,
                described: portal.statement.described.clone(),
                text: portal.statement.text.clone(),
                masks,
            };
            self.segment_open = true;
            self.pipeline.push(Expect::Execute(running, portal));
            return Ok(Next::Accept);
        }
        let (described, mut options) = self.resolve(portal.statement.described.clone());
        if rows_max > 0 {
            options.push(("row limit".into(), rows_max.to_string().into()));
        }
        let operation = portal_operation(&portal, &described, options);
        // The frame stays at the front of the buffer until it is ruled on, so that it can go in one
        // piece with the Bind before it and the Sync behind it.
        self.propose(operation, Proposal::Execute { portal, described });
        Ok(Next::Taken)
    }

    /// What the portal `name` stands for, all possibilities together.
    fn portal(&self, name: &[u8]) -> Arc<Portal> {
        let wire = self.names.portals.find(name);
        let cursors = std::str::from_utf8(name).map_or(&[][..], |name| self.names.cursor(name));
        let statement = match (wire, cursors) {
            (Some(wire), []) => return wire.clone(),
            (None, []) => unknown("portal", name),
            (wire, cursors) => {
                let wire = wire.map(|wire| (&wire.statement.described, &wire.statement.text));
                together(
                    wire.into_iter()
                        .chain(cursors.iter().map(|one| (&one.described, &one.defined_by))),
                )
            }
        };
        Arc::new(Portal {
            name: Bytes::copy_from_slice(name),
            statement: Arc::new(statement),
            parameters: wire.map(|wire| wire.parameters.clone()).unwrap_or_default(),
            result_formats: wire
                .map(|wire| wire.result_formats.clone())
                .unwrap_or_default(),
            layout: Mutex::default(),
            leave: Mutex::default(),
        })
    }

    fn function_call(&mut self, frame: Frame) -> Result<Next, Malformed> {
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
        let parameters = call
            .values
            .iter()
            .map(|(format, value)| Parameter {
                format: *format,
                type_oid: 0,
                value: value.map(|value| frame.slice_ref(value)),
            })
            .collect();
        let operation = Operation {
            protocol: Protocol::Postgres,
            description: described.description.clone(),
            content: format!("FunctionCall {name}").into(),
            parameters,
            options: Vec::new(),
        };
        self.propose(operation, Proposal::FunctionCall { frame, described });
        Ok(Next::Taken)
    }

    // === Rulings ===

    /// Releases exactly the bytes of `proposal`.
    pub(super) fn permitted(&mut self, number: u64, proposal: Proposal, permit: Permit) {
        match proposal {
            Proposal::Startup(packet) => self.start(packet),
            Proposal::Cancel(packet) => {
                self.phase = Phase::Cancelling;
                self.send(Peer::Upstream, packet);
            }
            Proposal::Query {
                frame,
                text,
                described,
            } => {
                if self.needs_answer_first(&described.description, None, &permit) {
                    self.deferred = Some((
                        number,
                        Proposal::Query {
                            frame,
                            text,
                            described,
                        },
                        permit,
                    ));
                    return;
                }
                if let Some(refusal) = self.unmaskable(&described.description, None, &permit) {
                    self.refused(
                        number,
                        Proposal::Query {
                            frame,
                            text,
                            described,
                        },
                        refusal,
                    );
                    return;
                }
                self.names.try_changes(&described.names, &text);
                self.barrier = described.barrier || !described.names.is_empty();
                let masks = permit.masks().clone();
                let running = Running {
                    number,
                    released: self.now,
                    described,
                    text,
                    masks,
                };
                self.pipeline.push(Expect::Query(running));
                self.segment_open = false;
                self.send(Peer::Upstream, frame);
            }
            Proposal::Bind {
                frame,
                name,
                portal,
            } => {
                if let Ok(mut leave) = portal.leave.lock() {
                    *leave = Some(Leave::Granted(number, permit));
                }
                self.bound(name, portal);
                self.send(Peer::Upstream, frame);
            }
            Proposal::Execute { portal, described } => {
                if self.needs_answer_first(&described.description, Some(&portal), &permit) {
                    self.deferred = Some((number, Proposal::Execute { portal, described }, permit));
                    return;
                }
                if let Some(refusal) =
                    self.unmaskable(&described.description, Some(&portal), &permit)
                {
                    self.refused(number, Proposal::Execute { portal, described }, refusal);
                    return;
                }
                self.run_portal(number, portal, described, &permit);
            }
            Proposal::FunctionCall { frame, described } => {
                let masks = permit.masks().clone();
                let text = Bytes::from_static(b"FunctionCall");
                let running = Running {
                    number,
                    released: self.now,
                    described,
                    text,
                    masks,
                };
                self.barrier = true;
                self.pipeline.push(Expect::FunctionCall(running));
                self.segment_open = false;
                self.send(Peer::Upstream, frame);
            }
        }
    }

    fn run_portal(
        &mut self,
        number: u64,
        portal: Arc<Portal>,
        described: Arc<Described>,
        permit: &Permit,
    ) {
        let masks = permit.masks().clone();
        let barrier = described.barrier || !described.names.is_empty();
        if !masks.is_empty() && !self.layout_is_coming(&portal) {
            self.ask_for_layout(&portal);
        }
        self.names
            .try_changes(&described.names, &portal.statement.text);
        let text = portal.statement.text.clone();
        let running = Running {
            number,
            released: self.now,
            described,
            text,
            masks,
        };
        self.segment_open = true;
        self.pipeline.push(Expect::Execute(running, portal));
        if let Ok(Some(frame)) = self.next_client_frame() {
            self.accepted += frame.len;
        }
        if barrier {
            self.flush_barrier();
        }
    }

    /// Has the server send what it owes, since the client isn't read on before.
    fn flush_barrier(&mut self) {
        self.send_accepted();
        let mut flush = BytesMut::with_capacity(wire::HEADER);
        wire::frame(&mut flush, b'H', |_| {});
        self.send(Peer::Upstream, flush.freeze());
        self.barrier = true;
    }

    /// Drops the bytes of `proposal` and has the server fail in their place.
    pub(super) fn refused(&mut self, number: u64, proposal: Proposal, refusal: Refusal) {
        let refused = Refused { number, refusal };
        match proposal {
            Proposal::Startup(_) | Proposal::Cancel(_) => {
                let error = refuse::refusal(&refused.refusal, "FATAL");
                self.send(Peer::Client, error);
                self.close(Closing::Refused(refused.refusal.reason.to_string()));
            }
            Proposal::Query { .. } => {
                self.pipeline.push(Expect::Refused {
                    refused,
                    ready: true,
                });
                self.segment_open = false;
                self.send(Peer::Upstream, refuse::failing_query());
            }
            Proposal::FunctionCall { .. } => {
                self.pipeline.push(Expect::Refused {
                    refused,
                    ready: true,
                });
                self.segment_open = false;
                self.send(Peer::Upstream, refuse::failing_call());
            }
            Proposal::Bind { .. } | Proposal::Execute { .. } => {
                self.send_accepted();
                if matches!(proposal, Proposal::Execute { .. })
                    && let Ok(Some(frame)) = self.next_client_frame()
                {
                    self.client.advance(frame.len);
                }
                self.pipeline.push(Expect::Refused {
                    refused,
                    ready: false,
                });
                self.segment_open = true;
                // The server discards all that follows up to Sync; what it would discard isn't sent.
                self.skipping = true;
                self.send(Peer::Upstream, refuse::failing_parse());
            }
        }
    }

    // === Questions of our own ===

    /// Puts in what has to be known about the server's tables before this operation's rows can be
    /// masked; whether the operation has to wait for the answer.
    fn needs_answer_first(
        &mut self,
        description: &Description,
        portal: Option<&Arc<Portal>>,
        permit: &Permit,
    ) -> bool {
        let plan = permit.masks().clone();
        if plan.columns.is_empty() || self.replication || self.status == b'E' {
            return false;
        }
        let mut waits = false;
        if self.catalog_is_stale() {
            self.ask_for_catalog(&plan);
            waits = copies_out(description) || plan.is_strict();
        }
        if let Some(portal) = portal
            && plan.is_strict()
            && !self.layout_is_known(portal)
        {
            if !self.layout_is_coming(portal) {
                self.ask_for_layout(portal);
            }
            waits = true;
        }
        if waits {
            self.flush_barrier();
        }
        waits
    }

    /// Why the result of an operation can't be masked as its rules want, where that is so.
    fn unmaskable(
        &mut self,
        description: &Arc<Description>,
        portal: Option<&Arc<Portal>>,
        permit: &Permit,
    ) -> Option<Refusal> {
        let plan = permit.masks();
        if plan.columns.is_empty() {
            return None;
        }
        let reason = if copies_out(description) {
            super::mask::copy_out_refusal(plan, self.catalog.as_deref(), description)
        } else if plan.is_strict()
            && let Some(portal) = portal
        {
            match self.layout(portal) {
                Some(message) => {
                    let shape = self
                        .shapes
                        .shape(&message, plan, self.catalog.as_ref(), description)
                        .ok()?;
                    shape.mask.refusal().map(str::to_owned)
                }
                None => None,
            }
        } else {
            None
        }?;
        let rule = permit.decision().rule.clone();
        Some(Refusal {
            cause: Cause::Denied,
            rule,
            reason: reason.into(),
            approval: None,
        })
    }

    /// Asks the server what tables and views there are, between the client's own messages.
    fn ask_for_catalog(&mut self, plan: &crate::mask::MaskPlan) {
        const NAME: &[u8] = b"interceptor catalog";
        let Some(text) = super::catalog::Catalog::query(plan) else {
            return;
        };
        self.send_accepted();
        let mut out = BytesMut::new();
        // A statement of that name may be left from an attempt that failed half way.
        Named::Statement(NAME).encode(b'C', &mut out);
        Parse::encode(NAME, text.as_bytes(), &mut out);
        Bind::encode_plain(NAME, NAME, &mut out);
        Execute::encode(NAME, &mut out);
        Named::Statement(NAME).encode(b'C', &mut out);
        for ours in [
            Ours::Complete,
            Ours::Complete,
            Ours::Complete,
            Ours::Catalog,
            Ours::Complete,
        ] {
            self.pipeline.push(Expect::Ours(ours));
        }
        if !self.segment_open {
            wire::frame(&mut out, b'S', |_| {});
            self.pipeline.push(Expect::Ours(Ours::Sync));
        }
        // As of now: what changes while the server answers makes it stale again.
        self.catalog_epoch = self
            .shared
            .schema_epoch
            .load(std::sync::atomic::Ordering::Relaxed);
        self.catalog_rows = Some(super::catalog::CatalogBuilder::default());
        self.send(Peer::Upstream, out.freeze());
    }

    fn ask_for_layout(&mut self, portal: &Arc<Portal>) {
        self.send_accepted();
        ask(&portal.layout);
        let mut out = BytesMut::new();
        Named::Portal(&portal.name).encode(b'D', &mut out);
        self.segment_open = true;
        self.pipeline
            .push(Expect::Ours(Ours::Layout(portal.clone())));
        self.send(Peer::Upstream, out.freeze());
    }

    fn layout_is_coming(&self, portal: &Portal) -> bool {
        asked(&portal.layout) || asked(&portal.statement.layout)
    }

    fn layout_is_known(&self, portal: &Portal) -> bool {
        [&portal.layout, &portal.statement.layout]
            .into_iter()
            .any(|layout| {
                layout
                    .lock()
                    .is_ok_and(|layout| matches!(*layout, Layout::Known(_) | Layout::NoData))
            })
    }

    // === COPY FROM STDIN ===

    fn copied_in(&mut self, frame: Frame) {
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
            content: std::mem::take(&mut self.copied_in.rows).into(),
            parameters: Vec::new(),
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

fn portal_operation(
    portal: &Portal,
    described: &Described,
    options: Vec<(Box<str>, Box<str>)>,
) -> Operation {
    Operation {
        protocol: Protocol::Postgres,
        description: described.description.clone(),
        content: portal.statement.text.clone(),
        parameters: portal.parameters.clone(),
        options,
    }
}

fn copies_out(description: &Description) -> bool {
    description
        .actions
        .iter()
        .any(|action| action.starts_with("COPY TO"))
}

fn ask(layout: &Mutex<Layout>) {
    if let Ok(mut layout) = layout.lock()
        && matches!(*layout, Layout::Unknown)
    {
        *layout = Layout::Asked;
    }
}

fn asked(layout: &Mutex<Layout>) -> bool {
    layout
        .lock()
        .is_ok_and(|layout| !matches!(*layout, Layout::Unknown))
}

/// A statement for a name that nobody was seen to define.
fn unknown(kind: &str, name: &[u8]) -> Prepared {
    let description = Description {
        actions: [Box::from("UNCLASSIFIED")].into(),
        effects: Effects::UNCLASSIFIED,
        ..Default::default()
    };
    let described = Described {
        description: Arc::new(description),
        statements: 1,
        runs: [].into(),
        names: [].into(),
        barrier: true,
    };
    Prepared {
        text: format!("{kind} \"{}\", not seen being defined", name.escape_ascii()).into(),
        described: Arc::new(described),
        parameter_types: Vec::new(),
        layout: Mutex::default(),
    }
}

/// One statement that stands for all of the possible ones.
fn together<'a>(possible: impl Iterator<Item = (&'a Arc<Described>, &'a Bytes)>) -> Prepared {
    let mut description = Description::default();
    let mut texts = Vec::new();
    for (described, text) in possible {
        description = description.merged(&described.description);
        texts.push(text.clone());
    }
    let text = match &*texts {
        [one] => one.clone(),
        _ => texts.join(&b"\n-- or --\n"[..]).into(),
    };
    let described = Described {
        description: Arc::new(description),
        statements: 1,
        runs: [].into(),
        names: [].into(),
        barrier: true,
    };
    Prepared {
        text,
        described: Arc::new(described),
        parameter_types: Vec::new(),
        layout: Mutex::default(),
    }
}
