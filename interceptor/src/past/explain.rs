//! Why a policy decides an operation of the past as it does.

use std::sync::Arc;

use interceptor_core::{
    policy::{Explanation, Policy, Replay},
    record::{SessionId, Timestamp},
};

use super::{Deed, Happened, Past};
use crate::journal::{JournalError, Reader};

/// Why an operation of the past can't be explained.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The journal can't be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It isn't there.
    #[error("there is no operation {number} in session {session} on record")]
    Nothing {
        /// The session.
        session: SessionId,
        /// The number.
        number: u64,
    },
    /// Too little of it is on record.
    #[error("what the policy says of it can't be told: {0}")]
    Untold(String),
}

/// Why `policy` decides operation `number` of `session` as it does, with what is on record of it. What agents did
/// before is counted where rules count (as if it were `at`, where that is given), so the policy has to be one that nobody else decides by.
///
/// # Errors
/// Where it isn't on record, or not as much of it as is needed.
pub fn explain(
    reader: &Reader,
    policy: &Arc<Policy>,
    session: SessionId,
    number: u64,
    at: Option<Timestamp>,
) -> Result<(Deed, Explanation), NotFound> {
    let mut replay = Replay::new(policy.clone());
    let mut past = Past::default();
    let mut found = None;
    reader.each(|record| {
        match past.take(record) {
            None => {}
            Some(Happened::Restart) => replay.forget(),
            Some(Happened::Deed(deed)) => {
                if (deed.session, deed.number) == (session, number) {
                    found = Some(deed);
                    return false;
                }
                if replay.depends_on_before()
                    && let Ok(recorded) = &deed.recorded
                {
                    // It counts, and that is all that it is for.
                    _ = replay.decide(recorded, deed.time);
                }
            }
        }
        true
    })?;
    let deed = *found.ok_or(NotFound::Nothing { session, number })?;
    let explanation = match &deed.recorded {
        Ok(recorded) => replay.explain(recorded, at.unwrap_or(deed.time)),
        Err(why) => Err(why.clone()),
    };
    let explanation = explanation.map_err(NotFound::Untold)?;
    Ok((deed, explanation))
}
