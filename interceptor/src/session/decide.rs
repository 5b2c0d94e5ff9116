//! What is asked about an operation before it goes on: the policy, people, and the credential that it takes.

use std::sync::Arc;

use bytes::Bytes;
use interceptor_core::{
    decoder::Failure,
    login::{Authorization, Login},
    operation::{Operation, attribute, radius::Estimate},
    protocol::{self, postgres::Parameters},
    record::{ApprovalId, DecisionRecord, Event, OperationRecord},
    ruling::{Cause, Decision, Hold, Judge, Judgement, Refusal, Ruling, Verdict},
};

use super::Session;
use crate::{
    accept::random_id,
    approval::{Outcome, Withdrawal},
    cancellations::Cancellable,
    clock::now,
    credentials::{LoginError, Wanted},
    proxy::{self, Ask},
    radius, upstream,
};

/// Names that are looked up for one connection in the clear: an agent can't have us ask for ever.
pub(crate) const CLAIMED_NAMES_MAX: usize = 64;

/// A held operation and the question that people were asked about it.
pub(super) struct Held {
    pub(super) hold: Hold,
    pub(super) operation: Operation,
    pub(super) pending: proxy::Held,
}

impl Session {
    /// What to log in as `user` with, in the agent's place.
    pub(super) async fn credential(
        &mut self,
        user: &str,
        database: &str,
    ) -> Result<Option<Login>, Failure> {
        if self.is_unknown() {
            return Ok(None);
        }
        let [upstream_binding, agent_binding] = self.bindings.clone();
        let wanted = Wanted {
            // Only TLS proves a name: credentials are given to nobody else.
            host: self
                .origin
                .names
                .first()
                .filter(|_| self.is_secure)
                .map(|name| &**name),
            is_verified: self.is_secure,
            user,
            database,
            upstream_binding,
            agent_binding,
        };
        let credentials = &self.services.credentials;
        let found = credentials.login(&self.origin.destination, wanted).await;
        self.now = now();
        match found {
            Ok(login) => {
                self.logged_in_as = login.as_ref().map(|login| login.user.as_str().into());
                Ok(login)
            }
            Err(error) => {
                let whose = [("user", user.to_owned()), ("database", database.to_owned())];
                Err(self.no_secret("postgres_login", whose, &error).await)
            }
        }
    }

    /// What a request for `path` of `host` proves its right with, in the agent's place.
    pub(super) async fn authorization(
        &mut self,
        host: Option<&str>,
        path: &str,
    ) -> Result<Option<Authorization>, Failure> {
        if self.is_unknown() {
            return Ok(None);
        }
        // As for logins: who isn't proved to be that host has no name.
        let host = host.filter(|_| self.is_secure);
        let destination = self.origin.destination.clone();
        let credentials = &self.services.credentials;
        let found = credentials.authorization(&destination, host, self.is_secure, path);
        let found = found.await;
        self.now = now();
        match found {
            Ok(authorization) => Ok(authorization),
            Err(error) => {
                let operation = [("operation", self.operations.to_string())];
                Err(self.no_secret("http_credential", operation, &error).await)
            }
        }
    }

    /// Whether a credential for the destination's address isn't one for who is there: behind a proxy, or
    /// in another network, where agents may have given the address to whom they like. TLS tells.
    const fn is_unknown(&self) -> bool {
        self.tunnels > 0 || (!self.network.is_host() && !self.is_secure)
    }

