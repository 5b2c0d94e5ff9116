//! Notifiers against servers in this process: what they send, to whom, and what becomes of what can't be sent.

mod dispatch;
mod email;
mod queue;
mod slack;
mod teams;
mod template;
mod webhook;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State as Shared,
    http::{HeaderMap, StatusCode, Uri},
    response::IntoResponse as _,
};
use interceptor_core::{
    login::Secret,
    operation::{Digest, Effects, Protocol, Resource, ResourceKind, Touch},
    origin::{Destination, Process},
    record::{ApprovalId, Choice, SessionId, Timestamp},
    ruling::{Cause, Otherwise},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;
use crate::{
    approval::{Content, State, Summary, Vote},
    config::Config,
    secret::Source,
};

/// 2026-11-22T03:00:00Z.
pub(super) const NOW: Timestamp = Timestamp(1_795_316_400_000_000_000);

/// Patience of tests.
const SOON: Duration = Duration::from_secs(10);

pub(super) fn summary(id: u64) -> Summary {
    Summary {
        id: ApprovalId(id),
        state: State::Pending,
        session: SessionId(7),
        number: 3,
        agent: "deployer".into(),
        labels: [("team".into(), "red".into())].into(),
        process: Process {
            pid: 42,
            uid: 1_000,
            executable: Some("/usr/bin/psql".into()),
            arguments: ["psql", "-c", "drop table t"].map(Into::into).into(),
            cgroup: "/x".into(),
            network_namespace: None,
        },
        surroundings: None,
        destination: Destination::Ip("192.0.2.1:5432".parse().unwrap()),
        protocol: Protocol::Postgres,
        action: "DROP TABLE".into(),
        effects: Effects::SCHEMA,
        resources: vec![Resource {
            kind: ResourceKind::Table,
            namespace: Some("public".into()),
            name: "t".into(),
            touch: Touch::Write,
        }],
        digest: Digest([7; 32]),
        shape: None,
        rule: "schema-changes".into(),
        reason: "definitions are shared".into(),
        policy: "sha256:00".into(),
        groups: vec!["dba".into()],
        people: Vec::new(),
        quorum: 1,
        reason_required: false,
        security_key: false,
        estimate: None,
        blast_radius: None,
        otherwise: Otherwise::Deny,
        windows: None,
        waits: true,
        retry: 900,
        votes: Vec::new(),
        requested: NOW,
        until: Timestamp(NOW.0 + 900_000_000_000),
        yours: None,
    }
}

pub(super) fn requested(id: u64) -> Notice {
    of(Event::Requested, summary(id), Some("DROP TABLE t"))
}

pub(super) fn approved(id: u64) -> Notice {
    let vote = Vote {
        by: "alice".into(),
        choice: Choice::Approve,
        reason: "agreed".into(),
        window: None,
        time: NOW,
    };
    let state = State::Approved;
    of(
        Event::Ended,
        Summary {
            state,
            votes: vec![vote],
            ..summary(id)
        },
        None,
    )
}

pub(super) fn timed_out(id: u64) -> Notice {
    let state = State::Refused {
        cause: Cause::TimedOut,
    };
    of(
        Event::Ended,
        Summary {
            state,
            ..summary(id)
        },
        None,
    )
}

pub(super) fn overridden(id: u64) -> Notice {
    let state = State::Overridden {
        by: "bob".into(),
        reason: "the shop is down".into(),
    };
    of(
        Event::Overridden,
        Summary {
            state,
            ..summary(id)
        },
        None,
    )
}

pub(super) fn of(event: Event, summary: Summary, content: Option<&str>) -> Notice {
    Notice {
        event,
        time: NOW,
        subject: Subject::Request {
            summary: Box::new(summary),
            content: content.map(|text| Content::Text(text.to_owned())),
            values: 0,
        },
    }
}

pub(super) fn facts(notice: &Notice) -> Facts {
    let link = link(Some(&console()), notice.approval());
    Facts::new(notice, link, "db1")
}

pub(super) fn console() -> ServiceUrl {
    ServiceUrl::parse("https://console.example.com/x/").unwrap()
}

/// What an agent would write to deceive whoever reads it.
pub(super) const DECEPTIONS: [&str; 12] = [
    "<!channel> <@U123> <https://evil.example|Approve> & co",
    "\u{202e}evorppa\u{202c} \u{200b}\u{feff}\u{e0041}",
    "a\r\nBcc: victim@example.com\r\n\r\nbody",
    "[Approve](https://evil.example) **bold** {{DATE(2020-01-01T00:00:00Z)}}",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\"}], \"text\": \"approved\", \"x\": [{\"",
    "*bold* _it_ ~s~ `code` ```block``` :white_check_mark:",
    "{{link}} {{routing_key}} ${x} @{body}",
    "\u{1b}[2J\u{9b}31m\u{7}\u{0}",
    "' onmouseover='x' \" style=\"x",
    "@channel @here #general https://evil.example/approve",
    "line\u{2028}separator\u{2029}end",
];

/// A request in which `text` stands wherever an agent could have put it.
pub(super) fn deceptive(text: &str) -> Notice {
    let mut summary = summary(1);
    summary.agent = text.into();
    summary.labels = [(text.into(), text.into())].into();
    summary.action = text.into();
    summary.rule = text.into();
    summary.reason = text.into();
    summary.groups = vec![text.into()];
    summary.resources = vec![Resource {
        kind: ResourceKind::Table,
        namespace: None,
        name: text.into(),
        touch: Touch::Write,
    }];
    summary.process.executable = Some(text.into());
    summary.process.arguments = vec![text.into(); 3].into();
    of(Event::Requested, summary, Some(text))
}

/// The notifiers that `yaml` says, below `notify:`.
pub(super) fn configs(yaml: &str) -> Vec<NotifierConfig> {
    let config = Config::parse(
        &format!("console: {{}}\nnotify:\n{yaml}"),
        Path::new("i.yaml"),
    );
    config.unwrap_or_else(|error| panic!("{error}")).notify
}

/// Means of tests: short times, and secrets that are variables of these names.
pub(super) fn means(secrets: &[(&str, &str)]) -> Means {
    let of = |(name, secret): &(&str, &str)| {
        let source = Source::Environment((*name).into());
        (source, Secret::new(secret.as_bytes().to_vec()))
    };
    Means {
        console_url: Some(console()),
        host: "db1".into(),
        roots: Vec::new(),
        resolve: system_resolver(),
        secrets: given(secrets.iter().map(of).collect()),
        clock: Arc::new(|| NOW),
        timing: Timing {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(3),
            first_pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(100),
            reconnect: Duration::from_millis(20),
            ping: SOON,
            answer: Duration::from_millis(500),
        },
        posted: Vec::new(),
        told: Vec::new(),
    }
}

/// Notifiers at work and both ends of their channels.
pub(super) struct Bench {
    pub(super) notifiers: Notifiers,
    pub(super) events: mpsc::Sender<Notice>,
    pub(super) intents: mpsc::Receiver<Intent>,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
}

impl Bench {
    pub(super) fn new(yaml: &str, means: Means) -> Self {
        Self::of(configs(yaml), means)
    }

    pub(super) fn of(configs: Vec<NotifierConfig>, means: Means) -> Self {
        let (events, receiver) = mpsc::channel(4_096);
        let (intent, intents) = mpsc::channel(16);
        let (delivery, deliveries) = mpsc::channel(4_096);
        let notifiers = Notifiers::start(configs, means, receiver, intent, delivery).unwrap();
        Self {
            notifiers,
            events,
            intents,
            deliveries,
        }
    }

    pub(super) async fn tell(&self, notice: Notice) {
        self.events.send(notice).await.unwrap();
    }

    /// The next report of a delivery.
    pub(super) async fn report(&mut self) -> Delivery {
        let report = tokio::time::timeout(SOON, self.deliveries.recv()).await;
        report.expect("a report in time").unwrap()
    }

    /// The next report but of failures that are tried again.
    pub(super) async fn settled(&mut self) -> Delivery {
        loop {
            let report = self.report().await;
            if !matches!(report.outcome, Outcome::Failed { .. }) {
                return report;
            }
        }
    }
}

/// A request that a server got.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Bytes,
}

