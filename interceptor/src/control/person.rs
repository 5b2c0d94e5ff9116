//! Whoever asks for something: a person, how they came to be known, and what they may.

use std::{ffi::CString, fmt};

use axum::{extract::FromRequestParts, http::request::Parts};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};

use super::host::{Failure, FailureKind};
use crate::approval::Voter;

/// A person at the control socket or signed in at the console, who may something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    voter: Voter,
    way: Way,
    role: Role,
}

/// What somebody may. Each role may what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See everything.
    Viewer,
    /// Answer what waits, where the rule asks them.
    Reviewer,
    /// Tag, freeze, thaw and cut agents.
    Operator,
    /// Load policies again.
    Administrator,
}

/// How a person came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The kernel says who is at the other end of the control socket.
    Socket,
    /// By a link that they had made at the control socket.
    Link,
    /// As a local user, with a password.
    Password,
    /// By an OpenID provider.
    Oidc,
    /// By a token for programs.
    Token,
    /// By a chat's account that the configuration says is theirs.
    Chat,
}

/// Whom the console says that it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who.
    pub voter: Voter,
    /// How it knows.
    pub way: Way,
    /// The most that they may here, whatever their groups: a token's scope.
    #[serde(default)]
    pub at_most: Option<Role>,
}

impl Way {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "control socket",
            Self::Link => "console, by link",
            Self::Password => "console, by password",
            Self::Oidc => "console, by OpenID Connect",
            Self::Token => "token",
            Self::Chat => "chat",
        }
    }
}

impl Role {
    /// As it is written in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Reviewer => "reviewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Person {
    /// `voter`, who may what `role` says.
    ///
    /// # Errors
    /// Where they have none.
    pub fn admit(voter: Voter, way: Way, role: Option<Role>) -> Result<Self, Failure> {
        let Some(role) = role else {
            let error = format!("`{}` may do nothing here", voter.name);
            return Err(Failure::new(FailureKind::Forbidden, error).with_remedy(
                "an administrator can name one of your groups under `roles` in the configuration",
            ));
        };
        Ok(Self { voter, way, role })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.voter.name
    }

    /// What they may.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Who they are.
    #[must_use]
    pub const fn voter(&self) -> &Voter {
        &self.voter
    }

    /// Who answers a question, or takes an answer back.
    ///
    /// # Errors
    /// Where it is a program: nobody's consent.
    pub(super) fn into_voter(self) -> Result<Voter, Failure> {
        if self.way == Way::Token {
            let error = "a token is a program's, and consent is people's";
            return Err(Failure::new(FailureKind::Forbidden, error)
                .with_remedy("have somebody answer who is signed in"));
        }
        Ok(self.voter)
    }

    /// # Errors
    /// Where they may less than `least`.
    pub(super) fn may(&self, least: Role) -> Result<(), Failure> {
        if self.role >= least {
            return Ok(());
        }
        let error = format!(
            "`{}` is {} here, and this takes the role {least}",
            self.voter.name, self.role
        );
        Err(Failure::new(FailureKind::Forbidden, error)
            .with_remedy("ask somebody who has it, or an administrator for it"))
    }
}

impl fmt::Display for Person {
    /// As records name them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.voter.uid {
            Some(uid) => write!(f, "{} (uid {uid})", self.voter.name),
            None => write!(f, "{} ({})", self.voter.name, self.way.name()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Person {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts
            .extensions
            .get()
            .cloned()
            .ok_or_else(|| Failure::new(FailureKind::Forbidden, "nobody knows who is speaking"))
    }
}

/// The person behind a user id; asks the user database, which may block.
#[must_use]
pub fn user(uid: u32) -> Voter {
    // An unknown user goes by the number; a user database that fails is the same as none, which
    // can only take groups away.
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let groups = user.as_ref().map(groups).unwrap_or_default();
    let name = user.map_or_else(|| uid.to_string(), |user| user.name);
    Voter {
        name: name.into(),
        uid: Some(uid),
        groups,
    }
}

fn groups(user: &User) -> Box<[Box<str>]> {
    let Ok(name) = CString::new(user.name.as_str()) else {
        return Box::default();
    };
    let ids: Vec<Gid> = getgrouplist(&name, user.gid).unwrap_or_default();
    ids.into_iter()
        .filter_map(|id| Group::from_gid(id).ok().flatten())
        .map(|group| group.name.into())
        .collect()
}
