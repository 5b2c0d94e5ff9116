//! What many have of one process, kept once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use crate::sync::lock;

/// The row that was last read of each process, for as long as somebody keeps it.
#[derive(Debug)]
pub(crate) struct Rows<T>(Mutex<HashMap<u32, Weak<[T]>>>);

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: PartialEq> Rows<T> {
    /// `row`, or the same one that is kept of process `pid` already.
    pub(crate) fn shared(&self, pid: u32, row: Arc<[T]>) -> Arc<[T]> {
        let mut rows = lock(&self.0);
        if let Some(kept) = rows.get(&pid).and_then(Weak::upgrade)
            && *kept == *row
        {
            return kept;
        }
        if rows.len() == rows.capacity() {
            rows.retain(|_, row| row.strong_count() > 0);
        }
        rows.insert(pid, Arc::downgrade(&row));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_kept_once_and_no_longer_than_somebody_has_it() {
        let rows = Rows::default();
        let one = rows.shared(7, vec!["a", "b"].into());
        assert!(Arc::ptr_eq(&one, &rows.shared(7, vec!["a", "b"].into())));
        // Another process has that number by now.
        let other = rows.shared(7, vec!["c"].into());
        assert_eq!((&*one, &*other), (&["a", "b"][..], &["c"][..]));
        drop((one, other));
        for pid in 0..1_000 {
            rows.shared(pid, vec!["x"].into());
        }
        let kept = lock(&rows.0).len();
        assert!(kept < 10, "{kept} that nobody has");
    }
}
