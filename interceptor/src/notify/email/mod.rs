//! Mail: a question, and what became of it as an answer to that, so that both stand in one thread.

mod message;
mod smtp;

use std::collections::{BTreeMap, BTreeSet};

use rustls::pki_types::CertificateDer;

use self::smtp::{Accepted, Server};
use super::{
    config::EmailConfig,
    net::Net,
    queue::{Failure, Job, Told},
    secrets::{self, Secrets},
    worker::Sink,
};

/// Mails of which some recipients have theirs and others are tried again, that are remembered. Who is forgotten gets
/// one twice.
const PARTIAL_MAX: usize = 1_000;

/// Tells by mail.
pub(super) struct Email {
    config: EmailConfig,
    server: Server,
    secrets: Secrets,
    /// Who has theirs already, of those that aren't done, by delivery.
    partial: BTreeMap<Box<str>, BTreeSet<usize>>,
}

impl Email {
    /// Mail as `config` says, by servers for which `roots` vouch.
    pub(super) fn new(
        config: EmailConfig,
        net: Net,
        roots: &[CertificateDer<'static>],
        secrets: Secrets,
    ) -> Result<Self, String> {
        Ok(Self {
            server: Server::new(&config, net, roots)?,
            config,
            secrets,
            partial: BTreeMap::new(),
        })
    }
}

impl Sink for Email {
    async fn deliver(&mut self, job: &Job) -> Result<Told, Failure> {
        let mail = message::build(&self.config, &job.facts, &job.id)?;
        let password = match &self.config.login {
            Some((_, source)) => Some(secrets::read(source, &self.secrets).await?),
            None => None,
        };
        // Kept until the end: an attempt that takes too long is dropped at any point.
        let done = self.partial.get(&job.id).cloned().unwrap_or_default();
        let left = (0..self.config.to.len()).filter(|index| !done.contains(index));
        let left: Vec<usize> = left.collect();
        let result = self.server.send(&self.config, password, &left, &mail).await;
        let Accepted {
            taken,
            later,
            never,
        } = result?;
        let told: BTreeSet<usize> = done.into_iter().chain(taken).collect();
        if !later.is_empty() || told.is_empty() {
            let whom = if later.is_empty() { &never } else { &later };
            let failure = Failure::unwelcome(format!(
                "{} won't have it for {}",
                self.config.server,
                self.names(whom)
            ));
            self.remember(&job.id, told);
            return Err(failure);
        }
        self.partial.remove(&job.id);
        let note = (!never.is_empty()).then(|| {
            let names = self.names(&never);
            format!(
                "{} won't have it for {names}; the others have theirs",
                self.config.server
            )
            .into()
        });
        Ok(Told {
            note,
            ..Told::default()
        })
    }
}

impl Email {
    fn remember(&mut self, id: &str, done: BTreeSet<usize>) {
        if done.is_empty() {
            return;
        }
        if self.partial.len() >= PARTIAL_MAX && !self.partial.contains_key(id) {
            self.partial.pop_first();
        }
        self.partial.insert(id.into(), done);
    }

    /// The addresses of recipients, with the server's codes.
    fn names(&self, whom: &[(usize, u16)]) -> String {
        let names = whom.iter().filter_map(|(index, code)| {
            let mailbox = self.config.to.get(*index)?;
            Some(format!("{} ({code})", mailbox.email))
        });
        names.collect::<Vec<_>>().join(", ")
    }
}
