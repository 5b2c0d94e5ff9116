//! What people say: votes, break-glass, and taking back what was approved.

use std::sync::Arc;

use interceptor_core::{
    record::{ApprovalId, ApprovalStep, Choice, Consent, Timestamp, Window},
    ruling::{Cause, WindowScope},
};
use tokio::time::Instant;

use super::{Approvals, Open, refused};
use crate::approval::{
    ballot::{Ballot, Inadmissible, Tally},
    grants::Standing,
    keys::Signed,
    request::{Outcome, REASON_BYTES_MAX, Request, Say, Unrecorded, VoteError},
    reviewers::{Asked, Reviewers, Voter},
    summary::{Change, State, Summary, Vote, Yours},
};

impl Approvals {
    /// Counts what `voter` says, once it is in the journal, and answers the request where that
    /// decides it. Goes on even if the caller stops waiting.
    ///
    /// # Errors
    /// When the vote doesn't count; the error says why.
    pub async fn vote(&self, id: ApprovalId, voter: Voter, say: Say) -> Result<Summary, VoteError> {
        if !is_fit(&say.reason) {
            return Err(VoteError::UnfitReason);
        }
        let signed = say.signed.filter(|_| say.choice == Choice::Approve);
        let vote = Vote {
            by: voter.name.clone(),
            choice: say.choice,
            reason: say.reason,
            window: say.window.filter(|_| say.choice == Choice::Approve),
            time: (self.0.clock)(),
        };
        let approvals = self.clone();
        // A task of its own: a reviewer's connection that breaks in the middle must not leave a
        // vote that is in the journal but was never counted.
        in_its_own_task(async move { approvals.cast(id, voter, vote, signed).await }).await
    }

    /// Adds to those of `summaries` that wait what `voter` may answer, by what decides on votes.
    pub fn tell_what_counts(&self, voter: &Voter, summaries: &mut [Summary]) {
        let queue = self.queue();
        let now = (self.0.clock)();
        for summary in summaries {
            let open = queue.open.get(&summary.id);
            summary.yours = open.map(|open| open.yours(summary.id, &self.0.reviewers, voter, now));
        }
    }

    /// Lets a request through on the word of `voter` alone, once that is in the journal.
    ///
    /// # Errors
    /// Where `voter` may not, gives no reason, or it is over.
    pub async fn override_alone(
        &self,
        id: ApprovalId,
        voter: Voter,
        reason: &str,
    ) -> Result<Summary, VoteError> {
        if !is_fit(reason) {
            return Err(VoteError::UnfitReason);
        }
        let (approvals, reason) = (self.clone(), Box::from(reason));
        in_its_own_task(async move { approvals.break_glass(id, voter, reason).await }).await
    }

    /// Has nothing more go by an approval, at once.
    ///
    /// # Errors
    /// Where nothing does, or `voter` is none of those who may vote on it.
    pub async fn revoke(
        &self,
        id: ApprovalId,
        voter: &Voter,
        reason: &str,
    ) -> Result<Standing, VoteError> {
        if !is_fit(reason) {
            return Err(VoteError::UnfitReason);
        }
        let (standing, recorded) = {
            let mut queue = self.queue();
            let request = match queue.grants.get(id) {
                Some(grant) => grant.request.clone(),
                None => return Err(VoteError::NoGrant(id)),
            };
            let later = request.terms.escalate.iter();
            let escalated: Vec<_> = later.flat_map(|step| step.groups.to_vec()).collect();
            let asked = request.asked(&escalated);
            let reviewers = &self.0.reviewers;
            if !reviewers.admit(voter, asked) && !reviewers.may_break_glass(voter) {
                return Err(not_reviewer(id, voter, asked));
            }
            // Whether it can be recorded or not.
            let Some(mut grant) = queue.grants.remove(id) else {
                return Err(VoteError::NoGrant(id));
            };
            grant.left = 0;
            let step = ApprovalStep::Revoked {
                by: voter.name.clone(),
                reason: reason.into(),
            };
            (grant.standing(id), self.append(id, &request, step))
        };
        self.tell(Change::Revoked(Box::new(standing.clone())));
        recorded.await?;
        Ok(standing)
    }

