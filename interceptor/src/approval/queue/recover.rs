//! Taking up what an earlier daemon left.

use std::time::Duration;

use interceptor_core::record::{ApprovalStep, Timestamp};
use tokio::time::Instant;

use super::{Approvals, Open, WITHIN_MAX, votes::verdict};
use crate::approval::{
    ballot::{Ballot, Tally},
    grants::{End, Grant},
    restart::Recovered,
};

impl Approvals {
    /// Takes up what an earlier daemon left, as its journal has it.
    pub(crate) fn recover(&self, recovered: Recovered, now: Timestamp) {
        let mut queue = self.queue();
        for (id, granted) in recovered.granted {
            let span = Duration::from_nanos(granted.until.0.saturating_sub(now.0));
            let until = End {
                clock: granted.until,
                passes: Instant::now() + span.min(granted.span).min(WITHIN_MAX),
            };
            let grant = Grant {
                request: granted.request,
                scope: granted.scope,
                left: granted.left,
                until,
                by: granted.by,
            };
            queue.grants.add(id, grant, now);
        }
        for (id, left) in recovered.left {
            if left.waited {
                let why = "the daemon stopped".into();
                drop(self.append(id, &left.request, ApprovalStep::Left { why }));
            }
            let mut ballot = Ballot::new(left.request.terms.quorum, left.until);
            let escalated = left.escalations;
            for vote in left.votes {
                ballot.recorded(vote);
            }
            let passed = Duration::from_nanos(now.0.saturating_sub(left.requested.0));
            let groups = left.request.terms.escalate.iter().take(escalated);
            let mut open = Open {
                requested: left.requested,
                until: left.until,
                radius: left.radius,
                escalated: groups.flat_map(|step| step.groups.to_vec()).collect(),
                decided: None,
                answer: None,
                attended: None,
                request: left.request,
                ballot,
            };
            let tally = open.ballot.tally();
            if tally == Tally::Open {
                open.attended = Some(self.attend(id, &open.request, escalated, passed));
                queue.open.insert(id, open);
                continue;
            }
            // It was decided, and the daemon ended before that was on record.
            open.decided = Some((now, Instant::now()));
            let (step, outcome, state) = verdict(tally, &open.ballot);
            let recorded = self.append(id, &open.request, step);
            queue.open.insert(id, open);
            let approvals = self.clone();
            tokio::spawn(async move { approvals.answer(id, recorded.await, outcome, state) });
        }
    }
}
