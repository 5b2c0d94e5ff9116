//! How much an agent may put on record: one that moves much is slowed down, and takes the disk from nobody.

use std::{
    num::NonZeroU64,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use crate::sync::lock;
use tokio::time::Instant;

/// What one agent's sessions may, together.
#[derive(Debug)]
pub(crate) struct Volume {
    rate: NonZeroU64,
    /// Bytes that may be recorded at once; less than none where too much was.
    left: AtomicI64,
    renewed: Mutex<Instant>,
}

impl Volume {
    /// Of an agent that may record `rate` bytes a second.
    pub(super) fn new(rate: NonZeroU64) -> Self {
        Self {
            rate,
            left: AtomicI64::new(signed(rate.get())),
            renewed: Mutex::new(Instant::now()),
        }
    }

    /// Waits until something may be recorded: no longer than a second for each second's worth that was too much.
    pub(crate) async fn room(&self) {
        while self.left.load(Ordering::Relaxed) <= 0 {
            let left = self.renew();
            if left > 0 {
                return;
            }
            let missing = left.unsigned_abs() + 1;
            // As a fraction of a second; there is no precision to lose that matters.
            #[expect(clippy::cast_precision_loss, reason = "it is a pause")]
            let pause = missing as f64 / self.rate.get() as f64;
            tokio::time::sleep(Duration::from_secs_f64(pause.clamp(0.001, 1.0))).await;
        }
    }

    /// So many bytes were recorded.
    pub(crate) fn take(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.left.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Adds what has come since the last time, up to a second's worth; what is left then.
    fn renew(&self) -> i64 {
        let mut renewed = lock(&self.renewed);
        let elapsed = renewed.elapsed().as_nanos();
        let more = elapsed * u128::from(self.rate.get()) / 1_000_000_000;
        *renewed = Instant::now();
        let most = signed(self.rate.get());
        // What wasn't used before doesn't add up.
        let more = i64::try_from(more).unwrap_or(most).min(most);
        let left = self.left.load(Ordering::Relaxed);
        let added = more.min(most.saturating_sub(left));
        self.left.fetch_add(added, Ordering::Relaxed) + added
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_records_too_much_waits_and_nobody_else() {
        let [greedy, modest] = [(); 2].map(|()| Volume::new(1_000.try_into().unwrap()));
        let start = Instant::now();
        for _ in 0..100 {
            greedy.room().await;
            greedy.take(100);
            modest.room().await;
        }
        let took = start.elapsed();
        // Ten thousand bytes at a thousand a second, the first second's at once.
        assert!(took > Duration::from_millis(8_500), "{took:?}");
        assert!(took < Duration::from_millis(9_600), "{took:?}");
        // What isn't used doesn't add up.
        tokio::time::sleep(Duration::from_secs(60)).await;
        greedy.take(2_500);
        let start = Instant::now();
        greedy.room().await;
        let took = start.elapsed();
        assert!(took > Duration::from_millis(1_400), "{took:?}");
    }
}