    /// See [`Self::vote`]; the three steps are: admit and append, wait for the disk, count.
    async fn cast(
        &self,
        id: ApprovalId,
        voter: Voter,
        vote: Vote,
        signed: Option<Signed>,
    ) -> Result<Summary, VoteError> {
        let choice = vote.choice;
        let mut consent = None;
        let durable = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            open.admits(id, &self.0.reviewers, (&voter, choice), now)?;
            if choice == Choice::Approve {
                open.request.may_be_approved(id, &vote)?;
                let keys = self.0.reviewers.keys();
                if let Some(signed) = &signed {
                    let text = Consent::text(id, &open.request.digest, vote.window);
                    consent = Some(keys.consent(&voter.name, signed, &text)?.into());
                } else if open.request.terms.security_key {
                    let link = keys.link(id);
                    return Err(VoteError::Unsigned { id, link });
                }
            }
            if let Err(why) = open.ballot.cast(&voter, choice, now) {
                return Err(open.inadmissible(id, &voter, why));
            }
            let step = ApprovalStep::Voted {
                by: vote.by.clone(),
                uid: voter.uid,
                choice,
                reason: vote.reason.clone(),
                window: vote.window,
                consent,
            };
            self.append(id, &open.request, step)
        };
        if let Err(error) = durable.await {
            if let Some(open) = self.queue().open.get_mut(&id) {
                open.ballot.uncast(&voter, choice);
            }
            return Err(error.into());
        }
        let (durable, outcome, state) = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            let tally = match open.ballot.count(&voter, vote, now) {
                Ok(tally) => tally,
                Err(why) => return Err(open.inadmissible(id, &voter, why)),
            };
            let summary = open.summary(id, State::Pending);
            self.tell(Change::Voted(Box::new(summary.clone())));
            if tally == Tally::Open {
                return Ok(summary);
            }
            open.decided = Some((now, Instant::now()));
            let (step, outcome, state) = verdict(tally, &open.ballot);
            (self.append(id, &open.request, step), outcome, state)
        };
        self.answer(id, durable.await, outcome, state)
    }

    /// See [`Self::override_alone`].
    async fn break_glass(
        &self,
        id: ApprovalId,
        voter: Voter,
        reason: Box<str>,
    ) -> Result<Summary, VoteError> {
        let (recorded, state) = {
            let mut queue = self.queue();
            let now = (self.0.clock)();
            let Some(open) = queue.open.get_mut(&id) else {
                return Err(queue.gone(id));
            };
            if !self.0.reviewers.may_break_glass(&voter) {
                return Err(VoteError::NoBreakGlass {
                    name: voter.name,
                    groups: self.0.reviewers.break_glass().to_vec(),
                });
            }
            open.request.is_not_of(&voter)?;
            if reason.trim().is_empty() {
                return Err(VoteError::ReasonMissing { id });
            }
            if now >= open.until {
                return Err(open.inadmissible(id, &voter, Inadmissible::TooLate));
            }
            if !open.ballot.decide() {
                return Err(open.inadmissible(id, &voter, Inadmissible::Decided));
            }
            open.decided = Some((now, Instant::now()));
            let by = voter.name;
            tracing::warn!(approval = %id, %by, %reason, agent = &*open.request.origin.agent.name, "an operation is let through by one person's word: break-glass");
            let step = ApprovalStep::Overridden {
                by: by.clone(),
                reason: reason.clone(),
            };
            let recorded = self.append(id, &open.request, step);
            (recorded, State::Overridden { by, reason })
        };
        self.answer(id, recorded.await, Outcome::Approved, state)
    }
}

