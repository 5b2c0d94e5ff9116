//! What the control API asks of the daemon.

use std::{collections::VecDeque, fmt, sync::Mutex};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use interceptor_core::record::{Event, Record, SessionId};

use super::{
    api::{Done, ErrorBody, NewDeed, NewTag, Note, PolicyStatus, PolicyText, Status, Tagged},
    links::Links,
    person::{Person, Role, Way},
};
use crate::{
    approval::{Approvals, VoteError, Voter},
    confine::Places,
    journal::{Journal, JournalError, NotErased, NotRotated, Stopped},
    kernel::KernelError,
    retention::{NotErasable, Retainer},
    secret::Source,
    sync::lock,
};

/// The daemon, as the control API sees it. All methods may block.
pub trait Host: Send + Sync + 'static {
    /// How it is.
    ///
    /// # Errors
    /// Where that can't be told.
    fn status(&self) -> Result<Status, Failure>;

    /// The certificate that clients have to trust, as PEM.
    fn authority(&self) -> String;

    /// Its own files, which no agent is to see or to change.
    fn places(&self) -> Places;

    /// All agents, by name.
    ///
    /// # Errors
    /// Where they can't be read.
    fn agents(&self) -> Result<Vec<Tagged>, Failure>;

    /// Tags an agent and records who asked for it.
    ///
    /// # Errors
    /// Where it can't be tagged or recorded.
    fn tag(&self, tag: NewTag, by: &Person) -> Result<Tagged, Failure>;

    /// Takes an agent's tag off and records who asked for it; a cgroup that was made for a launched
    /// command is emptied and removed.
    ///
    /// # Errors
    /// Where there is no such agent, or its hooks can't be removed.
    fn untag(&self, agent: &str, by: &Person) -> Result<Tagged, Failure>;

    /// Does something to an agent and records who asked for it.
    ///
    /// # Errors
    /// Where there is no such agent, or it can't be done or recorded.
    fn act(&self, deed: NewDeed, by: &Person) -> Result<Done, Failure>;

    /// What `voter`, who is known by `way`, may; nothing where they may nothing.
    fn role(&self, voter: &Voter, way: Way) -> Option<Role>;

    /// What people sign in with at the control socket, and where the console is, if there is one.
    fn console(&self) -> Option<&ConsoleDesk>;

    /// The name of the agent that process `pid` runs as, if it does.
    ///
    /// # Errors
    /// Where that can't be told, a process that is gone included: who can't be placed is refused.
    fn agent_of(&self, pid: u32) -> Result<Option<Box<str>>, Failure>;

    /// Loads the policy files again and records who asked for it.
    ///
    /// # Errors
    /// Where they are broken; the policy in force stays.
    fn reload(&self, by: &Person) -> Result<PolicyStatus, Failure>;

    /// The files of the policy in force.
    ///
    /// # Errors
    /// Where that can't be told.
    fn policy(&self) -> Result<PolicyText, Failure>;

    /// Puts something on record that concerns the daemon as a whole, as a notice of `name`.
    ///
    /// # Errors
    /// Where the journal takes nothing.
    fn note(&self, name: &str, detail: &[(&str, &str)]) -> Result<(), Failure>;

    /// Puts on record what `by` does.
    ///
    /// # Errors
    /// Where the journal takes nothing.
    fn record(&self, name: &str, by: &Person, detail: &[(&str, &str)]) -> Result<(), Failure> {
        let by = by.to_string();
        let by = [("by", by.as_str())];
        self.note(name, &[&by, detail].concat())
    }

    /// The queue of held operations.
    fn approvals(&self) -> &Approvals;

    /// The journal.
    fn journal(&self) -> &Journal;

    /// Who removes what of it isn't to be kept.
    fn retainer(&self) -> &Retainer;

    /// Whether `session` goes on.
    fn is_open(&self, session: SessionId) -> bool;
}

/// What the daemon keeps for the console.
#[derive(Debug)]
pub struct ConsoleDesk {
    /// Its address, as browsers know it.
    pub url: Box<str>,
    /// Links that sign people in.
    pub links: Links,
    /// Where the secrets of notifiers stand.
    pub secrets: Vec<Source>,
    /// What people were told.
    pub told: Told,
}

/// The latest of what people were told, so that nobody is told twice. Its daemon's, and those before it.
#[derive(Debug, Default)]
pub struct Told(Mutex<VecDeque<Note>>);

/// How many of them are kept: those of all questions that may be open.
const TOLD_MAX: usize = 10_000;

