//! TLS in a session: who is asked for, what the policy says of it, both handshakes, and what is recorded.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use interceptor_core::{
    operation::{Description, Effects, Operation, Protocol, attribute},
    origin::Origin,
    protocol::tls::{Alert, ClientHello},
    record::{DecisionRecord, Event, OperationRecord},
    ruling::{Decision, Judge, Permit, TlsRuling},
};
use rustls::Connection;

use super::{Ended, Session};
use crate::{
    leg::{Leg, Queue},
    socket::Socket,
    tls::{NoHello, Reached, Server, Unmet, Unreached, end_point, read_hello, version_names},
    upstream,
};

/// A connection of which TLS is taken care of.
pub(super) enum Secured {
    /// Both sides are open to us.
    Inside {
        client: Leg,
        upstream: Leg,
        /// The protocol that both agreed on.
        alpn: Option<Vec<u8>>,
    },
    /// A rule lets it through as it is.
    Through {
        client: Leg,
        upstream: Leg,
        permit: Permit,
        /// What the client said already.
        first: BytesMut,
    },
}

impl Session {
    /// Ends TLS on both sides, or does with it what the policy says. `first` is what the client said.
    pub(super) async fn secure(
        &mut self,
        mut client: Socket,
        mut first: BytesMut,
        upstream: Socket,
    ) -> Result<Secured, Ended> {
        let Some(address) = self.origin.destination.address() else {
            // Nobody has a certificate for a path, and no engine speaks it there.
            say(client, Alert::ACCESS_DENIED).await;
            return Err(Ended("refused: TLS to a UNIX socket".to_owned()));
        };
        let before = first.len();
        let hello = read_hello(&mut client, &mut first, self.services.patience.handshake).await;
        self.now = crate::clock::now();
        self.received[0] += (first.len() - before) as u64;
        let hello = match hello {
            Ok(hello) => hello,
            Err(NoHello::Malformed(why)) => {
                self.tls_notice("tls_refused", [("reason", why.to_owned())])
                    .await;
                say(client, Alert::DECODE_ERROR).await;
                return Err(Ended(format!("malformed: {why}")));
            }
            Err(NoHello::Gone(why)) => return Err(Ended(why)),
        };
        let server = Server::new(hello.server_name.as_deref(), address);
        match self.judge.tls(&self.origin, hello.server_name.as_deref()) {
            TlsRuling::Intercept => {
                self.intercept(client, &first, upstream, &hello, server)
                    .await
            }
            TlsRuling::Deny(decision, refusal) => {
                self.decided_tls(operation(&hello, &[]), decision).await;
                say(client, Alert::ACCESS_DENIED).await;
                Err(Ended(format!(
                    "refused: rule {}: {}",
                    refusal.rule, refusal.reason
                )))
            }
            TlsRuling::Passthrough { permit, by_name } => {
                let facts = match self.passable(&hello, &server, by_name).await {
                    Ok(facts) => facts,
                    Err(unreached) => {
                        let decision = permit.decision().clone();
                        return Err(self.impassable(client, &hello, &decision, unreached).await);
                    }
                };
                if !self
                    .decided_tls(operation(&hello, &facts), permit.decision().clone())
                    .await
                {
                    say(client, Alert::INTERNAL_ERROR).await;
                    return Err(Ended("the journal takes no records".to_owned()));
                }
                Ok(Secured::Through {
                    client: Leg::plain(client),
                    upstream: Leg::plain(upstream),
                    permit,
                    first,
                })
            }
        }
    }