impl Open {
    /// Whether `choice` of `voter` may count, given what it takes besides: a reason, a signature.
    fn admits(
        &self,
        id: ApprovalId,
        reviewers: &Reviewers,
        (voter, choice): (&Voter, Choice),
        now: Timestamp,
    ) -> Result<(), VoteError> {
        let asked = self.request.asked(&self.escalated);
        if !reviewers.admit(voter, asked) {
            return Err(not_reviewer(id, voter, asked));
        }
        if choice == Choice::Approve {
            self.request.is_not_of(voter)?;
        }
        let taken = self.ballot.takes(voter, choice, now);
        taken.map_err(|why| self.inadmissible(id, voter, why))
    }

    /// What of `voter` would count now.
    fn yours(&self, id: ApprovalId, reviewers: &Reviewers, voter: &Voter, now: Timestamp) -> Yours {
        let admits = |choice| self.admits(id, reviewers, (voter, choice), now);
        let choices = [Choice::Approve, Choice::Deny, Choice::Retract];
        let may = choices.into_iter().filter(|choice| admits(*choice).is_ok());
        Yours {
            may: may.collect(),
            why: admits(Choice::Approve).map_or_else(|why| why.to_string().into(), |()| "".into()),
            r#override: reviewers.may_break_glass(voter) && self.request.is_not_of(voter).is_ok(),
        }
    }
}

impl Request {
    /// Nobody approves what their own agent asks for.
    fn is_not_of(&self, voter: &Voter) -> Result<(), VoteError> {
        if voter.owns(&self.origin.agent) {
            return Err(VoteError::OwnAgent {
                name: voter.name.clone(),
                agent: self.origin.agent.name.clone(),
            });
        }
        Ok(())
    }

    /// Whether `vote` is a yes that its terms allow.
    fn may_be_approved(&self, id: ApprovalId, vote: &Vote) -> Result<(), VoteError> {
        if self.terms.reason && vote.reason.trim().is_empty() {
            return Err(VoteError::ReasonMissing { id });
        }
        let Some(Window {
            scope,
            seconds,
            at_most,
        }) = vote.window
        else {
            return Ok(());
        };
        let limits = self.terms.windows;
        let is_within = limits.is_some_and(|limits| {
            scope <= limits.scope
                && (1..=limits.span.as_secs()).contains(&seconds)
                && (1..=limits.at_most).contains(&at_most)
        });
        if !is_within {
            return Err(VoteError::TooMuch { id, limits });
        }
        if scope == WindowScope::Shape && self.shape.is_none() {
            return Err(VoteError::Shapeless { id });
        }
        Ok(())
    }
}

async fn in_its_own_task(
    work: impl Future<Output = Result<Summary, VoteError>> + Send + 'static,
) -> Result<Summary, VoteError> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(Unrecorded("interceptor is stopping".to_owned()).into()))
}

fn is_fit(reason: &str) -> bool {
    reason.len() <= REASON_BYTES_MAX && !reason.contains(char::is_control)
}

fn not_reviewer(id: ApprovalId, voter: &Voter, asked: Asked<'_>) -> VoteError {
    VoteError::NotReviewer {
        id,
        name: voter.name.clone(),
        who: asked.to_string(),
    }
}

/// What is recorded and answered where the votes are an outcome.
pub(super) fn verdict(tally: Tally, ballot: &Ballot) -> (ApprovalStep, Outcome, State) {
    match tally {
        Tally::Approved(window) => (
            ApprovalStep::Approved { window },
            Outcome::Approved,
            State::Approved,
        ),
        Tally::Rejected | Tally::Open => {
            let cause = Cause::Rejected;
            let objection = ballot.votes().find(|vote| vote.choice == Choice::Deny);
            let reason = objection.map_or_else(|| Arc::from(""), rejection);
            let outcome = Outcome::Refused { cause, reason };
            (refused(cause), outcome, State::Refused { cause })
        }
    }
}

/// What the agent is told; "rejected: " stands before it.
fn rejection(vote: &Vote) -> Arc<str> {
    if vote.reason.is_empty() {
        format!("by {}", vote.by).into()
    } else {
        format!("{} (by {})", vote.reason, vote.by).into()
    }
}
