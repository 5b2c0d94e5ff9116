//! A policy's own tests: what it is meant to say of an operation.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::Spanned;

use super::{
    Policy,
    decision::{Decision, Verdict},
    error::{Problem, unknown},
    file::{ActionSpec, CaseSpec},
};
use crate::{
    operation::{Description, Effects, Operation, Protocol, attribute},
    origin::{Agent, Destination, Origin, Process},
    record::Timestamp,
};

/// An operation in words, as cases give it; what isn't said is as it is in a case that doesn't say it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Given {
    /// The agent's name.
    pub agent: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it goes: `192.0.2.1:5432`, `unix:/run/docker.sock`.
    pub destination: Option<String>,
    /// The name that the destination has proved to have.
    pub host: Option<String>,
    /// The protocol, `postgres` unless it is said.
    pub protocol: Option<String>,
    /// What is sent, as its protocol is written in cases.
    pub statement: Option<String>,
    /// Without a statement: what is done, in the protocol's words.
    pub actions: Vec<String>,
    /// Without a statement: what that does.
    pub effects: Vec<String>,
    /// What a case is called; nothing depends on it.
    pub name: Option<String>,
    /// What a case expects; nothing depends on it.
    pub expect: Option<IgnoredAny>,
}

/// An operation that somebody gave in words, with who attempts it.
#[derive(Debug)]
pub struct Attempt {
    origin: Arc<Origin>,
    protocol: Protocol,
    statement: Option<String>,
    description: Description,
}

/// Makes an operation of a statement of a protocol, where that is known: policies know no protocols.
pub type Describe<'a> = &'a dyn Fn(Protocol, &str) -> Option<Operation>;

/// One test case.
#[derive(Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    file: String,
    line: u64,
    column: u64,
    attempt: Attempt,
    verdict: ActionSpec,
    rule: Option<String>,
}

/// How a case went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it says.
    Passed,
    /// Otherwise, with its place.
    Failed(Problem),
}

impl Given {
    /// Reads the file `name`, whose `text` is one case: its name and what it expects may be left out.
    ///
    /// # Errors
    /// What is wrong with it, with its place.
    pub fn read(name: &str, text: &str) -> Result<Self, Problem> {
        serde_saphyr::from_str(text).map_err(|error| Problem::of_yaml(name, &error))
    }

    fn of(spec: &CaseSpec) -> Self {
        let CaseSpec {
            name,
            agent,
            labels,
            destination,
            host,
            protocol,
            statement,
            actions,
            effects,
            expect: _,
        } = spec.clone();
        Self {
            agent,
            labels,
            destination,
            host,
            protocol,
            statement,
            actions,
            effects,
            name: Some(name),
            expect: None,
        }
    }
}

impl Attempt {
    /// The operation that `given` means.
    ///
    /// # Errors
    /// Where it says something that there isn't.
    pub fn new(given: &Given) -> Result<Self, String> {
        let destination = given.destination.as_deref().unwrap_or("192.0.2.1:5432");
        let destination: Destination = destination.parse().map_err(|_| {
            format!(
                "`{destination}` is no destination; `192.0.2.1:5432` and `unix:/run/docker.sock` are"
            )
        })?;
        let protocol = given.protocol.as_deref().unwrap_or("postgres");
        let protocol = Protocol::ALL
            .into_iter()
            .find(|known| known.name() == protocol)
            .ok_or_else(|| {
                unknown(
                    "protocol",
                    protocol,
                    Protocol::ALL.into_iter().map(Protocol::name),
                )
            })?;
        let mut effects = Effects::empty();
        for name in &given.effects {
            effects |= Effects::named(name).ok_or_else(|| {
                unknown(
                    "effect",
                    name,
                    Effects::NAMES.into_iter().map(|(_, name)| name),
                )
            })?;
        }
        if given.statement.is_some() != (given.actions.is_empty() && given.effects.is_empty()) {
            return Err("a case has a `statement`, or else `actions` and `effects`".to_owned());
        }
        let labels: BTreeMap<Box<str>, Box<str>> = given
            .labels
            .iter()
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect();
        let agent = Agent {
            name: given.agent.as_deref().unwrap_or("agent").into(),
            labels,
        };
        let name = given.host.iter();
        Ok(Self {
            origin: Arc::new(Origin {
                agent: Arc::new(agent),
                process: Process::default(),
                destination,
                names: name.map(|name| name.to_ascii_lowercase().into()).collect(),
            }),
            protocol,
            statement: given.statement.clone(),
            description: Description {
                actions: given
                    .actions
                    .iter()
                    .map(|action| action.as_str().into())
                    .collect(),
                effects,
                ..Description::default()
            },
        })
    }

    /// It as an operation, and of whom. A host that it asks for is one that the destination has proved to be, unless
    /// another is given.
    ///
    /// # Errors
    /// Where the statement can't be read.
    pub fn operation(&self, describe: Describe<'_>) -> Result<(Arc<Origin>, Operation), String> {
        let operation = match &self.statement {
            None => Operation {
                protocol: self.protocol,
                description: Arc::new(self.description.clone()),
                content: Bytes::new(),
                parameters: [].into(),
                options: Vec::new(),
                http: None,
            },
            Some(statement) => describe(self.protocol, statement).ok_or_else(|| {
                format!(
                    "this can't be read as {}; give `actions` and `effects`",
                    self.protocol
                )
            })?,
        };
        let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
        let origin = match claimed {
            Some(name) if self.origin.names.is_empty() => Arc::new(Origin {
                names: vec![name.clone()],
                ..(*self.origin).clone()
            }),
            _ => self.origin.clone(),
        };
        Ok((origin, operation))
    }
}

impl Case {
    pub(super) fn new(file: &str, spanned: &Spanned<CaseSpec>) -> Result<Self, Problem> {
        let (spec, place) = (&spanned.value, spanned.referenced);
        let attempt =
            Attempt::new(&Given::of(spec)).map_err(|what| Problem::at(file, place, what))?;
        Ok(Self {
            name: spec.name.clone(),
            file: file.to_owned(),
            line: place.line(),
            column: place.column(),
            attempt,
            verdict: spec.expect.verdict,
            rule: spec.expect.rule.clone(),
        })
    }

    /// What is attempted in it.
    #[must_use]
    pub const fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// Runs it against `policy`.
    pub fn run(&self, policy: &Arc<Policy>, describe: Describe<'_>) -> Outcome {
        let failed = |what: String| {
            let what = format!("test \"{}\": {what}", self.name);
            Outcome::Failed(Problem {
                file: self.file.clone(),
                line: self.line,
                column: self.column,
                what,
            })
        };
        let (origin, operation) = match self.attempt.operation(describe) {
            Ok(attempted) => attempted,
            Err(what) => return failed(what),
        };
        let super::scope::Evaluated { decision, .. } =
            Policy::scope(policy, origin).evaluate(&operation, Timestamp(0));
        let Decision { verdict, rule, .. } = &*decision;
        let found = match verdict {
            Verdict::Allow => ActionSpec::Allow,
            Verdict::Deny => ActionSpec::Deny,
            Verdict::Hold(_) => ActionSpec::Hold,
        };
        if found != self.verdict
            || self
                .rule
                .as_ref()
                .is_some_and(|expected| **expected != **rule)
        {
            let expected = match &self.rule {
                Some(rule) => format!("{:?} by `{rule}`", self.verdict),
                None => format!("{:?}", self.verdict),
            };
            return failed(
                format!(
                    "expected {}, got {found:?} by `{rule}`",
                    expected.replace("Spec", "")
                )
                .to_lowercase(),
            );
        }
        Outcome::Passed
    }
}
