//! `interceptor policy explain`: which rule decides an operation, and why each other one doesn't.

use std::{fmt::Write as _, fs, path::PathBuf, process::ExitCode, sync::Arc};

use interceptor_core::{
    operation::{Operation, Protocol, attribute},
    origin::Origin,
    policy::{Answer, Attempt, Explanation, Given, Policy, RuleExplained, Standing},
    record::{SessionId, Timestamp},
};
use serde_json::{Value, json};

use super::{
    super::{
        Context, Outcome,
        display::{Style, inert, paint, print, table, time},
        export::moment,
        failed::Failed,
        tag::labels,
    },
    invalid,
    past::Source,
};
use crate::{
    control::Label,
    past::{self, Deed},
    policies,
};

/// Say which rule decides an operation, and why each other one doesn't
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An operation that is on record is given by session and number, any other as in a policy's cases. \
                        Examples:
  interceptor policy explain --session 8d3f00a1b2c4e5f6 --operation 3
  interceptor policy explain --session 8d3f00a1b2c4e5f6 --operation 3 new.yaml
  interceptor policy explain policies/postgres.yaml --statement 'DROP TABLE customers' --agent reporter
  interceptor policy explain policies/web.yaml --protocol http --statement 'GET https://example.com/'
  interceptor policy explain policies --case case.yaml"
)]
pub(in super::super) struct Arguments {
    /// A policy file or a folder of them [default: the configured one]
    path: Option<PathBuf>,
    /// The session of an operation on record
    #[arg(long, value_name = "ID", requires = "operation", conflicts_with_all = ["case", "given"])]
    session: Option<SessionId>,
    /// Its number in there
    #[arg(long, value_name = "N", requires = "session")]
    operation: Option<u64>,
    #[command(flatten)]
    source: Source,
    /// A file with an operation as one of a policy's cases gives it: `{agent: …, protocol: …, statement: …}`
    #[arg(long, value_name = "FILE", conflicts_with = "given")]
    case: Option<PathBuf>,
    #[command(flatten)]
    given: Spoken,
    /// As if it were this time, where a rule asks for one [default: now, or when it was attempted]
    #[arg(long, value_name = "T", value_parser = moment)]
    at: Option<Timestamp>,
}

/// An operation on the command line.
#[derive(Debug, clap::Args)]
#[group(id = "given", multiple = true)]
struct Spoken {
    /// What is sent: a statement, `GET https://host/path`, `A name`
    #[arg(long, value_name = "TEXT")]
    statement: Option<String>,
    /// Who attempts it
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// A label of it
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<Label>,
    /// Where it goes: 192.0.2.1:5432, unix:/run/docker.sock
    #[arg(long, value_name = "ADDRESS")]
    destination: Option<String>,
    /// The name that the destination has proved to have; of TLS, what the client calls it
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The protocol [default: postgres]
    #[arg(long, value_name = "NAME")]
    protocol: Option<String>,
    /// Without a statement: what is done
    #[arg(long, value_name = "NAME")]
    action: Vec<String>,
    /// Without a statement: what that does (read, write, schema, …)
    #[arg(long, value_name = "NAME")]
    effect: Vec<String>,
}

/// What is explained.
struct Explained {
    agent: String,
    destination: String,
    operation: Operation,
    /// Of one that is on record.
    deed: Option<Deed>,
    explanation: Explanation,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let path = arguments.path.as_ref().unwrap_or(&context.config.policies);
    let policy = match policies::parse(path) {
        Ok(policy) => Arc::new(policy),
        Err(error) => return invalid(context, &error),
    };
    let explained = match (arguments.session, arguments.operation) {
        (Some(session), Some(number)) => {
            let reader = arguments.source.reader(context)?;
            let found = past::explain(&reader, &policy, session, number, arguments.at);
            let (deed, explanation) = found.map_err(Failed::because)?;
            let origin = deed.recorded.as_ref().ok();
            let origin = origin.and_then(|recorded| recorded.origins.first());
            Explained {
                agent: deed.agent.to_string(),
                destination: origin.map_or_else(String::new, |origin| called(origin)),
                operation: deed.operation.clone(),
                deed: Some(deed),
                explanation,
            }
        }
        _ => given(&policy, arguments)?,
    };
    if context.is_json() {
        return context.print_json(&explained.json()?);
    }
    print(&explained.text(context.color))?;
    Ok(ExitCode::SUCCESS)
}

/// An operation that isn't on record.
fn given(policy: &Arc<Policy>, arguments: &Arguments) -> Result<Explained, Failed> {
    let given = match &arguments.case {
        Some(file) => {
            let text = fs::read_to_string(file).map_err(|error| {
                Failed::because(format!("{} can't be read: {error}", file.display()))
            })?;
            Given::read(&file.display().to_string(), &text).map_err(Failed::because)?
        }
        None => arguments.given.given(),
    };
    let is_tls = given.protocol.as_deref() == Some(Protocol::Tls.name());
    let says_nothing =
        given.statement.is_none() && given.actions.is_empty() && given.effects.is_empty();
    if says_nothing && !is_tls {
        return Err(Failed::because("nothing says what is to be explained").with_remedy(
            "give --session with --operation, or --statement, or --action with --effect, or --case",
        ));
    }
    let given = match is_tls && says_nothing {
        true => Given {
            actions: vec!["CONNECT".to_owned()],
            effects: vec!["unclassified".to_owned()],
            ..given
        },
        false => given,
    };
    let attempt = Attempt::new(&given).map_err(Failed::because)?;
    let attempted = attempt.operation(&policies::describer());
    let (origin, mut operation) = attempted.map_err(Failed::because)?;
    if is_tls && let Some(name) = &given.host {
        let description = Arc::make_mut(&mut operation.description);
        let attributes = &mut description.attributes;
        attributes.insert(attribute::TLS_SERVER_NAME.into(), name.as_str().into());
    }
    let now = arguments.at.unwrap_or_else(crate::clock::now);
    Ok(Explained {
        agent: origin.agent.name.to_string(),
        destination: called(&origin),
        explanation: Policy::explain(policy, &operation, &origin, now),
        operation,
        deed: None,
    })
}

