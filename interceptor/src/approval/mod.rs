//! The queue of held operations: requests, votes, outcomes.
//!
//! A held operation waits as a [`Pending`] until enough distinct people agreed, somebody said no,
//! its time is over, its agent hung up, or the daemon stops. Every step goes to the journal before
//! it takes effect. Nothing in here touches a socket or a file: what records, the clock and the
//! ids are given to [`Approvals::new`].

mod ballot;
mod queue;
mod restart;
mod reviewers;
mod summary;
#[cfg(test)]
mod tests;

pub use self::{
    queue::{Approvals, Outcome, Pending, Recorder, Request, Unrecorded, VoteError},
    restart::Unfinished,
    reviewers::{Reviewers, Voter},
    summary::{Change, Content, Detail, State, Summary, Value, Vote},
};
