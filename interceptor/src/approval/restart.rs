//! What a crash leaves in the journal: requests that never ended.

use std::{collections::BTreeMap, sync::Arc};

use interceptor_core::record::{
    ApprovalId, ApprovalRecord, ApprovalStep, Event, Record, SessionId,
};

/// Finds the requests without an end among the records of earlier runs.
#[derive(Debug, Default)]
pub struct Unfinished {
    open: BTreeMap<ApprovalId, (Option<SessionId>, Arc<str>, ApprovalRecord)>,
}

impl Unfinished {
    /// Takes the next record of the journal, in order.
    pub fn observe(&mut self, record: &Record) {
        let Event::Approval(approval) = &record.event else {
            return;
        };
        match approval.step {
            ApprovalStep::Requested { .. } => {
                self.open.insert(
                    approval.approval,
                    (record.session, record.agent.clone(), approval.clone()),
                );
            }
            ApprovalStep::Voted { .. } => {}
            ApprovalStep::Approved
            | ApprovalStep::Refused { .. }
            | ApprovalStep::Withdrawn { .. } => {
                self.open.remove(&approval.approval);
            }
        }
    }

    /// What has to be recorded about them before the first new connection: withdrawn, because
    /// their connections ended with the daemon that held them.
    pub fn withdrawals(self) -> impl Iterator<Item = (Option<SessionId>, Arc<str>, Event)> {
        self.open.into_values().map(|(session, agent, approval)| {
            let step = ApprovalStep::Withdrawn {
                why: "the daemon stopped before an outcome".into(),
            };
            (
                session,
                agent,
                Event::Approval(ApprovalRecord { step, ..approval }),
            )
        })
    }
}
