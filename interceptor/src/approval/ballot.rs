//! The votes on one request, and what follows from them. Pure.

use interceptor_core::record::{Choice, Timestamp, Window};

use super::{reviewers::Voter, summary::Vote};

/// The votes on one request.
///
/// A vote counts when it is on record. What stands in the way of an approval, a no or a yes that is taken back, does
/// so from the moment that it is said: whatever comes on record behind it is decided with it in mind.
#[derive(Debug)]
pub(super) struct Ballot {
    quorum: u32,
    until: Timestamp,
    /// People who agreed, each once.
    agreed: Vec<Vote>,
    /// Who said no, once somebody did.
    objection: Option<Vote>,
    /// People whose yes is on its way to the journal.
    casting: Vec<Box<str>>,
    /// Noes that are.
    objecting: u32,
    decided: bool,
}

/// What a counted vote leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tally {
    /// More people have to agree.
    Open,
    /// Enough agreed, and to this as well.
    Approved(Option<Window>),
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
    /// There is no yes of this person.
    NotAgreed,
}

impl Ballot {
    /// An open ballot; a quorum of none is one.
    pub(super) fn new(quorum: u32, until: Timestamp) -> Self {
        Self {
            quorum: quorum.max(1),
            until,
            agreed: Vec::new(),
            objection: None,
            casting: Vec::new(),
            objecting: 0,
            decided: false,
        }
    }

    /// Reserves the place of a vote that is about to be recorded, so that one person's second yes
    /// can't slip in meanwhile. A no may always follow a yes: a person may think again.
    pub(super) fn cast(
        &mut self,
        voter: &Voter,
        choice: Choice,
        now: Timestamp,
    ) -> Result<(), Inadmissible> {
        self.takes(voter, choice, now)?;
        match choice {
            Choice::Approve => self.casting.push(voter.name.clone()),
            Choice::Deny => self.objecting += 1,
            Choice::Retract => self.agreed.retain(|vote| vote.by != voter.name),
        }
        Ok(())
    }

    /// Whether a vote would be taken.
    pub(super) fn takes(
        &self,
        voter: &Voter,
        choice: Choice,
        now: Timestamp,
    ) -> Result<(), Inadmissible> {
        self.admit(now)?;
        let has_agreed = self.agreed.iter().any(|vote| vote.by == voter.name);
        match choice {
            Choice::Approve if has_agreed || self.casting.contains(&voter.name) => {
                Err(Inadmissible::Repeated)
            }
            Choice::Retract if !has_agreed => Err(Inadmissible::NotAgreed),
            Choice::Approve | Choice::Deny | Choice::Retract => Ok(()),
        }
    }

    /// Gives the place back: the vote could not be recorded. A yes that was taken back stays so.
    pub(super) fn uncast(&mut self, voter: &Voter, choice: Choice) {
        match choice {
            Choice::Approve => self.casting.retain(|name| *name != voter.name),
            Choice::Deny => self.objecting = self.objecting.saturating_sub(1),
            Choice::Retract => {}
        }
    }

    /// Counts a vote that is in the journal. The time of a yes is checked again: recording takes time too. A no
    /// that was said in time stands.
    pub(super) fn count(
        &mut self,
        voter: &Voter,
        vote: Vote,
        now: Timestamp,
    ) -> Result<Tally, Inadmissible> {
        let choice = vote.choice;
        self.uncast(voter, choice);
        match self.admit(now) {
            Err(Inadmissible::TooLate) if choice == Choice::Deny => {}
            admitted => admitted?,
        }
        match choice {
            Choice::Approve => self.agreed.push(vote),
            Choice::Deny => {
                // Whoever says no after their yes has withdrawn the yes.
                self.agreed.retain(|vote| vote.by != voter.name);
                self.objection = Some(vote);
            }
            Choice::Retract => {}
        }
        Ok(self.tally())
    }

    /// A vote that an earlier daemon recorded.
    pub(super) fn recorded(&mut self, vote: Vote) {
        self.agreed.retain(|other| other.by != vote.by);
        match vote.choice {
            Choice::Approve => self.agreed.push(vote),
            Choice::Deny => self.objection = Some(vote),
            Choice::Retract => {}
        }
    }

    /// What the votes lead to; once it is an outcome nothing changes it.
    pub(super) fn tally(&mut self) -> Tally {
        if self.objection.is_some() {
            self.decided = true;
            Tally::Rejected
        } else if self.objecting == 0 && self.agreed.len() >= self.quorum as usize {
            self.decided = true;
            Tally::Approved(self.window())
        } else {
            Tally::Open
        }
    }

    /// What all who agreed agreed to: the least of what each did.
    fn window(&self) -> Option<Window> {
        let windows = self.agreed.iter().map(|vote| vote.window);
        windows
            .reduce(|one, other| {
                let (one, other) = (one?, other?);
                Some(Window {
                    scope: one.scope.min(other.scope),
                    seconds: one.seconds.min(other.seconds),
                    at_most: one.at_most.min(other.at_most),
                })
            })
            .flatten()
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

    /// Decides it whatever the votes; `false` where they have.
    pub(super) fn decide(&mut self) -> bool {
        !std::mem::replace(&mut self.decided, true)
    }

    /// Whether nobody has said no, or is about to have.
    pub(super) const fn is_unopposed(&self) -> bool {
        self.objection.is_none() && self.objecting == 0
    }

    /// Whether the outcome is known, though perhaps not yet recorded.
    pub(super) const fn is_decided(&self) -> bool {
        self.decided
    }

    /// How many people agree.
    pub(super) const fn agreed(&self) -> usize {
        self.agreed.len()
    }

    /// The counted votes, in order.
    pub(super) fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.agreed.iter().chain(&self.objection)
    }
}
