//! Rules out of what an agent did.

use interceptor_core::policy::{Suggesting, Suggestion};

use super::{Asked, Happened, Past};
use crate::{
    journal::{JournalError, Reader},
    policies,
};

/// The rules that would have allowed what `agent` did, as far as `asked` goes; `None` where it did nothing.
///
/// # Errors
/// Where the journal can't be read.
pub fn suggest(
    reader: &Reader,
    agent: &str,
    asked: &Asked,
) -> Result<Option<Suggestion>, JournalError> {
    let mut past = Past::default();
    let mut suggesting = Suggesting::new(agent);
    reader.each(|record| {
        if let Some(Happened::Deed(deed)) = past.take(record)
            && *deed.agent == *agent
            && asked.takes(&deed.agent, deed.time)
        {
            suggesting.take(&deed.operation, &deed.decision, &deed.recorded, deed.time);
        }
        true
    })?;
    let describer = policies::describer();
    Ok(suggesting.finish(&describer))
}
