//! The queue of held operations: requests, votes, outcomes.
