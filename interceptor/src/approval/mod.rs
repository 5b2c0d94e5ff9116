//! The queue of held operations: requests, votes, outcomes.
//!
//! A held operation waits as a [`Pending`] until enough distinct people agreed, somebody said no,
//! its time is over, its agent hung up, or the daemon stops. Votes and outcomes are in the journal
//! before they take effect. Nothing in here touches a socket or a file: what records, the clock and
//! the ids are given to [`Approvals::new`].

mod ballot;
mod pending;
mod queue;
mod request;
mod restart;
mod reviewers;
mod summary;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::tests::request as example;
pub use self::{
    pending::Pending,
    queue::Approvals,
    request::{Outcome, Recorder, Request, Unrecorded, VoteError},
    restart::Unfinished,
    reviewers::{Reviewers, Voter},
    summary::{Change, Content, Detail, State, Summary, Value, Vote},
};
