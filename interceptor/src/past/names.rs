//! What a session's destination was known to be called, operation by operation, told again from what is on record of
//! what taught it.

use std::{net::IpAddr, sync::Arc};

use interceptor_core::{
    operation::{Operation, Protocol, attribute},
    origin::{Agent, Destination, Origin, Process},
    policy::Within,
    record::{Notice, ResponseStatus},
};

use crate::session::CLAIMED_NAMES_MAX;

const OPEN_NAME: &str = "whether the destination was known to this host's resolver by the name that it asks for isn't on record";

/// The names of one session's destination.
#[derive(Debug)]
pub(super) struct Names {
    /// The beginning of the session is on record.
    is_begun: bool,
    /// What the agent was told that the destination is called.
    resolved: Vec<Box<str>>,
    /// TLS proves who is there.
    is_secure: bool,
    /// Connections within it that were made by CONNECT.
    tunnels: usize,
    /// The CONNECT that may have made the next one.
    connecting: Option<u64>,
    /// Names that were claimed in the clear, and whether the destination was known by them.
    claimed: Vec<(Box<str>, bool)>,
    known: Known,
    within: Vec<Within>,
}

/// What the destination is called at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    As(Vec<Box<str>>),
    /// Perhaps that.
    Perhaps(Box<str>),
}

/// An operation's origins, and why there is more than one.
type Origins = (Vec<Arc<Origin>>, Option<&'static str>);

impl Names {
    pub(super) fn new(origin: &Origin) -> Self {
        Self {
            is_begun: true,
            resolved: Vec::new(),
            is_secure: false,
            tunnels: 0,
            connecting: None,
            claimed: Vec::new(),
            known: Known::As(origin.names.clone()),
            within: Vec::new(),
        }
    }

    /// Of a session whose beginning isn't on record.
    pub(super) fn unknown() -> Self {
        Self {
            is_begun: false,
            ..Self::new(&nobody(""))
        }
    }

    /// The TLS that was ended here, the outermost first.
    pub(super) fn within(&self) -> &[Within] {
        &self.within
    }

    /// Something was noted of the session of `origin`.
    pub(super) fn noted(&mut self, origin: &Arc<Origin>, notice: &Notice) {
        let fact = |name: &str| notice.detail.get(name).map(|value| &**value);
        match &*notice.name {
            "destination_names" => {
                let names = fact("names").unwrap_or_default().split(' ');
                self.resolved = names.map(Box::from).collect();
                self.known = Known::As(self.resolved.clone());
            }
            "destination_name" => {
                if let Some(name) = fact("name") {
                    self.claimed
                        .push((name.into(), fact("known") == Some("true")));
                }
            }
            "tls" => {
                let name = fact("server_name").unwrap_or_default();
                let is_name = name.parse::<IpAddr>().is_err();
                self.within.push(Within {
                    origin: origin.clone(),
                    server_name: is_name.then(|| name.into()),
                });
                if is_name {
                    self.known = Known::As(vec![name.to_ascii_lowercase().into()]);
                }
                self.is_secure = true;
            }
            _ => {}
        }
    }

    /// The operation `number` was answered.
    pub(super) fn answered(&mut self, number: u64, status: &ResponseStatus) {
        let is_connected = matches!(status, ResponseStatus::Complete(tag) if tag.starts_with('2'));
        if is_connected && self.connecting == Some(number) {
            // What the proxy has proved isn't proved of who is behind it.
            self.tunnels += 1;
            self.is_secure = false;
            self.known = Known::As(Vec::new());
            self.connecting = None;
        }
    }

    /// Whose `operation` of a session of `origin` may be.
    pub(super) fn of(
        &mut self,
        origin: &Arc<Origin>,
        number: u64,
        operation: &Operation,
    ) -> Result<Origins, String> {
        if !self.is_begun {
            return Err("the beginning of its session isn't on record any more".to_owned());
        }
        let actions = &operation.description.actions;
        if operation.protocol == Protocol::Http
            && actions.iter().any(|action| **action == *"CONNECT")
        {
            self.connecting = Some(number);
        }
        self.learn(origin, operation);
        let called = |names: Vec<Box<str>>| {
            Arc::new(Origin {
                names,
                ..(**origin).clone()
            })
        };
        Ok(match &self.known {
            Known::As(names) => (vec![called(names.clone())], None),
            Known::Perhaps(name) => {
                let origins = vec![called(vec![name.clone()]), called(Vec::new())];
                (origins, Some(OPEN_NAME))
            }
        })
    }

    /// As sessions learn names in the clear.
    fn learn(&mut self, origin: &Origin, operation: &Operation) {
        let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
        let Some(name) = claimed.filter(|_| !self.is_secure) else {
            return;
        };
        if origin.destination.address().is_none()
            || matches!(&self.known, Known::As(names) if matches!(&**names, [known] if known == name))
        {
            return;
        }
        let looked_up = self.claimed.iter().find(|(known, _)| known == name);
        let is_own = if self.tunnels == 0 && self.resolved.contains(name) {
            Some(true)
        } else if let Some((_, is_own)) = looked_up {
            Some(*is_own)
        } else if name.parse::<IpAddr>().is_ok() || self.claimed.len() >= CLAIMED_NAMES_MAX {
            Some(false)
        } else {
            None
        };
        self.known = match is_own {
            Some(true) => Known::As(vec![name.clone()]),
            Some(false) => Known::As(Vec::new()),
            None => Known::Perhaps(name.clone()),
        };
    }
}

/// In the place of an origin that isn't known.
pub(super) fn nobody(agent: &str) -> Arc<Origin> {
    Arc::new(Origin {
        agent: Arc::new(Agent {
            name: agent.into(),
            labels: [].into(),
        }),
        process: Process::default(),
        destination: Destination::Unix("".into()),
        names: Vec::new(),
    })
}