/// Where an operation goes, with what is known of who is there.
fn called(origin: &Origin) -> String {
    match origin.names.first() {
        Some(name) => format!("{} ({name})", origin.destination),
        None => origin.destination.to_string(),
    }
}

impl Spoken {
    fn given(&self) -> Given {
        let labels = labels(self.labels.clone());
        let labels = labels
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        Given {
            agent: self.agent.clone(),
            labels: labels.collect(),
            destination: self.destination.clone(),
            host: self.host.clone(),
            protocol: self.protocol.clone(),
            statement: self.statement.clone(),
            actions: self.action.clone(),
            effects: self.effect.clone(),
            ..Given::default()
        }
    }
}

impl Explained {
    fn json(&self) -> Result<Value, Failed> {
        let description = &self.operation.description;
        let resources = description.resources.iter();
        let operation = json!({
            "agent": self.agent,
            "destination": self.destination,
            "protocol": self.operation.protocol,
            "actions": description.actions,
            "effects": description.effects,
            "resources": resources.map(ToString::to_string).collect::<Vec<_>>(),
            "attributes": description.attributes,
        });
        let recorded = self.deed.as_ref().map(|deed| {
            json!({
                "session": deed.session,
                "operation": deed.number,
                "time": deed.time.to_string(),
                "answer": Answer::from(&deed.decision.verdict),
                "enforced": deed.decision.enforced,
                "rule": deed.decision.rule,
                "policy": deed.decision.policy.to_string(),
            })
        });
        let mut json = serde_json::to_value(&self.explanation).map_err(Failed::because)?;
        if let Value::Object(facts) = &mut json {
            facts.insert("operation".to_owned(), operation);
            facts.extend(recorded.map(|recorded| ("recorded".to_owned(), recorded)));
        }
        Ok(json)
    }

    fn text(&self, color: bool) -> String {
        let explanation = &self.explanation;
        let mut out = decided(explanation.answer, explanation.enforced, color);
        // Writing to a string can't fail.
        _ = write!(out, " by rule {}", inert(&explanation.rule));
        if !explanation.reason.is_empty() {
            _ = write!(out, ": {}", inert(&explanation.reason));
        }
        let description = &self.operation.description;
        let resources: Vec<_> = description
            .resources
            .iter()
            .map(ToString::to_string)
            .collect();
        _ = writeln!(
            out,
            "\n  {} of {}, {} {} to {}",
            self.operation.protocol,
            inert(&self.agent),
            inert(&description.action()),
            inert(&resources.join(", ")),
            inert(&self.destination)
        );
        if let Some(deed) = &self.deed {
            let then = decided(
                Answer::from(&deed.decision.verdict),
                deed.decision.enforced,
                false,
            );
            _ = writeln!(
                out,
                "  operation {} of session {}, at {}: {then} by rule {} then{}",
                deed.number,
                deed.session,
                time(deed.time),
                inert(&deed.decision.rule),
                match deed.decision.policy == explanation.decision.policy {
                    true => ", by this same policy",
                    false => ", by another policy",
                }
            );
        }
        let rows: Vec<Vec<String>> = explanation.rules.iter().map(row).collect();
        _ = write!(
            out,
            "\n{}",
            table(&["", "RULE", "SAYS", "WHY"], &rows, color)
        );
        if &*explanation.rule == "default" {
            _ = writeln!(
                out,
                "No rule that is enforced matches, so the default decides."
            );
        }
        out
    }
}

fn row(rule: &RuleExplained) -> Vec<String> {
    let mark = match rule.standing {
        Standing::Decides => "=>",
        Standing::Outranked => " ~",
        Standing::Observes => " o",
        Standing::Unmet => " -",
        Standing::NotAsked => "",
    };
    let mut why = rule.why.clone();
    if rule.masks {
        why.push_str("; its masks apply to what comes back");
    }
    let says = rule
        .says
        .map_or_else(String::new, |says| says.name().to_owned());
    let says = match rule.enforced {
        true => says,
        false => format!("{says} (observes)"),
    };
    vec![mark.to_owned(), rule.id.to_string(), says, why]
}

/// What becomes of it, in a word or two.
fn decided(answer: Answer, enforced: bool, color: bool) -> String {
    let (word, style) = match (answer, enforced) {
        (Answer::Allow, _) => ("allowed", Style::Good),
        (Answer::Deny, true) => ("denied", Style::Bad),
        (Answer::Hold, true) => ("held", Style::Wait),
        (Answer::Deny, false) => ("would be denied (observing)", Style::Wait),
        (Answer::Hold, false) => ("would be held (observing)", Style::Wait),
        (Answer::Intercept, _) => ("looked into", Style::Good),
        (Answer::Passthrough, _) => ("let through unseen", Style::Wait),
    };
    paint(style, word, color)
}
