//! The line to the daemon: its control API, asked in somebody's name.

use std::{io, os::unix::net::UnixStream, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    header::CONTENT_TYPE,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::control::{ErrorBody, IDENTITY, Identity, Note};

/// How long the daemon may take to begin an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest answer that isn't a stream, in bytes: an approval with an operation of the largest size.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// The line. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Daemon(SendRequest<Full<Bytes>>);

/// Why the daemon doesn't do it.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    pub(crate) remedy: String,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, error: &str, remedy: &str) -> Self {
        Self {
            status,
            error: error.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    fn broken(error: impl ToString) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            error: format!("the daemon can't be asked: {}", error.to_string()),
            remedy: "its log says more; `interceptor status` shows how it is".to_owned(),
        }
    }
}

impl Daemon {
    /// The line at `socket`, and what ends when it does.
    ///
    /// # Errors
    /// Where the daemon is gone.
    pub(crate) async fn connect(
        socket: UnixStream,
    ) -> io::Result<(Self, impl Future<Output = ()>)> {
        socket.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(socket)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok((Self(sender), async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the line to the daemon ended");
            }
        }))
    }

    /// What the daemon says to `identity`, whole.
    ///
    /// # Errors
    /// Its refusal.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        identity: &Identity,
        path: &str,
    ) -> Result<T, Refused> {
        self.ask(Some(identity), Method::GET, path, Bytes::new())
            .await
    }

    /// The same with what the answer says in the header `name`.
    ///
    /// # Errors
    /// Its refusal.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        identity: &Identity,
        path: &str,
        name: &str,
    ) -> Result<(T, Option<String>), Refused> {
        let response = self
            .send(Some(identity), Method::GET, path, Bytes::new())
            .await?;
        let value = response.headers().get(name);
        let value = value.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        Ok((whole(response).await?, value))
    }

    /// The same for something that is done.
    ///
    /// # Errors
    /// Its refusal.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        identity: &Identity,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Refused> {
        let body = serde_json::to_vec(body).map_err(Refused::broken)?;
        self.ask(Some(identity), Method::POST, path, body.into())
            .await
    }

    /// Asks something for the console itself.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub(crate) async fn own<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Refused> {
        let body = serde_json::to_vec(body).map_err(Refused::broken)?;
        self.ask(None, Method::POST, path, body.into()).await
    }

    /// Has something on record; what can't be is said in the log.
    pub(crate) async fn note<const N: usize>(&self, name: &str, detail: [(&str, &str); N]) {
        let detail = detail.map(|(name, value)| (name.into(), value.into()));
        let note = Note {
            name: name.into(),
            detail: detail.into(),
        };
        if let Err(refused) = self.own::<()>("/console/notes", &note).await {
            tracing::error!(error = refused.error, name, "something isn't on record");
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        identity: Option<&Identity>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Refused> {
        whole(self.send(identity, method, path, body).await?).await
    }

    /// What the daemon says to `identity`, as it comes.
    ///
    /// # Errors
    /// Where it can't be asked.
    pub(crate) async fn send(
        &self,
        identity: Option<&Identity>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Refused> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://interceptor{path}"))
            .header(CONTENT_TYPE, "application/json");
        if let Some(identity) = identity {
            let json = serde_json::to_vec(identity).map_err(Refused::broken)?;
            request = request.header(IDENTITY, URL_SAFE_NO_PAD.encode(json));
        }
        let request = request.body(Full::new(body)).map_err(Refused::broken)?;
        let mut sender = self.0.clone();
        let sent = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        timeout(PATIENCE, sent)
            .await
            .map_err(|_| Refused::broken("it takes too long"))?
            .map_err(Refused::broken)
    }
}

/// What `response` says, or the refusal that it is.
async fn whole<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Refused> {
    let status = response.status();
    let whole = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(Refused::broken)?
        .to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&whole).map_err(Refused::broken);
    }
    let body: ErrorBody = serde_json::from_slice(&whole).map_err(Refused::broken)?;
    Err(Refused {
        status,
        error: body.error,
        remedy: body.remedy,
    })
}