    async fn intercept(
        &mut self,
        client: Socket,
        first: &[u8],
        upstream: Socket,
        hello: &ClientHello,
        server: Server,
    ) -> Result<Secured, Ended> {
        let tls = self.services.tls.clone();
        let reached = match tls.reach(&upstream, &server, hello.alpn.clone()).await {
            Ok(reached) => reached,
            Err(Unreached { alert, reason }) => {
                let remedy = remedy(alert, &reason, &server);
                self.tls_notice(
                    "tls_upstream_failed",
                    [
                        ("server_name", server.name.to_str().into_owned()),
                        ("reason", reason.clone()),
                        ("alert", alert.0.to_string()),
                        ("remedy", remedy),
                    ],
                )
                .await;
                say(client, alert).await;
                return Err(Ended(format!("upstream: TLS: {reason}")));
            }
        };
        let mut facts = reached.facts();
        facts.push(("offered_versions", version_names(&hello.versions)));
        if hello.encrypted {
            facts.push(("encrypted_client_hello", "ignored".to_owned()));
        }
        if reached.certificate_wanted {
            facts.push((
                "client_certificate",
                "asked for, and none is configured for this server (`tls: {client_certificates: […]}`)".to_owned(),
            ));
        }
        let desk = self.services.desk.clone();
        let met = match tls.receive(&client, first, &reached, &*desk).await {
            Ok(met) => met,
            Err(unmet) => {
                return Err(self.unmet(unmet, &reached).await);
            }
        };
        self.now = crate::clock::now();
        self.tls_notice("tls", facts).await;
        self.know(&reached);
        self.bindings = [reached.binding(), end_point(&met.certificate)];
        let Reached {
            connection, alpn, ..
        } = reached;
        Ok(Secured::Inside {
            client: Leg::secure(client, met.connection),
            upstream: Leg::secure(upstream, Connection::Client(connection)),
            alpn,
        })
    }

    /// From here on the destination has a name.
    fn know(&mut self, reached: &Reached) {
        if reached.name.parse::<std::net::IpAddr>().is_err() {
            let origin = Origin {
                names: vec![reached.name.to_ascii_lowercase().into()],
                ..(*self.origin).clone()
            };
            self.origin = Arc::new(origin);
            let policy = self.services.policies.current();
            self.judge = Judge::new(&policy, self.origin.clone());
        }
        self.is_secure = true;
        self.certified = reached.names().into();
    }

    /// Whether what a rule lets through goes to whom it says, and what is to be recorded of that.
    async fn passable(
        &self,
        hello: &ClientHello,
        server: &Server,
        by_name: bool,
    ) -> Result<Vec<(&'static str, String)>, Unreached> {
        let refuse = |reason: String| Unreached {
            alert: Alert::ACCESS_DENIED,
            reason,
        };
        if hello.encrypted {
            return Err(refuse(
                "the ClientHello is encrypted (or pretends to be), so the name in the open need not be the server's; such a connection is intercepted or refused".to_owned(),
            ));
        }
        if self.tunnels > 0 {
            return Err(refuse(
                "it goes through a proxy, so who is at its end can't be found out beside it; have it intercepted, or let it connect without the proxy".to_owned(),
            ));
        }
        let is_resolved = self
            .resolved
            .iter()
            .any(|name| name.eq_ignore_ascii_case(&server.name.to_str()));
        if by_name
            && !is_resolved
            && !upstream::is_address_of(&server.name.to_str(), server.address).await
        {
            return Err(refuse(format!(
                "{} is not an address of `{}` to this host's resolver, and the rule goes by the name; add the address to the rule (`destination: {{address: …}}`)",
                server.address.ip(),
                server.name.to_str()
            )));
        }
        // TLS 1.3 hides the certificates from who only looks on: who is there is found out by a
        // handshake of our own.
        let patience = self.services.dial_patience;
        let probe = upstream::dial(&self.network, &self.origin.destination, patience)
            .await
            .map_err(|error| Unreached {
                alert: Alert::INTERNAL_ERROR,
                reason: error.to_string(),
            })?;
        let reached = self
            .services
            .tls
            .reach(&probe, server, hello.alpn.clone())
            .await?;
        Ok(reached.facts())
    }

    /// Refuses what a rule lets through but what isn't what the rule means.
    async fn impassable(
        &mut self,
        client: Socket,
        hello: &ClientHello,
        decision: &Arc<Decision>,
        unreached: Unreached,
    ) -> Ended {
        let mut refused = Decision::clone(decision);
        refused.verdict = interceptor_core::ruling::Verdict::Deny;
        refused.reason = unreached.reason.as_str().into();
        self.decided_tls(operation(hello, &[]), Arc::new(refused))
            .await;
        say(client, unreached.alert).await;
        Ended(format!(
            "refused: rule {}: {}",
            decision.rule, unreached.reason
        ))
    }