impl Told {
    /// Takes in what `record` says that was told, if it does.
    pub fn observe(&self, record: &Record) {
        if let Event::Event(notice) = &record.event
            && &*notice.name == "notified"
        {
            self.add(Note {
                name: notice.name.clone(),
                detail: notice.detail.clone(),
            });
        }
    }

    pub(super) fn add(&self, note: Note) {
        let mut all = lock(&self.0);
        if all.len() >= TOLD_MAX {
            all.pop_front();
        }
        all.push_back(note);
    }

    pub(super) fn all(&self) -> Vec<Note> {
        lock(&self.0).iter().cloned().collect()
    }
}

/// Why a request fails, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// What is wrong.
    pub error: String,
    /// What to do about it; empty where the error says it all.
    pub remedy: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The request makes no sense.
    Invalid,
    /// Whoever asks may not.
    Forbidden,
    /// What is asked for isn't there.
    Missing,
    /// It can't be done as things are.
    Conflict,
    /// It can't be done now.
    Unavailable,
    /// Something broke.
    Broken,
}

impl Failure {
    /// A failure whose error says it all.
    pub fn new(kind: FailureKind, error: impl fmt::Display) -> Self {
        Self {
            kind,
            error: error.to_string(),
            remedy: String::new(),
        }
    }

    /// The same with a remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: &str) -> Self {
        remedy.clone_into(&mut self.remedy);
        self
    }

    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: self.error.clone(),
            remedy: self.remedy.clone(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Failure {}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.kind {
            FailureKind::Invalid => StatusCode::BAD_REQUEST,
            FailureKind::Forbidden => StatusCode::FORBIDDEN,
            FailureKind::Missing => StatusCode::NOT_FOUND,
            FailureKind::Conflict => StatusCode::CONFLICT,
            FailureKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            FailureKind::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.body())).into_response()
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let kind = match error {
            KernelError::Refused(_) => FailureKind::Conflict,
            KernelError::Missing(_) => FailureKind::Missing,
            _ => FailureKind::Broken,
        };
        Self::new(kind, error)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let kind = match &error {
            JournalError::Erased(_) => FailureKind::Missing,
            _ => FailureKind::Broken,
        };
        Self::new(kind, error)
    }
}

impl From<NotErasable> for Failure {
    fn from(kept: NotErasable) -> Self {
        let (kind, remedy) = match &kept {
            NotErasable::Held(_) => (
                FailureKind::Conflict,
                "`interceptor sessions release` lets go of it",
            ),
            NotErasable::Erased(_) => (FailureKind::Conflict, ""),
            NotErasable::NotErased(not) => match not {
                NotErased::Unknown(_) => (
                    FailureKind::Missing,
                    "`interceptor sessions list` shows those on record",
                ),
                NotErased::InClear(_) => (
                    FailureKind::Conflict,
                    "`journal: {encryption: {}}` in the configuration encrypts those to come; what is in clear goes by `retention` alone",
                ),
                NotErased::Stopped(stopped) => return stopped.clone().into(),
                NotErased::Journal(_) => (FailureKind::Broken, ""),
                NotErased::Later { .. } => (FailureKind::Unavailable, ""),
            },
        };
        Self::new(kind, kept).with_remedy(remedy)
    }
}

impl From<NotRotated> for Failure {
    fn from(error: NotRotated) -> Self {
        let kind = match &error {
            NotRotated::Busy => FailureKind::Conflict,
            NotRotated::Stopped(stopped) => return stopped.clone().into(),
            NotRotated::Disk(_) | NotRotated::Unfinished => FailureKind::Unavailable,
        };
        Self::new(kind, error)
    }
}

impl From<Stopped> for Failure {
    fn from(error: Stopped) -> Self {
        Self::new(FailureKind::Unavailable, error)
            .with_remedy("make room on the disk of the state folder, then restart the daemon")
    }
}

impl From<VoteError> for Failure {
    fn from(error: VoteError) -> Self {
        let kind = match error {
            VoteError::Unknown(_) => FailureKind::Missing,
            VoteError::Ended { .. }
            | VoteError::Repeated { .. }
            | VoteError::NotAgreed { .. }
            | VoteError::NoGrant(_) => FailureKind::Conflict,
            VoteError::NotReviewer { .. }
            | VoteError::OwnAgent { .. }
            | VoteError::NoBreakGlass { .. }
            | VoteError::Unsigned { .. }
            | VoteError::Key(_)
            | VoteError::TooMuch { .. } => FailureKind::Forbidden,
            VoteError::UnfitReason
            | VoteError::ReasonMissing { .. }
            | VoteError::Shapeless { .. } => FailureKind::Invalid,
            VoteError::Unrecorded(_) => FailureKind::Unavailable,
        };
        Self::new(kind, error)
    }
}
