//! Checkpoints kept out of this host's reach: whoever rewrites the journal, root of this host included, can't
//! rewrite those, and `verify --checkpoint` shows what was done.
//!
//! A witness that doesn't answer delays nothing. The next try takes the checkpoint of then, which vouches for
//! everything before as well.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use http::{Method, Request, header};
use interceptor_core::{login::Secret, record::Event};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::{
    clock, config::JournalConfig, fetch::Fetch, journal::Journal, notify::ServiceUrl,
    secret::Source, sync::lock,
};

/// How soon a witness that failed is tried again at first; each time twice as long, up to `every`.
const AGAIN: Duration = Duration::from_secs(1);

/// What stands in an address for the number of the last record that a checkpoint vouches for.
const SEQ: &str = "{seq}";

/// How long the last checkpoint of a daemon may take.
const LAST: Duration = Duration::from_secs(3);

/// A place for checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub enum Witness {
    /// At the end of a file, one behind the other; on another host's disk, if it is to be of use.
    File(PathBuf),
    /// Sent to an address.
    Url {
        /// Which; [`SEQ`] in it stands for the number of the last record that is vouched for.
        url: Box<str>,
        /// What of it may be told.
        shown: Box<str>,
        /// `POST` or `PUT`.
        method: Method,
        /// What proves the right to.
        bearer: Option<Source>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    method: Option<HowSent>,
    #[serde(default)]
    bearer: Option<Source>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HowSent {
    Post,
    Put,
}

impl TryFrom<Fields> for Witness {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields {
            file,
            url,
            method,
            bearer,
        } = fields;
        match (file, url) {
            (Some(file), None) => {
                if method.is_some() || bearer.is_some() {
                    return Err("`method` and `bearer` are of a witness with a `url`".to_owned());
                }
                if !file.is_absolute() {
                    return Err(format!(
                        "`{}` depends on where the daemon is started: give the whole path",
                        file.display()
                    ));
                }
                Ok(Self::File(file))
            }
            (None, Some(url)) => {
                let shown = ServiceUrl::parse(&url.replace(SEQ, "0"))?;
                Ok(Self::Url {
                    url: url.into(),
                    shown: format!("{shown:?}").into(),
                    method: match method {
                        Some(HowSent::Put) => Method::PUT,
                        Some(HowSent::Post) | None => Method::POST,
                    },
                    bearer,
                })
            }
            _ => Err("a witness is a `file: /path` or a `url: https://…`".to_owned()),
        }
    }
}

impl Witness {
    /// Where its secret stands, if it has one.
    pub fn secret(&self) -> Option<&Source> {
        match self {
            Self::File(_) => None,
            Self::Url { bearer, .. } => bearer.as_ref(),
        }
    }

    /// What it is called.
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Url { shown, .. } => shown.to_string(),
        }
    }
}

/// The witnesses of a journal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witnesses(Arc<[Told]>);

/// A witness, and what it has been told.
#[derive(Debug)]
struct Told {
    witness: Witness,
    fetch: Fetch,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The checkpoint that it took last.
    note: Option<String>,
    /// Why it takes none.
    failing: Option<String>,
}

impl Witnesses {
    /// Those of `config`.
    ///
    /// # Errors
    /// Where what TLS is to believe can't be read.
    pub(crate) fn new(config: &JournalConfig, roots: &[PathBuf]) -> io::Result<Self> {
        if config.witnesses.is_empty() {
            return Ok(Self::default());
        }
        let roots: io::Result<Vec<String>> = roots.iter().map(std::fs::read_to_string).collect();
        let fetch = Fetch::new(&roots?)?;
        let told = config.witnesses.iter().map(|witness| Told {
            witness: witness.clone(),
            fetch: fetch.clone(),
            state: Mutex::default(),
        });
        Ok(Self(told.collect()))
    }

    /// Has each told of the checkpoints of the journal in `folder`, one `every` so often, for as long as the runtime
    /// runs.
    pub(crate) fn start(&self, journal: &Journal, folder: &Path, every: Duration) {
        for place in 0..self.0.len() {
            let (all, journal, folder) = (self.0.clone(), journal.clone(), folder.to_owned());
            tokio::spawn(async move {
                if let Some(told) = all.get(place) {
                    told.keep(&journal, &folder, every).await;
                }
            });
        }
    }

    /// Has all told of the last checkpoint, within some seconds.
    pub(crate) async fn last(&self, folder: &Path) {
        let Some(note) = checkpoint(folder).await else {
            return;
        };
        let all = self.0.iter().map(|told| told.tell(&note));
        // Who isn't told of it now is told first by the next daemon.
        let _ = timeout(LAST, join_all(all)).await;
    }

    /// What is wrong with them, for people.
    pub(crate) fn troubles(&self) -> Vec<(String, &'static str)> {
        let failing = self.0.iter().filter_map(|told| {
            let error = lock(&told.state).failing.clone()?;
            let name = told.witness.name();
            Some((
                format!("the witness {name} takes no checkpoints: {error}"),
                "what is recorded meanwhile can be rewritten unseen by root of this host; mend it, or take it out of `journal: {witnesses: […]}`",
            ))
        });
        failing.collect()
    }
}