    /// Has it on record that a credential can't be used.
    async fn no_secret<const N: usize>(
        &mut self,
        event: &'static str,
        detail: [(&'static str, String); N],
        error: &LoginError,
    ) -> Failure {
        let credential = error.credential;
        tracing::error!(session = %self.id, %error, "an agent can't be logged in");
        let detail = detail.into_iter().chain([
            ("credential", credential.to_string()),
            ("error", error.to_string()),
        ]);
        self.record(Event::notice(event, detail)).await;
        Failure::NoSecret(format!(
            "credential {credential}, which logs in here, can't be used now"
        ))
    }

    /// Has `operation` judged, and the ruling recorded before it takes effect.
    ///
    /// `beginning` is that of the session, as its decoder knows it.
    pub(super) async fn decide(&mut self, operation: Operation, beginning: Bytes) -> Decided {
        if !self.services.policies.is_current(self.judge.policy()) {
            let policy = self.services.policies.current();
            self.judge = Judge::new(&policy, self.origin.clone());
        }
        self.learn_name(&operation).await;
        let now = self.now;
        let judgement = self.judge.judge(&operation, now);
        let decision = match &judgement {
            Judgement::Incomplete => return Decided::Now(Ruling::Gather),
            Judgement::Permit(permit) => permit.decision().clone(),
            Judgement::Hold(hold) => hold.decision().clone(),
            Judgement::Refuse(decision, _) => decision.clone(),
        };
        self.operations += 1;
        let number = self.operations;
        let asked = matches!(judgement, Judgement::Hold(_)).then(|| operation.clone());
        if matches!(judgement, Judgement::Permit(_)) {
            self.circumstances.passed(&operation);
        }
        let strict = decision.strict;
        let decided = DecisionRecord {
            number,
            decision: decision.clone(),
        };
        let seq = self
            .append([
                Event::Operation(OperationRecord { number, operation }),
                Event::Decision(decided),
            ])
            .await;
        match (strict, seq) {
            (_, None) => return Decided::Now(Ruling::Refuse(unavailable(&decision.rule))),
            (true, Some(seq)) => {
                if self.services.journal.durable(seq).await.is_err() {
                    self.stopped = true;
                    return Decided::Now(Ruling::Refuse(unavailable(&decision.rule)));
                }
                self.now = crate::clock::now();
            }
            _ => {}
        }
        match (judgement, asked) {
            (Judgement::Permit(permit), _) => Decided::Now(Ruling::Permit(permit)),
            (Judgement::Incomplete, _) => Decided::Now(Ruling::Gather),
            (Judgement::Refuse(_, refusal), _) => Decided::Now(Ruling::Refuse(refusal)),
            (Judgement::Hold(hold), operation) => {
                let Some(operation) = operation else {
                    return Decided::Now(Ruling::Refuse(unavailable(&decision.rule)));
                };
                let startup = beginning.clone();
                self.circumstances.begun(beginning);
                let context = self.circumstances.of(&operation);
                let asked = operation.clone();
                let pending = self.services.desk.ask(Ask {
                    approval: ApprovalId(random_id()),
                    session: self.id,
                    names: self.origin.names.clone(),
                    number,
                    context,
                    shape: protocol::shape(&operation)
                        .map(|shape| operation.digest_of_shape(&self.origin, &shape)),
                    operation,
                    decision: Decision::clone(&decision),
                });
                if let Verdict::Hold(terms) = &decision.verdict
                    && let Some(estimate) = terms.blast_radius
                {
                    self.estimate(&pending, &asked, (&startup, estimate));
                }
                Decided::Later(Box::new(Held {
                    hold,
                    operation: asked,
                    pending,
                }))
            }
        }
    }

    /// Has it found out what `operation`, which is held, would touch. Nothing waits for it.
    fn estimate(
        &self,
        pending: &proxy::Held,
        operation: &Operation,
        (startup, estimate): (&[u8], Estimate),
    ) {
        let scene = radius::Scene {
            network: self.network.clone(),
            origin: self.origin.clone(),
            is_secure: self.is_secure,
            is_unknown: self.is_unknown(),
            startup: Parameters::read(startup).unwrap_or_default(),
            logged_in_as: self.logged_in_as.clone(),
            may_have_renamed: self.circumstances.are_changed(),
        };
        let (services, share) = (self.services.clone(), self.share.clone());
        let (operation, estimator) = (operation.clone(), pending.estimator());
        tokio::spawn(async move {
            let means = radius::Means {
                credentials: &services.credentials,
                tls: &services.tls,
                postgres: &services.postgres,
            };
            let turn = &share.estimates;
            let radius = radius::find_out(means, &scene, &operation, estimate, turn).await;
            estimator.is(radius);
        });
    }

    /// In the clear nobody proves a name: the one that a request claims counts where the destination was
    /// resolved from it, or this host's resolver knows it so.
    async fn learn_name(&mut self, operation: &Operation) {
        let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
        let Some(name) = claimed.filter(|_| !self.is_secure) else {
            return;
        };
        // No name is that of a UNIX socket.
        let Some(destination) = self.origin.destination.address() else {
            return;
        };
        if matches!(&*self.origin.names, [known] if known == name) {
            return;
        }
        let is_resolved = self.tunnels == 0 && self.resolved.contains(name);
        let seen = self.claimed_names.iter().find(|(seen, _)| seen == name);
        let is_own = match seen {
            _ if is_resolved => true,
            Some((_, is_own)) => *is_own,
            None if self.claimed_names.len() >= CLAIMED_NAMES_MAX => false,
            None => {
                let is_name = name.parse::<std::net::IpAddr>().is_err();
                let is_own = is_name && upstream::is_address_of(name, destination).await;
                self.claimed_names.push((name.clone(), is_own));
                // Rules may go by it, and who decides this again can't look it up as it was then.
                let learned = [("name", name.to_string()), ("known", is_own.to_string())];
                self.record(Event::notice("destination_name", learned))
                    .await;
                is_own
            }
        };
        let names = if is_own {
            vec![name.clone()]
        } else {
            Vec::new()
        };
        self.named(names);
    }
}

/// How an operation was decided.
pub(super) enum Decided {
    Now(Ruling),
    Later(Box<Held>),
}

fn unavailable(rule: &Arc<str>) -> Refusal {
    Refusal {
        cause: Cause::Unavailable,
        rule: rule.clone(),
        reason: "the journal takes no records".into(),
        approval: None,
    }
}

pub(super) async fn cancelled(session: Option<&Cancellable>) {
    match session {
        Some(session) => session.cancelled().await,
        None => std::future::pending().await,
    }
}

impl Held {
    /// The ruling after the question was withdrawn.
    pub(super) fn cancelled(self) -> Ruling {
        let reason = Withdrawal::Cancelled.why().into();
        Ruling::Refuse(
            self.hold
                .refuse(Cause::Cancelled, reason, self.pending.id()),
        )
    }

    /// The ruling that people's answer makes of it.
    pub(super) fn ruled(self, outcome: Outcome) -> Ruling {
        match outcome {
            Outcome::Approved => Ruling::Permit(self.hold.approve()),
            Outcome::Refused { cause, reason } => {
                Ruling::Refuse(self.hold.refuse(cause, reason, self.pending.id()))
            }
        }
    }
}
