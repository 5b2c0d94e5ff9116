//! Answers of many lines: a JSON object each, as they come.

use std::{
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    sync::Arc,
};

use axum::{
    body::{Body, Bytes},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use interceptor_core::record::{Record, SessionId};
use serde::Serialize;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{
    host::{Failure, FailureKind, Host},
    routes::Stopping,
};
use crate::{
    approval::{Approvals, Change},
    journal::{Extent, Filter, Lines, Selection},
};

/// Lines that may wait for a slow reader.
const LINES_QUEUED: usize = 64;

type Sender = mpsc::Sender<Bytes>;

/// The records of one session.
pub(super) fn records(records: Vec<Record>, stopping: Stopping) -> Response {
    let (sender, response) = stream(stopping);
    tokio::task::spawn_blocking(move || {
        let mut lines = Lines::default();
        for record in &records {
            if !send(&sender, &lines.line(record)) {
                break;
            }
        }
    });
    response
}

/// The records that `filter` takes, in that extent, from disk.
pub(super) fn export(
    host: Arc<dyn Host>,
    filter: Filter,
    extent: Extent,
    stopping: Stopping,
) -> Response {
    let (sender, response) = stream(stopping);
    tokio::task::spawn_blocking(move || {
        let mut selection = Selection::new(filter, extent);
        let read = host.journal().reader().and_then(|reader| {
            reader.each(|record| selection.take(&record, |line| send(&sender, &line)))
        });
        if let Err(error) = read {
            send(&sender, &Failure::from(error).body());
        }
    });
    response
}

/// What proves that `sessions` are on record as they are.
pub(super) fn evidence(
    host: Arc<dyn Host>,
    sessions: BTreeSet<SessionId>,
    stopping: Stopping,
) -> Response {
    let (sender, response) = stream(stopping);
    tokio::task::spawn_blocking(move || {
        let proved = host.journal().evidence(&sessions, |line| {
            sender.blocking_send(Bytes::copy_from_slice(line)).is_ok()
        });
        if let Err(error) = proved {
            send(&sender, &Failure::from(error).body());
        }
    });
    response
}

/// The records that `filter` takes, as they are made.
pub(super) fn tail(
    mut records: broadcast::Receiver<Arc<Record>>,
    filter: Filter,
    stopping: Stopping,
) -> Response {
    let (sender, response) = stream(stopping);
    tokio::spawn(async move {
        let mut lines = Lines::default();
        loop {
            // Without a reader there is nobody to tell.
            let record = tokio::select! {
                () = sender.closed() => return,
                record = records.recv() => record,
            };
            let line = match record {
                Ok(record) => {
                    let line = lines.line(&record);
                    if !filter.takes(&record) {
                        continue;
                    }
                    encode(&line)
                }
                Err(RecvError::Lagged(missed)) => encode(
                    &Failure::new(
                        FailureKind::Unavailable,
                        format!("{missed} records came faster than they were read"),
                    )
                    .with_remedy("`interceptor export` has them all")
                    .body(),
                ),
                Err(RecvError::Closed) => return,
            };
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    response
}

/// What waits for approval, then every change.
pub(super) fn approvals(approvals: &Approvals, stopping: Stopping) -> Response {
    // Watching begins before the list is made, so that nothing falls between the two.
    let mut changes = approvals.watch();
    let pending = approvals.list(false);
    let (sender, response) = stream(stopping);
    tokio::spawn(async move {
        let mut told = HashSet::new();
        for summary in pending {
            told.insert(summary.id);
            let line = encode(&Change::Requested(Box::new(summary)));
            if sender.send(line).await.is_err() {
                return;
            }
        }
        loop {
            let change = tokio::select! {
                () = sender.closed() => return,
                change = changes.recv() => change,
            };
            let line = match change.as_deref() {
                Ok(Change::Requested(summary)) if told.remove(&summary.id) => continue,
                Ok(change) => encode(change),
                Err(RecvError::Lagged(missed)) => encode(&Change::Missed { changes: *missed }),
                Err(RecvError::Closed) => return,
            };
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    response
}

/// A response whose lines come from the sender, until either side or the daemon ends it.
fn stream(mut stopping: Stopping) -> (Sender, Response) {
    let (sender, receiver) = mpsc::channel::<Bytes>(LINES_QUEUED);
    let lines = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let lines = futures_util::StreamExt::take_until(lines, async move {
        // An error means that the daemon is gone.
        _ = stopping.wait_for(|stopping| *stopping).await;
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    (sender, (headers, Body::from_stream(lines)).into_response())
}

/// Sends a line from a blocking thread; `false` where nobody reads any more.
fn send(sender: &Sender, line: &impl Serialize) -> bool {
    sender.blocking_send(encode(line)).is_ok()
}

fn encode(line: &impl Serialize) -> Bytes {
    // These types have string keys and no failing serializers; an empty line would be skipped.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}
