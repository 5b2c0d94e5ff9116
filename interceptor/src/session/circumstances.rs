//! What the meaning of an operation depends on besides its bytes: whoever sends the same bytes again may mean
//! something else by them.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use interceptor_core::{
    operation::{Digest, Operation},
    protocol::{self, postgres::shape::Trace},
};

/// What a session did so far that later operations depend on.
#[derive(Debug, Default)]
pub(super) struct Circumstances {
    /// How it began: as whom, in which database, with which settings.
    beginning: Bytes,
    /// All that may have changed what later operations mean, in order.
    trail: Option<Digest>,
}

impl Circumstances {
    /// Notes how the session began, as its protocol says it.
    pub(super) fn begun(&mut self, beginning: Bytes) {
        self.beginning = beginning;
    }

    /// Notes that `operation` goes on.
    pub(super) fn passed(&mut self, operation: &Operation) {
        match protocol::trace(operation) {
            Trace::None => {}
            // It undoes or keeps what was done before; without anything it makes no difference.
            Trace::Transaction if self.trail.is_none() => {}
            Trace::Transaction | Trace::State => {
                self.trail = Some(digest(|part| {
                    part(b"interceptor trail v1");
                    part(&self.trail.map_or([0; 32], |trail| trail.0));
                    part(operation.description.action().as_bytes());
                    part(&operation.content);
                    for parameter in &*operation.parameters {
                        part(&[parameter.format as u8, u8::from(parameter.value.is_some())]);
                        part(parameter.value.as_deref().unwrap_or_default());
                    }
                }));
            }
        }
    }

    /// Whether something may have changed what names mean.
    pub(super) const fn are_changed(&self) -> bool {
        self.trail.is_some()
    }

    /// What `operation` depends on. It isn't for the record as it is: secrets are in it, and short ones could be
    /// guessed.
    pub(super) fn of(&self, operation: &Operation) -> Digest {
        digest(|part| {
            part(b"interceptor circumstances v1");
            part(&self.beginning);
            part(&self.trail.map_or([0; 32], |trail| trail.0));
            // With the credentials, which its content is without.
            let fields = operation.http.as_ref().map(|request| request.fields.raw());
            part(fields.map_or(&[], |raw| raw));
        })
    }
}

/// SHA-256 over parts, each behind its length.
fn digest(parts: impl FnOnce(&mut dyn FnMut(&[u8]))) -> Digest {
    let mut context = Context::new(&SHA256);
    parts(&mut |bytes| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    });
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Digest(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::operation::{Description, Effects, Protocol};

    use super::*;

    fn sql(action: &str, effects: Effects, content: &'static str) -> Operation {
        Operation {
            protocol: Protocol::Postgres,
            description: Arc::new(Description {
                actions: [action.into()].into(),
                effects,
                ..Description::default()
            }),
            content: Bytes::from_static(content.as_bytes()),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        }
    }

    fn after(statements: &[(&str, Effects, &'static str)]) -> Digest {
        let mut circumstances = Circumstances::default();
        circumstances.begun(Bytes::from_static(b"user\0u\0database\0d\0"));
        for (action, effects, content) in statements {
            circumstances.passed(&sql(action, *effects, content));
        }
        circumstances.of(&sql("DROP TABLE", Effects::SCHEMA, "DROP TABLE t"))
    }

    #[test]
    fn what_changes_what_a_statement_means_tells_and_rows_and_transactions_dont() {
        const READ: Effects = Effects::READ;
        let plain = after(&[]);
        let rows = [
            ("SELECT", READ, "SELECT 1"),
            ("UPDATE", Effects::WRITE, "UPDATE t SET x = 1"),
        ];
        assert_eq!(after(&rows), plain);
        // A transaction that failed at the held statement, and the next attempt.
        let again = [("ROLLBACK", READ, "ROLLBACK"), ("BEGIN", READ, "BEGIN")];
        assert_eq!(after(&again), plain);
        let path = ("SET", READ, "SET search_path = staging");
        let other = ("SET", READ, "SET search_path = production");
        let temporary = ("CREATE TABLE", Effects::SCHEMA, "CREATE TEMP TABLE t ()");
        let function = ("SELECT", READ | Effects::EXECUTE, "SELECT f()");
        let rolled_back = [path, ("ROLLBACK", READ, "ROLLBACK")];
        let mut all = vec![plain, after(&rolled_back), after(&[path, other])];
        all.extend([path, other, temporary, function].map(|one| after(&[one])));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn as_whom_tells() {
        let drop = sql("DROP TABLE", Effects::SCHEMA, "DROP TABLE t");
        let [one, other] = [b"database\0test\0", b"database\0prod\0"].map(|beginning| {
            let mut circumstances = Circumstances::default();
            circumstances.begun(Bytes::from_static(beginning));
            circumstances.of(&drop)
        });
        assert!(one != other);
    }
}
