//! The extended query protocol: Parse, Bind, Describe, Execute, Close.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{
    Postgres,
    describe::Described,
    frontend::{Next, Proposal},
    names::{Certainty, Leave, Portal, Prepared},
    pipeline::{Expect, Running},
    questions::ask,
    wire::{Bind, Execute, Frame, Malformed, Named, Parse},
};
use crate::{
    limits,
    operation::{Description, Effects, Operation, Protocol},
};

impl Postgres {
    pub(super) fn parse(&mut self, frame: Frame) -> Result<Next, Malformed> {
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

    pub(super) fn check_names(&self) -> Result<(), Malformed> {
        if self.names.is_full() {
            return Err(Malformed(format!(
                "more than {} prepared statements or portals in one session; close those no longer used",
                limits::NAMES_MAX
            )));
        }
        Ok(())
    }

    pub(super) fn statement_certainty(&self, name: &[u8]) -> Certainty {
        self.names
            .statements
            .certainty(name, self.pipeline.answered(), self.pipeline.current())
    }

    pub(super) fn portal_certainty(&self, name: &[u8]) -> Certainty {
        self.names
            .portals
            .certainty(name, self.pipeline.answered(), self.pipeline.current())
    }

    pub(super) fn bind(&mut self, frame: Frame) -> Result<Next, Malformed> {
        // One copy that all values share; the read buffer may be large and is needed again.
        let values = Bytes::copy_from_slice(self.payload(frame));
        let bind = Bind::read(&values)?;
        if self.statement_certainty(bind.statement) == Certainty::Wait
            || (!bind.portal.is_empty() && self.portal_certainty(bind.portal) == Certainty::Wait)
        {
            return Ok(Next::Wait);
        }
        let statement = self.statement(bind.statement);
        let name = Bytes::copy_from_slice(bind.portal);
        let portal = Arc::new(Portal {
            name: name.clone(),
            parameters: bind.values.parameters(&values, &statement.parameter_types),
            result_formats: bind.result_formats,
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

    pub(super) fn bound(&mut self, name: Bytes, portal: Arc<Portal>) {
        let undo = self
            .names
            .portals
            .set(name, Some(portal), self.pipeline.current());
        self.segment_open = true;
        self.pipeline.push(Expect::Bind(undo));
    }

    /// What the prepared statement `name` stands for, all possibilities together.
    pub(super) fn statement(&self, name: &[u8]) -> Arc<Prepared> {
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

    pub(super) fn describe(&mut self, frame: Frame) -> Result<Next, Malformed> {
        let expect = match Named::read(self.payload(frame), "Describe")? {
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

    pub(super) fn close_name(&mut self, frame: Frame) -> Result<Next, Malformed> {
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

    pub(super) fn execute(&mut self, frame: Frame) -> Result<Next, Malformed> {
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
    pub(super) fn portal(&self, name: &[u8]) -> Arc<Portal> {
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
            parameters: wire.map_or_else(|| [].into(), |wire| wire.parameters.clone()),
            result_formats: wire
                .map(|wire| wire.result_formats.clone())
                .unwrap_or_default(),
            layout: Mutex::default(),
            leave: Mutex::default(),
        })
    }
}

pub(super) fn portal_operation(
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
        http: None,
    }
}

/// A statement for a name that nobody was seen to define.
pub(super) fn unknown(kind: &str, name: &[u8]) -> Prepared {
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
pub(super) fn together<'a>(
    possible: impl Iterator<Item = (&'a Arc<Described>, &'a Bytes)>,
) -> Prepared {
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
