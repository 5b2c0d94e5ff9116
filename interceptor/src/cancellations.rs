//! Cancel requests that concern an operation which waits for people.
//!
//! They come on a connection of their own and name the session by a key that the server gave it. The
//! server, to which they go as well, knows nothing of an operation that it was never sent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::sync::lock;
use interceptor_core::{decoder::CancelKey, origin::Destination};
use tokio::sync::Notify;

/// The sessions of a daemon that can be asked to cancel what they wait for.
#[derive(Debug, Clone, Default)]
pub struct Cancellations {
    sessions: Arc<Mutex<Sessions>>,
}

/// Sessions by their server and what it gave them.
type Sessions = HashMap<(Destination, CancelKey), Arc<Notify>>;

/// A session that can be cancelled, for as long as this lives.
#[derive(Debug)]
pub struct Cancellable {
    cancellations: Cancellations,
    key: (Destination, CancelKey),
    cancelled: Arc<Notify>,
}

impl Cancellations {
    /// The session at `destination` is the one that `key` cancels.
    #[must_use]
    pub fn register(&self, destination: Destination, key: CancelKey) -> Cancellable {
        let cancelled = Arc::new(Notify::new());
        let key = (destination, key);
        self.lock().insert(key.clone(), cancelled.clone());
        Cancellable {
            cancellations: self.clone(),
            key,
            cancelled,
        }
    }

    /// Somebody asked `destination` to cancel what the session with `key` does.
    pub fn cancel(&self, destination: Destination, key: CancelKey) {
        if let Some(cancelled) = self.lock().get(&(destination, key)) {
            // Only for who waits now: a later operation isn't meant.
            cancelled.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }
}

impl Cancellable {
    /// Waits until the session is asked to cancel.
    pub async fn cancelled(&self) {
        self.cancelled.notified().await;
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        let mut sessions = self.cancellations.lock();
        // The server may have given the same key to a session that began before this one ended.
        if sessions
            .get(&self.key)
            .is_some_and(|known| Arc::ptr_eq(known, &self.cancelled))
        {
            sessions.remove(&self.key);
        }
    }
}
