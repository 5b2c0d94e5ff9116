//! The votes on one request, and what follows from them. Pure.

use interceptor_core::record::Timestamp;

use super::{reviewers::Voter, summary::Vote};

/// The votes on one request.
#[derive(Debug)]
pub(super) struct Ballot {
    quorum: u32,
    until: Timestamp,
    /// Counted votes; at most one yes a person.
    counted: Vec<(u32, Vote)>,
    /// People whose yes is on its way to the journal.
    casting: Vec<u32>,
    decided: bool,
}

/// What a counted vote leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tally {
    /// More people have to agree.
    Open,
    /// Enough agreed.
    Approved,
    /// Somebody said no.
    Rejected,
}

/// Why a vote isn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inadmissible {
    /// The outcome is already known.
    Decided,
    /// The time is over.
    TooLate,
    /// This person already agreed.
    Repeated,
}

impl Ballot {
    /// An open ballot; a quorum of none is one.
    pub(super) fn new(quorum: u32, until: Timestamp) -> Self {
        Self {
            quorum: quorum.max(1),
            until,
            counted: Vec::new(),
            casting: Vec::new(),
            decided: false,
        }
    }

    /// Reserves the place of a vote that is about to be recorded, so that one person's second yes
    /// can't slip in meanwhile. A no may always follow a yes: a person may think again.
    pub(super) fn cast(
        &mut self,
        voter: &Voter,
        approve: bool,
        now: Timestamp,
    ) -> Result<(), Inadmissible> {
        self.admit(now)?;
        if approve {
            let agreed = |(uid, vote): &(u32, Vote)| *uid == voter.uid && vote.approve;
            if self.casting.contains(&voter.uid) || self.counted.iter().any(agreed) {
                return Err(Inadmissible::Repeated);
            }
            self.casting.push(voter.uid);
        }
        Ok(())
    }

    /// Gives the place back: the vote could not be recorded.
    pub(super) fn uncast(&mut self, voter: &Voter) {
        self.casting.retain(|uid| *uid != voter.uid);
    }

    /// Counts a vote that is in the journal. The time is checked again: recording takes time too.
    pub(super) fn count(
        &mut self,
        voter: &Voter,
        vote: Vote,
        now: Timestamp,
    ) -> Result<Tally, Inadmissible> {
        self.uncast(voter);
        self.admit(now)?;
        let approve = vote.approve;
        // Whoever says no after their yes has withdrawn the yes.
        self.counted.retain(|(uid, _)| *uid != voter.uid);
        self.counted.push((voter.uid, vote));
        let tally = if !approve {
            Tally::Rejected
        } else if self.counted.len() >= self.quorum as usize {
            Tally::Approved
        } else {
            Tally::Open
        };
        self.decided = tally != Tally::Open;
        Ok(tally)
    }

    fn admit(&self, now: Timestamp) -> Result<(), Inadmissible> {
        if self.decided {
            Err(Inadmissible::Decided)
        } else if now >= self.until {
            Err(Inadmissible::TooLate)
        } else {
            Ok(())
        }
    }

    /// Whether the outcome is known, though perhaps not yet recorded.
    pub(super) const fn is_decided(&self) -> bool {
        self.decided
    }

    /// The counted votes, in order.
    pub(super) fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.counted.iter().map(|(_, vote)| vote)
    }
}
