//! Whether every connect is accounted for: what the kernel counts is held to what is on record.
//!
//! Of each agent: `redirected` connects whose SYN leaves are `begun`; each of those is `given_up` before the
//! proxy's side had it, `lost` (and refused), still `waiting`, or `taken`. Each that is taken is a session on
//! record, or `turned_away` on record, or `cut_off`: the daemon or the tag ended between the two. What is left
//! is unaccounted for, and there should be none.
//!
//! Datagrams are no connects: each question to a DNS server is a record or is refused, and nothing counts them.

mod ledger;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub use self::ledger::{Account, Ledger};
use crate::{
    clock,
    journal::Journal,
    kernel::{Connects, Kernel, Tag},
    sync::lock,
};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often what is counted is put on record, at most.
const RECORD_EVERY: Duration = Duration::from_secs(10);

/// Looks that all have to miss a connect before it counts as missing: at any one, some are just being
/// recorded.
const LOOKS: usize = 5;

/// The daemon's books.
#[derive(Debug)]
pub(crate) struct Books {
    kernel: Arc<Kernel>,
    journal: Journal,
    pages: Mutex<BTreeMap<u64, Page>>,
}

/// Counts what is put on record of an agent's connections.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sessions: AtomicU64,
    turned_away: AtomicU64,
}

impl Tally {
    /// A session is on record.
    pub(crate) fn session(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// A refusal is on record.
    pub(crate) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }
}

/// An agent's page.
#[derive(Debug, Default)]
struct Page {
    name: Arc<str>,
    tally: Arc<Tally>,
    cut_off: u64,
    /// Connections that nobody waits for any more, because the tag has ended.
    swept: u64,
    /// What was missing at the last looks: of what the kernel counted, and on record.
    missing: [[u64; 2]; LOOKS],
    /// What was last put on record, and when.
    recorded: Option<(Connects, Instant)>,
}

impl Page {
    /// How it stands now.
    ///
    /// Only what has been missing for as long as is remembered is said to be missing for good.
    fn account(&self, kernel: &Kernel, number: u64) -> Account {
        // What is on record first: what is counted meanwhile may seem missing, and nothing be missed.
        let sessions = self.tally.sessions.load(Ordering::Acquire);
        let turned_away = self.tally.turned_away.load(Ordering::Acquire);
        let mut connects = kernel.connects(number);
        connects.given_up += self.swept;
        Account {
            agent: (&*self.name).into(),
            number,
            unsettled: connects.unsettled().min(self.missing(0)),
            unrecorded: self.missing(1),
            connects,
            sessions,
            turned_away,
            cut_off: self.cut_off,
            is_closed: false,
        }
    }

    fn missing(&self, which: usize) -> u64 {
        let each = self.missing.iter().filter_map(|missing| missing.get(which));
        each.min().copied().unwrap_or(0)
    }
}

impl Books {
    /// Opens the books of all agents, where the daemon before left them; `past` is what it recorded. To be
    /// called before anything is accepted: what it took and didn't record has ended with it.
    pub(crate) fn open(kernel: Arc<Kernel>, journal: Journal, past: &Ledger) -> Self {
        let books = Self {
            kernel,
            journal,
            pages: Mutex::default(),
        };
        for tag in books.kernel.tags() {
            let before = past.of(&tag.agent.name, tag.number);
            let mut page = Page {
                name: Arc::from(&*tag.agent.name),
                ..Page::default()
            };
            page.tally = Arc::new(Tally {
                sessions: before.sessions.into(),
                turned_away: before.turned_away.into(),
            });
            let on_record = before.sessions + before.turned_away;
            let taken = books.kernel.connects(tag.number).taken;
            page.cut_off = taken.saturating_sub(on_record + before.unrecorded);
            let account = page.account(&books.kernel, tag.number);
            books.record(&mut page, &account);
            books.pages().insert(tag.number, page);
        }
        books
    }

    /// Looks after the books for as long as the daemon runs.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut timer = tokio::time::interval(LOOK_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let books = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || books.look()).await {
                tracing::error!(%error, "the books were not looked after");
            }
        }
    }

    /// An agent was tagged.
    pub(crate) fn begin(&self, tag: &Tag) {
        let mut pages = self.pages();
        let page = pages.entry(tag.number).or_default();
        page.name = Arc::from(&*tag.agent.name);
        let account = page.account(&self.kernel, tag.number);
        self.record(page, &account);
    }

    /// Where to count what is put on record of agent number `number`.
    pub(crate) fn tally(&self, number: u64) -> Arc<Tally> {
        self.pages().entry(number).or_default().tally.clone()
    }

    /// An agent's tag has been removed: nothing of it comes any more.
    pub(crate) fn close(&self, number: u64) {
        let mut pages = self.pages();
        let Some(mut page) = pages.remove(&number) else {
            return;
        };
        page.swept += self.kernel.give_up(number);
        let mut account = page.account(&self.kernel, number);
        // Who isn't known any more is refused as nobody.
        let on_record = account.sessions + account.turned_away;
        let accounted = on_record + account.unrecorded;
        account.cut_off = account.connects.taken.saturating_sub(accounted);
        account.is_closed = true;
        self.record(&mut page, &account);
        self.kernel.forget_counts(number);
    }

    /// Puts on record how all agents stand: the daemon stops.
    pub(crate) fn close_all(&self) {
        let tags = self.kernel.tags();
        let ended: Vec<u64> = self
            .pages()
            .keys()
            .filter(|number| !tags.iter().any(|tag| tag.number == **number))
            .copied()
            .collect();
        for number in ended {
            self.close(number);
        }
        for (number, page) in self.pages().iter_mut() {
            let account = page.account(&self.kernel, *number);
            self.record(page, &account);
        }
    }

    /// How all agents stand, by name.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let mut accounts: Vec<Account> = self
            .pages()
            .iter()
            .filter(|(_, page)| !page.name.is_empty())
            .map(|(number, page)| page.account(&self.kernel, *number))
            .collect();
        accounts.sort_by(|a, b| a.agent.cmp(&b.agent));
        accounts
    }

    fn look(&self) {
        let tags = self.kernel.tags();
        let mut ended = Vec::new();
        for (number, page) in self.pages().iter_mut() {
            let Some(tag) = tags.iter().find(|tag| tag.number == *number) else {
                // One that has only been counted for may be on its way to being tagged.
                if !page.name.is_empty() {
                    ended.push(*number);
                }
                continue;
            };
            page.name = Arc::from(&*tag.agent.name);
            let account = page.account(&self.kernel, *number);
            page.missing.rotate_left(1);
            if let Some(last) = page.missing.last_mut() {
                *last = [account.connects.unsettled(), account.not_on_record()];
            }
            let is_due = page.recorded.is_none_or(|(connects, at)| {
                connects != account.connects && at.elapsed() >= RECORD_EVERY
            });
            if is_due {
                self.record(page, &account);
            }
        }
        for number in ended {
            self.close(number);
        }
    }

    fn record(&self, page: &mut Page, account: &Account) {
        let recorded = self
            .journal
            .append(None, &page.name, clock::now(), [account.notice()]);
        if recorded.is_ok() {
            page.recorded = Some((account.connects, Instant::now()));
        }
    }

    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Page>> {
        lock(&self.pages)
    }
}
