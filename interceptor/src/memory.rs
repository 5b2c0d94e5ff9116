//! How much memory a session holds, and all sessions of an agent together.
//!
//! What decodes, decompresses, frames and waits holds bytes in buffers of its own and of libraries', and a list of
//! them would be incomplete with the next protocol. The allocator knows all of them: it counts, thread by thread,
//! and what was taken and not given back while a session was polled is what the session holds.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes that a session may hold however much its agent does: what it takes to read a request and refuse it, so that
/// an agent's large sessions don't take from its small ones. Some 60 KiB are buffers of both sides.
const IN_ANY_CASE: u64 = 256 << 10;

/// The system's allocator, counting.
#[derive(Debug)]
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes that this thread has allocated, less those that it has freed, since that was last looked at.
    static BALANCE: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: usize, sign: i64) {
    // Sizes are below `isize::MAX`. There is nothing to tear down, so it is there as long as the thread.
    let bytes = bytes.cast_signed() as i64 * sign;
    let _ = BALANCE.try_with(|balance| balance.set(balance.get().wrapping_add(bytes)));
}

// SAFETY: every call goes to the system's allocator as it came, and nothing here allocates. An allocator can't be
// had without `unsafe`, and nobody else can tell how much a session holds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is the one that is wanted.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What an agent's sessions hold together.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Bytes that they may.
    most: u64,
    held: AtomicU64,
}

/// What one session holds of it. What a session has others free, or frees for others, is miscounted by that; it is
/// never less than nothing, and all is given back at its end.
#[derive(Debug)]
pub(crate) struct Holding {
    of: Arc<Memory>,
    held: AtomicU64,
}

impl Memory {
    /// Of an agent whose sessions may hold `most` bytes.
    pub(crate) const fn new(most: u64) -> Self {
        Self {
            most,
            held: AtomicU64::new(0),
        }
    }
}

impl Holding {
    /// Nothing so far.
    pub(crate) const fn new(of: Arc<Memory>) -> Self {
        Self {
            of,
            held: AtomicU64::new(0),
        }
    }

    /// `future`, with what it holds counted. It isn't to be polled within another one that is.
    pub(crate) fn of<F: Future>(self: Arc<Self>, future: F) -> impl Future<Output = F::Output> {
        let mut future = Box::pin(future);
        poll_fn(move |context| {
            BALANCE.set(0);
            let polled = future.as_mut().poll(context);
            self.settle();
            polled
        })
    }

    /// Whether the agent holds more than it may, and this is one of the sessions that do.
    pub(crate) fn is_too_much(&self) -> bool {
        self.settle();
        self.held.load(Ordering::Relaxed) > IN_ANY_CASE
            && self.of.held.load(Ordering::Relaxed) > self.of.most
    }

    /// Takes down what has changed. One thread at a time polls it.
    fn settle(&self) {
        let balance = BALANCE.replace(0);
        let before = self.held.load(Ordering::Relaxed);
        let after = before.saturating_add_signed(balance);
        self.held.store(after, Ordering::Relaxed);
        if after >= before {
            self.of.held.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.of.held.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let held = *self.held.get_mut();
        self.of.held.fetch_sub(held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Polls it once.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Holds `sizes` one after the other, one a poll, telling each time whether that is too much.
    async fn hold(holding: &Holding, sizes: &[usize]) {
        let mut kept = Vec::new();
        for size in sizes {
            kept = vec![1_u8; *size];
            if holding.is_too_much() {
                return;
            }
            tokio::task::yield_now().await;
        }
        drop(kept);
        std::future::pending::<()>().await;
    }

    #[test]
    fn an_agent_s_sessions_are_counted_together_and_give_all_back() {
        let agent = Arc::new(Memory::new(10 << 20));
        let one = Arc::new(Holding::new(agent.clone()));
        let other = Arc::new(Holding::new(agent.clone()));
        {
            let (first, second) = (one.clone(), other.clone());
            let mut six = std::pin::pin!(one.clone().of(hold(&first, &[6 << 20, 1 << 20])));
            let mut five = std::pin::pin!(other.clone().of(hold(&second, &[5 << 20])));
            // What is allocated between polls is nobody's.
            let unrelated = vec![1_u8; 64 << 20];
            assert!(poll(six.as_mut()).is_pending());
            drop(unrelated);
            assert!(agent.held.load(Ordering::Relaxed) >= 6 << 20);
            assert!(poll(five.as_mut()).is_ready());
            // It has let go of what was too much.
            assert!(other.held.load(Ordering::Relaxed) < 64 << 10);
            assert!(poll(six.as_mut()).is_pending());
            let held = one.held.load(Ordering::Relaxed);
            assert!((1 << 20..2 << 20).contains(&held), "{held}");
        }
        drop((one, other));
        assert_eq!(agent.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_sessions_go_on_beside_large_ones() {
        let agent = Arc::new(Memory::new(1 << 20));
        let large = Arc::new(Holding::new(agent.clone()));
        let small = Arc::new(Holding::new(agent.clone()));
        let mut over = std::pin::pin!(large.clone().of(async { vec![1_u8; 2 << 20] }));
        let kept = poll(over.as_mut());
        assert!(kept.is_ready());
        assert!(large.is_too_much());
        let asked = small.clone();
        let mut beside = std::pin::pin!(small.of(async move {
            let little = vec![1_u8; 100 << 10];
            (asked.is_too_much(), little.len())
        }));
        assert_eq!(poll(beside.as_mut()), Poll::Ready((false, 100 << 10)));
    }
}
