//! What the server still owes: one entry for each message that it will answer, in order.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{
    describe::Described,
    names::{Portal, Prepared, Undo},
};
use crate::{mask::MaskPlan, record::Timestamp, ruling::Refusal};

/// An operation that was released and whose response is awaited.
#[derive(Debug)]
pub(super) struct Running {
    /// Its number in the session.
    pub(super) number: u64,
    /// When it was released.
    pub(super) released: Timestamp,
    /// What it does.
    pub(super) described: Arc<Described>,
    /// Its text, as sent.
    pub(super) text: Bytes,
    /// What to mask in its response.
    pub(super) masks: Arc<MaskPlan>,
}

/// An operation that was refused: the server was sent something that fails in its place.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) number: u64,
    pub(super) refusal: Refusal,
}

/// One message's answer.
#[derive(Debug)]
pub(super) enum Expect {
    /// Query: anything until ReadyForQuery.
    Query(Running),
    /// Execute: rows until CommandComplete, EmptyQueryResponse, PortalSuspended or an error.
    Execute(Running, Arc<Portal>),
    /// FunctionCall: FunctionCallResponse, then ReadyForQuery.
    FunctionCall(Running),
    /// A failing message in a refused operation's place; `ready` tells whether ReadyForQuery follows.
    Refused { refused: Refused, ready: bool },
    /// ReadyForQuery after an error in a Query or FunctionCall whose answer is over.
    Ready,
    /// ParseComplete.
    Parse(Undo<Prepared>),
    /// BindComplete.
    Bind(Undo<Portal>),
    /// ParameterDescription, then RowDescription or NoData.
    DescribeStatement(Option<Arc<Prepared>>),
    /// RowDescription or NoData.
    DescribePortal(Option<Arc<Portal>>),
    /// CloseComplete.
    CloseStatement(Undo<Prepared>),
    /// CloseComplete.
    ClosePortal(Undo<Portal>),
    /// ReadyForQuery.
    Sync,
    /// Our own messages, whose answers the client doesn't see.
    Ours(Ours),
}

/// An answer to a message that interceptor put in.
#[derive(Debug)]
pub(super) enum Ours {
    /// ParseComplete, BindComplete or CloseComplete.
    Complete,
    /// The catalogue's rows until CommandComplete.
    Catalog,
    /// RowDescription or NoData of a portal, asked for on our own account.
    Layout(Arc<Portal>),
    /// ReadyForQuery.
    Sync,
}

/// The queue of what is owed.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    queue: VecDeque<Expect>,
    /// Segments whose end (Sync, Query, FunctionCall) has been sent.
    sent: u64,
    /// Segments that ReadyForQuery has answered.
    answered: u64,
}

impl Pipeline {
    pub(super) fn push(&mut self, expect: Expect) {
        let ends = matches!(
            expect,
            Expect::Query(_)
                | Expect::FunctionCall(_)
                | Expect::Sync
                | Expect::Refused { ready: true, .. }
        );
        self.queue.push_back(expect);
        self.sent += u64::from(ends);
    }

    pub(super) fn front(&self) -> Option<&Expect> {
        self.queue.front()
    }

    pub(super) fn pop(&mut self) -> Option<Expect> {
        self.queue.pop_front()
    }

    /// Puts back what was popped too early.
    pub(super) fn put_back(&mut self, expect: Expect) {
        self.queue.push_front(expect);
    }

    /// ReadyForQuery ended a segment of the client's.
    pub(super) fn segment_answered(&mut self) {
        self.answered += 1;
    }

    /// Segments that are complete; the number of the first one that isn't.
    pub(super) const fn answered(&self) -> u64 {
        self.answered
    }

    /// The number of the segment that the client is writing.
    pub(super) const fn current(&self) -> u64 {
        self.sent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Everything that is owed, oldest first; the queue is empty afterwards.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Expect> + '_ {
        self.queue.drain(..)
    }

    /// What is due next, for an error's text.
    pub(super) fn due(&self) -> &'static str {
        match self.front() {
            None => "nothing",
            Some(Expect::Query(_)) => "the answer to a Query",
            Some(Expect::Execute(..)) => "the answer to an Execute",
            Some(Expect::FunctionCall(_)) => "the answer to a FunctionCall",
            Some(Expect::Refused { .. }) => "an error",
            Some(Expect::Ready | Expect::Sync) => "ReadyForQuery",
            Some(Expect::Parse(_)) => "ParseComplete",
            Some(Expect::Bind(_)) => "BindComplete",
            Some(Expect::DescribeStatement(_) | Expect::DescribePortal(_)) => "a description",
            Some(Expect::CloseStatement(_) | Expect::ClosePortal(_)) => "CloseComplete",
            Some(Expect::Ours(_)) => "the answer to a question of interceptor's own",
        }
    }
}
