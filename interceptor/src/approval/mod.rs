//! The queue of held operations: requests, votes, outcomes.
//!
//! A held operation waits as a [`Pending`] until enough distinct people agreed, somebody said no, its time is over,
//! or its agent hung up. Where it may come again the question stays, and what is approved stands as a grant until it
//! does; people may agree to more like it in advance. Votes and outcomes are in the journal before they take effect,
//! and what is left there by one daemon is taken up by the next ([`Unfinished`]). Nothing in here touches a socket or a file: what records, the clock and
//! the ids are given to [`Approvals::new`].

mod ballot;
mod grants;
mod keys;
#[cfg(test)]
mod model;
mod pending;
mod queue;
mod request;
mod restart;
mod reviewers;
mod summary;
#[cfg(test)]
mod tests;

pub(crate) use self::restart::Recovered;
#[cfg(test)]
pub(crate) use self::tests::request as example;
pub use self::{
    grants::Standing,
    keys::{Consents, KeyError, SecurityKey, SecurityKeys, Signed, Site, verify},
    pending::Pending,
    queue::Approvals,
    request::{Outcome, Recorder, Request, Say, Unrecorded, VoteError, Withdrawal},
    restart::Unfinished,
    reviewers::{Reviewers, Voter},
    summary::{Change, Content, Detail, State, Summary, Value, Vote, Yours},
};
