//! Copies in an object store of NATS JetStream.
//!
//! Its client keeps the SHA-256 of what it was handed beside each object, and each part is acknowledged by the stream
//! before the next is sent. That digest is this host's word, not the server's, so what was sent is read back once.
//! Servers that a cluster tells of aren't followed to: those that are configured are.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_nats::{
    ConnectOptions,
    jetstream::{
        self,
        object_store::{GetErrorKind, InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore},
    },
};
use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::{Buf as _, Bytes};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, ReadBuf},
    sync::{Mutex, mpsc},
};

use super::{
    Held, SMALL_BYTES_MAX,
    config::Subjects,
    piece::{Piece, Sha256, fixed, while_moving},
};
use crate::{fetch::chain, secret};

/// How long a server may take to be there.
const CONNECTING: Duration = Duration::from_secs(10);

/// How long it may take over one answer.
const ANSWERING: Duration = Duration::from_secs(15);

/// Bytes of an object that are one message: a server takes a megabyte unless it is told otherwise.
const CHUNK_BYTES: usize = 128 << 10;

/// An object store with a copy.
pub(super) struct Store {
    config: Subjects,
    tls: ClientConfig,
    /// What is open; nothing, where something went wrong on it.
    open: Mutex<Option<ObjectStore>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", self.config)
    }
}

impl Store {
    pub(super) fn new(config: Subjects, tls: ClientConfig) -> Self {
        Self {
            config,
            tls,
            open: Mutex::default(),
        }
    }

    /// What it has under `name`.
    pub(super) async fn held(&self, name: &str) -> Result<Option<Held>, String> {
        let name = self.full(name);
        self.with(async |store| match store.info(&name).await {
            Ok(info) if info.deleted => Ok(None),
            Ok(info) => Ok(Some(Held {
                bytes: info.size as u64,
                // What it has is what it gives back.
                sha256: None,
                is_locked: false,
            })),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(chain(&error)),
        })
        .await
    }

    /// Puts `piece` there.
    pub(super) async fn put(&self, piece: &Piece) -> Result<(), String> {
        let name = self.full(&piece.name);
        let moved = Arc::new(AtomicU64::new(0));
        let mut reading = Reading {
            parts: piece.parts(moved.clone()),
            rest: Bytes::new(),
        };
        self.with(async |store| {
            let about = ObjectMetadata {
                name: name.clone(),
                chunk_size: Some(CHUNK_BYTES),
                ..ObjectMetadata::default()
            };
            let put = while_moving(&moved, store.put(about, &mut reading)).await?;
            let info = put.map_err(|error| chain(&error))?;
            if digest_of(&info) == Some(piece.sha256) {
                Ok(())
            } else {
                Err(format!("{name} was changed on its way to the client"))
            }
        })
        .await
    }

    /// What it gives back for `name`, read to its end.
    pub(super) async fn sha256(&self, name: &str) -> Result<Option<Sha256>, String> {
        let mut context = digest::Context::new(&digest::SHA256);
        let found = self.each(name, |part| context.update(part)).await?;
        Ok(found.then(|| fixed(&context.finish())))
    }

    /// What is in the small object `name`, where there is one.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        let limit = usize::try_from(SMALL_BYTES_MAX).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        let found = self
            .each(name, |part| {
                let room = limit.saturating_sub(bytes.len());
                bytes.extend_from_slice(part.get(..room).unwrap_or(part));
            })
            .await?;
        Ok(found.then_some(bytes))
    }

    /// Hands what it gives back for `name` to `each`, part by part; whether it has such an object.
    async fn each(&self, name: &str, mut each: impl FnMut(&[u8])) -> Result<bool, String> {
        let name = self.full(name);
        self.with(async |store| {
            let moved = AtomicU64::new(0);
            let mut object = match store.get(&name).await {
                Ok(object) => object,
                Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(chain(&error)),
            };
            let reading = async {
                let mut part = vec![0; CHUNK_BYTES];
                loop {
                    match object.read(&mut part).await {
                        Ok(0) => return Ok(true),
                        Ok(count) => {
                            moved.fetch_add(count as u64, Ordering::Relaxed);
                            each(part.get(..count).unwrap_or_default());
                        }
                        // Other bytes than its digest says.
                        Err(error) => return Err(format!("{name} can't be read back: {error}")),
                    }
                }
            };
            while_moving(&moved, reading).await?
        })
        .await
    }

    /// Does `work` with the store; where that fails the next one gets a new connection.
    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&ObjectStore) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut open = self.open.lock().await;
        let store = match open.take() {
            Some(store) => store,
            None => self.connect().await?,
        };
        let done = work(&store).await;
        if done.is_ok() {
            *open = Some(store);
        }
        done
    }

    async fn connect(&self) -> Result<ObjectStore, String> {
        let config = &self.config;
        let mut options = ConnectOptions::new()
            .name("interceptor")
            .connection_timeout(CONNECTING)
            .request_timeout(Some(ANSWERING))
            .ignore_discovered_servers()
            // What is lost is connected anew by who asks next, who sees why it can't be.
            .max_reconnects(1)
            .require_tls(config.is_tls)
            .tls_client_config(self.tls.clone());
        if let Some((user, password)) = &config.login {
            let password = text(password).await?;
            options = options.user_and_password(user.to_string(), password);
        }
        if let Some(token) = &config.token {
            options = options.token(text(token).await?);
        }
        let client = async_nats::connect_with_options(&*config.server, options).await;
        let client = client.map_err(|error| chain(&error))?;
        let store = jetstream::new(client)
            .get_object_store(&*config.bucket)
            .await;
        store.map_err(|error| format!("its object store `{}`: {}", config.bucket, chain(&error)))
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.config.prefix)
    }
}

/// The digest that stands beside an object.
fn digest_of(info: &ObjectInfo) -> Option<Sha256> {
    let text = info.digest.as_deref()?.strip_prefix("SHA-256=")?;
    URL_SAFE.decode(text).ok()?.try_into().ok()
}

async fn text(source: &secret::Source) -> Result<String, String> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || source.read()).await;
    let secret = read
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    String::from_utf8(secret.expose().to_vec())
        .map_err(|_| "what it is signed in with is no text".to_owned())
}

/// A piece, as something to read.
struct Reading {
    parts: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match std::task::ready!(self.parts.poll_recv(context)) {
                Some(Ok(part)) => self.rest = part,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(into.remaining());
        into.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}
