//! Speaks to the daemon over its control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Frame, Incoming},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use super::failed::{Failed, code};
use crate::control::ErrorBody;

/// How long an answer may take to begin. Taking a tag off may wait 5 s for processes to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest answer that isn't a stream, in bytes: an approval carries its whole operation, at most
/// twice as long in hexadecimal and with some escapes.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// Longest line of a stream, in bytes: a record with a response part or an operation.
const LINE_BYTES_MAX: usize = 512 << 20;

/// The daemon's control socket.
#[derive(Debug)]
pub(super) struct Client {
    control: PathBuf,
    runtime: Runtime,
}

/// Whether a stream is read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    On,
    Done,
}

impl Client {
    pub(super) fn new(control: PathBuf) -> Result<Self, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self { control, runtime })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// The same with what the answer says in the header `name`.
    pub(super) fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        name: &str,
    ) -> Result<(T, Option<String>), Failed> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path, Bytes::new()).await?;
            let value = response.headers().get(name);
            let value = value.and_then(|value| Some(value.to_str().ok()?.to_owned()));
            Ok((self.whole(response).await?, value))
        })
    }

    pub(super) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        self.ask(Method::DELETE, path, Bytes::new())
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failed> {
        let body = serde_json::to_vec(body).map_err(Failed::because)?;
        self.ask(Method::POST, path, body.into())
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failed> {
        self.runtime.block_on(async {
            let response = self.send(method, path, body).await?;
            self.whole(response).await
        })
    }

    async fn whole<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Failed> {
        let whole = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| self.broke(&error.to_string()))?;
        serde_json::from_slice(&whole.to_bytes()).map_err(|error| {
            self.broke(&error.to_string())
                .with_remedy("check that daemon and command are of the same version")
        })
    }

    /// Reads a stream, a line at a time, until it ends, `each` is done, or Ctrl-C.
    pub(super) fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> Result<Reading, Failed>,
    ) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let mut body = self
                .send(Method::GET, path, Bytes::new())
                .await?
                .into_body();
            let mut held = Vec::new();
            loop {
                let frame = tokio::select! {
                    frame = body.frame() => frame,
                    interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
                };
                let Some(frame) = frame else {
                    return Ok(());
                };
                let frame = frame.map_err(|error| self.broke(&error.to_string()))?;
                if self.take_lines(frame, &mut held, &mut each)? == Reading::Done {
                    return Ok(());
                }
            }
        })
    }

    /// Reads a stream until it ends or `each` is done; `opened` is told when it has begun. Ctrl-C ends the process, as it
    /// does where nothing is to be put back.
    pub(super) fn stream(
        &self,
        path: &str,
        opened: impl FnOnce(),
        mut each: impl FnMut(&[u8]) -> Result<Reading, Failed>,
    ) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path, Bytes::new()).await?;
            opened();
            let mut body = response.into_body();
            let mut held = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.broke(&error.to_string()))?;
                if self.take_lines(frame, &mut held, &mut each)? == Reading::Done {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Gives `each` the lines that are whole with `frame` behind what was `held`.
    fn take_lines(
        &self,
        frame: Frame<Bytes>,
        held: &mut Vec<u8>,
        mut each: impl FnMut(&[u8]) -> Result<Reading, Failed>,
    ) -> Result<Reading, Failed> {
        let Ok(data) = frame.into_data() else {
            return Ok(Reading::On);
        };
        held.extend_from_slice(&data);
        let mut rest = held.as_slice();
        while let Some((line, after)) = split_line(rest) {
            if !line.is_empty() && each(line)? == Reading::Done {
                return Ok(Reading::Done);
            }
            rest = after;
        }
        let read = held.len() - rest.len();
        held.drain(..read);
        if held.len() > LINE_BYTES_MAX {
            return Err(self.broke("a line is too long"));
        }
        Ok(Reading::On)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failed> {
        let stream = UnixStream::connect(&self.control)
            .await
            .map_err(|error| unreachable(&self.control, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broke(&error.to_string()))?;
        // It ends with the response; its errors come back through that.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "interceptor")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(Failed::because)?;
        let response = timeout(PATIENCE, sender.send_request(request))
            .await
            .map_err(|_| {
                Failed::with_code(
                    code::TOO_LONG,
                    format!(
                        "the daemon at {} did not answer within {} s",
                        self.control.display(),
                        PATIENCE.as_secs()
                    ),
                )
            })?
            .map_err(|error| self.broke(&error.to_string()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let whole = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| self.broke(&error.to_string()))?;
        match serde_json::from_slice::<ErrorBody>(&whole.to_bytes()) {
            Ok(body) => Err(Failed::because(body.error).with_remedy(body.remedy)),
            Err(_) => Err(self.broke(&status.to_string())),
        }
    }

    fn broke(&self, how: &str) -> Failed {
        Failed::because(format!(
            "the daemon at {} gave an answer that can't be read: {how}",
            self.control.display()
        ))
    }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

fn unreachable(control: &Path, error: &io::Error) -> Failed {
    let control = control.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failed::because(format!("you may not use the control socket {control}"))
                .with_remedy("run as root, or join the group `interceptor`")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failed::because(format!(
            "no daemon answers at {control}"
        ))
        .with_remedy("start one with `interceptor serve`, or name its socket with --control"),
        _ => Failed::because(format!(
            "the control socket {control} can't be used: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_daemon_is_said_with_what_to_do() {
        let client = Client::new("/nonexistent/control.sock".into()).unwrap();
        let failed = client.get::<serde_json::Value>("/v1/status").unwrap_err();
        assert_eq!(
            failed.to_string(),
            "no daemon answers at /nonexistent/control.sock; start one with `interceptor serve`, \
             or name its socket with --control"
        );
    }
}