impl Got {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a server answers, by what it got.
type Answer = Arc<dyn Fn(&Got) -> (StatusCode, String) + Send + Sync>;

/// A server of HTTP on loopback.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Got>,
}

impl Server {
    pub(super) async fn new(
        answer: impl Fn(&Got) -> (StatusCode, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (app, requests) = app(Arc::new(answer));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, requests }
    }

    /// One that answers with the numbers of `statuses`, then with the last of them.
    pub(super) async fn answering(statuses: &[u16]) -> Self {
        let left = Mutex::new(statuses.iter().rev().copied().collect::<Vec<u16>>());
        Self::new(move |_| {
            let mut left = left.lock().unwrap();
            let status = if left.len() > 1 {
                left.pop()
            } else {
                left.last().copied()
            };
            (
                StatusCode::from_u16(status.unwrap()).unwrap(),
                "s3cret of the answer".to_owned(),
            )
        })
        .await
    }

    pub(super) async fn got(&mut self) -> Got {
        let got = tokio::time::timeout(SOON, self.requests.recv()).await;
        got.expect("a request in time").unwrap()
    }

    pub(super) fn got_nothing(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

pub(super) fn app(answer: Answer) -> (Router, mpsc::UnboundedReceiver<Got>) {
    let (sender, requests) = mpsc::unbounded_channel();
    let handler = |Shared((answer, sender)): Shared<(Answer, mpsc::UnboundedSender<Got>)>,
                   uri: Uri,
                   headers: HeaderMap,
                   body: Bytes| async move {
        let headers = headers.iter().map(|(name, value)| {
            (
                name.to_string(),
                value.to_str().unwrap_or_default().to_owned(),
            )
        });
        let got = Got {
            path: uri.to_string(),
            headers: headers.collect(),
            body,
        };
        let (status, body) = answer(&got);
        _ = sender.send(got);
        let location = [
            ("location", "/elsewhere"),
            ("content-type", "application/json"),
        ];
        (status, location, body).into_response()
    };
    (
        Router::new().fallback(handler).with_state((answer, sender)),
        requests,
    )
}

/// What takes TLS as `localhost`, and the certificate that it shows.
pub(super) fn acceptor() -> (tokio_rustls::TlsAcceptor, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let certificate = made.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    (Arc::new(config).into(), certificate)
}
