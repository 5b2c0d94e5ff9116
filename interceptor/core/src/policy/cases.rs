//! A policy's own tests: what it is meant to say of an operation.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
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

/// One test case.
#[derive(Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    file: String,
    line: u64,
    column: u64,
    origin: Arc<Origin>,
    protocol: Protocol,
    statement: Option<String>,
    description: Description,
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

impl Case {
    pub(super) fn new(file: &str, spanned: &Spanned<CaseSpec>) -> Result<Self, Problem> {
        let (spec, place) = (&spanned.value, spanned.referenced);
        let problem = |what: String| Problem::at(file, place, what);
        let destination = spec.destination.as_deref().unwrap_or("192.0.2.1:5432");
        let destination: Destination = destination.parse().map_err(|_| {
            problem(format!(
                "`{destination}` is no destination; `192.0.2.1:5432` and `unix:/run/docker.sock` are"
            ))
        })?;
        let protocol = spec.protocol.as_deref().unwrap_or("postgres");
        let protocol = Protocol::ALL
            .into_iter()
            .find(|known| known.name() == protocol)
            .ok_or_else(|| {
                problem(unknown(
                    "protocol",
                    protocol,
                    Protocol::ALL.into_iter().map(Protocol::name),
                ))
            })?;
        let mut effects = Effects::empty();
        for name in &spec.effects {
            effects |= Effects::named(name).ok_or_else(|| {
                problem(unknown(
                    "effect",
                    name,
                    Effects::NAMES.into_iter().map(|(_, name)| name),
                ))
            })?;
        }
        if spec.statement.is_some() != (spec.actions.is_empty() && spec.effects.is_empty()) {
            return Err(problem(
                "a case has a `statement`, or else `actions` and `effects`".to_owned(),
            ));
        }
        let labels: BTreeMap<Box<str>, Box<str>> = spec
            .labels
            .iter()
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect();
        let agent = Agent {
            name: spec.agent.as_deref().unwrap_or("agent").into(),
            labels,
        };
        Ok(Self {
            name: spec.name.clone(),
            file: file.to_owned(),
            line: place.line(),
            column: place.column(),
            origin: Arc::new(Origin {
                agent: Arc::new(agent),
                process: Process::default(),
                destination,
                names: spec
                    .host
                    .iter()
                    .map(|name| name.to_ascii_lowercase().into())
                    .collect(),
            }),
            protocol,
            statement: spec.statement.clone(),
            description: Description {
                actions: spec
                    .actions
                    .iter()
                    .map(|action| action.as_str().into())
                    .collect(),
                effects,
                ..Description::default()
            },
            verdict: spec.expect.verdict,
            rule: spec.expect.rule.clone(),
        })
    }

    /// Runs it against `policy`. `describe` makes an operation of a statement of a protocol, where that
    /// is known: policies know no protocols.
    pub fn run(
        &self,
        policy: &Arc<Policy>,
        describe: &dyn Fn(Protocol, &str) -> Option<Operation>,
    ) -> Outcome {
        let failed = |what: String| {
            let what = format!("test \"{}\": {what}", self.name);
            Outcome::Failed(Problem {
                file: self.file.clone(),
                line: self.line,
                column: self.column,
                what,
            })
        };
        let operation = match &self.statement {
            None => Operation {
                protocol: self.protocol,
                description: Arc::new(self.description.clone()),
                content: Bytes::new(),
                parameters: [].into(),
                options: Vec::new(),
                http: None,
            },
            Some(statement) => match describe(self.protocol, statement) {
                Some(operation) => operation,
                None => {
                    return failed(format!(
                        "this can't be read as {}; give `actions` and `effects`",
                        self.protocol
                    ));
                }
            },
        };
        let mut origin = (*self.origin).clone();
        let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
        if let Some(name) = claimed.filter(|_| origin.names.is_empty()) {
            origin.names.push(name.clone());
        }
        let super::scope::Evaluated { decision, .. } =
            Policy::scope(policy, Arc::new(origin)).evaluate(&operation, Timestamp(0));
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