    /// The agent won't have the certificate.
    async fn unmet(&mut self, unmet: Unmet, reached: &Reached) -> Ended {
        self.now = crate::clock::now();
        match unmet {
            Unmet::Disbelief(how) => {
                let remedy = format!(
                    "if the client reads a store of its own, have it trust the certificate of `interceptor ca show` (`interceptor run` and `interceptor ca install` do that for the usual ones); if it pins the server's certificate, let the connection pass unseen with the rule `{{id: …, match: {{destination: {{name: \"{}\"}}}}, tls: passthrough}}`",
                    reached.name
                );
                tracing::warn!(session = %self.id, agent = %self.agent, server_name = %reached.name, how, "a client refuses our certificate");
                self.tls_notice(
                    "tls_client_refused",
                    [
                        ("server_name", reached.name.to_string()),
                        ("alert", how.clone()),
                        ("remedy", remedy),
                    ],
                )
                .await;
                Ended(format!("client: it refuses our certificate ({how})"))
            }
            Unmet::Failed(why) => {
                self.tls_notice(
                    "tls_client_failed",
                    [
                        ("server_name", reached.name.to_string()),
                        ("reason", why.clone()),
                    ],
                )
                .await;
                Ended(format!("client: TLS: {why}"))
            }
        }
    }

    async fn tls_notice(
        &mut self,
        name: &str,
        detail: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        self.record(Event::notice(name, detail)).await;
    }

    /// Records what was decided of TLS itself; whether that could be done.
    async fn decided_tls(&mut self, operation: Operation, decision: Arc<Decision>) -> bool {
        self.operations += 1;
        let number = self.operations;
        let seq = self
            .append([
                Event::Operation(OperationRecord { number, operation }),
                Event::Decision(DecisionRecord { number, decision }),
            ])
            .await;
        match seq {
            Some(seq) => self.services.journal.durable(seq).await.is_ok(),
            None => false,
        }
    }
}

/// A connection that isn't looked into, as an operation.
fn operation(hello: &ClientHello, facts: &[(&'static str, String)]) -> Operation {
    let name = hello.server_name.as_deref().unwrap_or_default();
    let alpn = hello
        .alpn
        .iter()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect::<Vec<_>>()
        .join(", ");
    let mut attributes = [
        (attribute::TLS_SERVER_NAME, name.to_owned()),
        ("tls.offered_alpn", alpn.clone()),
        ("tls.offered_versions", version_names(&hello.versions)),
    ]
    .map(|(name, value)| (Box::from(name), Box::from(value)))
    .into_iter()
    .collect::<std::collections::BTreeMap<Box<str>, Box<str>>>();
    attributes.extend(
        facts
            .iter()
            .map(|(name, value)| (format!("tls.{name}").into(), value.as_str().into())),
    );
    Operation {
        protocol: Protocol::Tls,
        description: Arc::new(Description {
            actions: [Box::from("CONNECT")].into(),
            effects: Effects::UNCLASSIFIED,
            attributes,
            ..Default::default()
        }),
        content: Bytes::from(format!("ClientHello server_name={name} alpn={alpn}")),
        parameters: [].into(),
        options: Vec::new(),
        http: None,
    }
}

/// Says why, in the clear, and closes.
async fn say(client: Socket, alert: Alert) {
    let mut queue = Queue::default();
    queue.push(Bytes::copy_from_slice(&alert.record()));
    let mut leg = Leg::plain(client);
    leg.drain(&mut queue).await;
    leg.finish();
    // What the client still sends would turn the close into a reset that takes the alert with it.
    let mut rest = BytesMut::new();
    let gone = async {
        loop {
            rest.clear();
            match std::future::poll_fn(|context| leg.poll_read(&mut rest, context)).await {
                Ok(0) | Err(_) => return Ok::<_, io::Error>(()),
                Ok(_) => {}
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), gone).await;
}

/// What to do about a server that isn't believed.
fn remedy(alert: Alert, reason: &str, server: &Server) -> String {
    match alert {
        Alert::UNKNOWN_CA => format!(
            "if {} is who it should be, add the PEM file of its authority (or of its own certificate) to `tls: {{roots: […]}}` in the configuration",
            server.name.to_str()
        ),
        Alert::CERTIFICATE_EXPIRED => {
            "the server's certificate has to be renewed; check this host's clock too".to_owned()
        }
        Alert::BAD_CERTIFICATE => {
            format!("connect by a name that the certificate is for: {reason}")
        }
        Alert::CERTIFICATE_REVOKED => {
            "the certificate is on a list of `tls: {revoked: […]}` in the configuration".to_owned()
        }
        _ => "see the reason".to_owned(),
    }
}