impl Told {
    async fn keep(&self, journal: &Journal, folder: &Path, every: Duration) {
        let mut again = AGAIN;
        loop {
            let note = checkpoint(folder).await;
            let Some(note) = note.filter(|note| self.is_news(note)) else {
                sleep(AGAIN.min(every)).await;
                continue;
            };
            let event = self.tell(&note).await;
            if let Some(event) = event {
                // While nothing can be recorded, that is said elsewhere.
                let _ = journal.append(None, &Arc::from(""), clock::now(), [event]);
            }
            if self.is_news(&note) {
                sleep(again.min(every)).await;
                again = again.saturating_mul(2);
            } else {
                again = AGAIN;
                sleep(every).await;
            }
        }
    }

    fn is_news(&self, note: &str) -> bool {
        lock(&self.state).note.as_deref() != Some(note)
    }

    /// Tells it, and what to record where it begins to fail or is there again.
    async fn tell(&self, note: &str) -> Option<Event> {
        if !self.is_news(note) {
            return None;
        }
        let sent = self.send(note).await;
        let mut state = lock(&self.state);
        let witness = self.witness.name();
        match sent {
            Ok(()) => {
                state.note = Some(note.to_owned());
                state.failing.take()?;
                let seq = checkpointed(note).to_owned();
                let facts = [("witness", witness), ("seq", seq)];
                Some(Event::notice("witness_reached", facts))
            }
            Err(error) => {
                let before = state.failing.replace(error.clone());
                if before.is_some() {
                    return None;
                }
                tracing::error!(witness, error, "a witness takes no checkpoint");
                let facts = [("witness", witness), ("error", error)];
                Some(Event::notice("witness_failed", facts))
            }
        }
    }

    async fn send(&self, note: &str) -> Result<(), String> {
        match &self.witness {
            Witness::File(path) => {
                let (path, note) = (path.clone(), note.to_owned());
                let written = tokio::task::spawn_blocking(move || add(&path, &note)).await;
                written
                    .map_err(|error| error.to_string())?
                    .map_err(|error| error.to_string())
            }
            Witness::Url {
                url,
                method,
                bearer,
                ..
            } => {
                let mut request = Request::builder()
                    .method(method)
                    .uri(url.replace(SEQ, checkpointed(note)))
                    .header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
                if let Some(source) = bearer {
                    request = request.header(header::AUTHORIZATION, authorization(source).await?);
                }
                let request = request
                    .body(note.as_bytes().to_vec())
                    .map_err(|error| error.to_string())?;
                let answer = self.fetch.ask(request).await;
                let status = answer.map_err(|error| error.to_string())?.status();
                match status.is_success() {
                    true => Ok(()),
                    false => Err(format!("it answers {status}")),
                }
            }
        }
    }
}

/// The newest checkpoint of the journal in `folder`; before its first block there is none.
async fn checkpoint(folder: &Path) -> Option<String> {
    let path = folder.join("checkpoint");
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path));
    read.await.ok()?.ok()
}

/// The number of the last record that the checkpoint in `note` vouches for.
fn checkpointed(note: &str) -> &str {
    let line = note.lines().find_map(|line| line.strip_prefix("seq "));
    line.unwrap_or("0")
}

/// What proves the right to send something.
async fn authorization(source: &Source) -> Result<header::HeaderValue, String> {
    let source = source.clone();
    let secret = tokio::task::spawn_blocking(move || source.read()).await;
    let secret: Secret = secret
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let mut value = Zeroizing::new(b"Bearer ".to_vec());
    value.extend_from_slice(secret.expose());
    let mut value = header::HeaderValue::from_bytes(&value)
        .map_err(|_| "its secret can't stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Adds `note` to the end of a file, with an empty line between it and the one before.
fn add(path: &Path, note: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let gap = if file.metadata()?.len() > 0 { "\n" } else { "" };
    file.write_all(format!("{gap}{note}").as_bytes())?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> Result<JournalConfig, String> {
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn a_witness_is_one_thing_and_out_of_others_sight() {
        let good = config(
            "witnesses:\n- {file: /mnt/a}\n- {url: 'https://a.example/c/{seq}', method: put, bearer: {env: T}}\n- {url: 'http://localhost:1/'}\nwitness_every: 5m\n",
        )
        .unwrap();
        assert_eq!(good.witnesses.len(), 3);
        assert_eq!(good.witness_every, Duration::from_secs(300));
        for (yaml, expected) in [
            ("witnesses: [{}]", "a witness is a `file: /path` or a `url"),
            ("witnesses: [{file: /a, url: 'https://b'}]", "a witness is"),
            ("witnesses: [{file: a}]", "give the whole path"),
            ("witnesses: [{url: 'http://a.example/'}]", "in the clear"),
            ("witnesses: [{url: 'ftp://a.example/'}]", "this is no URL"),
            (
                "witnesses: [{file: /a, method: put}]",
                "are of a witness with a `url`",
            ),
            ("witness_every: 0s", "is no time"),
        ] {
            let error = config(yaml).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }

    #[test]
    fn notes_stand_behind_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        for note in ["a\n1\n\nsigned\n", "a\n2\n\nsigned\n"] {
            add(&path, note).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "a\n1\n\nsigned\n\na\n2\n\nsigned\n"
        );
    }
}
