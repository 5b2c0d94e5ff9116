//! What a journal says of each agent's connects: what the kernel counted, and what is on record.

use std::{collections::HashMap, sync::Arc};

use interceptor_core::record::{Event, Notice, Record};
use serde::{Deserialize, Serialize};

use crate::{journal::SESSIONS_REMOVED, kernel::Connects};

/// Name of the notice that says what the kernel has counted.
const COUNTED: &str = "connects_counted";

/// The books of one agent, from its tag on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The agent's name.
    pub agent: Box<str>,
    /// Its number; two agents of one name, one after the other, have two.
    pub number: u64,
    /// What the kernel counted.
    #[serde(flatten)]
    pub connects: Connects,
    /// Sessions on record that connects began. Those of datagrams are none of them.
    pub sessions: u64,
    /// Connections that the proxy has refused on record.
    pub turned_away: u64,
    /// Connections that the proxy's side had taken and not yet recorded when the daemon, or the tag, ended.
    /// They ended with it, and nothing of them had passed.
    pub cut_off: u64,
    /// Connects of which the daemon itself could not say what became.
    pub unsettled: u64,
    /// Connections that the proxy's side had taken and that, for seconds on end, were not on record.
    pub unrecorded: u64,
    /// The agent is none any more: this is all.
    pub is_closed: bool,
}

impl Account {
    /// How many of its connects nothing accounts for.
    #[must_use]
    pub const fn unaccounted(&self) -> u64 {
        self.unsettled + self.not_on_record()
    }

    /// How many of those that the proxy's side has taken are not on record.
    pub(super) const fn not_on_record(&self) -> u64 {
        let accounted = self.sessions + self.turned_away + self.cut_off;
        self.connects.taken.saturating_sub(accounted)
    }

    /// How many are on record that the kernel's count, where it is an older one, doesn't know of.
    #[must_use]
    pub const fn not_counted_yet(&self) -> u64 {
        let accounted = self.sessions + self.turned_away + self.cut_off;
        accounted.saturating_sub(self.connects.taken)
    }

    /// What is put on record of it. Sessions and refusals are on record themselves.
    pub(super) fn notice(&self) -> Event {
        let numbers = self
            .numbers()
            .map(|(name, value)| (name, value.to_string()));
        let closed = self.is_closed.then(|| ("closed", "true".to_owned()));
        Event::notice(
            COUNTED,
            numbers
                .into_iter()
                .filter(|(name, value)| ALWAYS.contains(name) || value != "0")
                .chain(closed),
        )
    }

    const fn numbers(&self) -> [(&'static str, u64); 12] {
        let connects = &self.connects;
        [
            ("number", self.number),
            ("redirected", connects.redirected),
            ("direct", connects.direct),
            ("refused", connects.refused),
            ("begun", connects.begun),
            ("given_up", connects.given_up),
            ("lost", connects.lost),
            ("taken", connects.taken),
            ("waiting", connects.waiting),
            ("cut_off", self.cut_off),
            ("unsettled", self.unsettled),
            ("unrecorded", self.unrecorded),
        ]
    }

    /// Takes over what a notice says.
    fn read(&mut self, notice: &Notice) {
        let number = |name| {
            let value = notice.detail.get(name);
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        self.number = number("number");
        self.connects = Connects {
            redirected: number("redirected"),
            direct: number("direct"),
            refused: number("refused"),
            begun: number("begun"),
            given_up: number("given_up"),
            lost: number("lost"),
            taken: number("taken"),
            waiting: number("waiting"),
        };
        self.cut_off = number("cut_off");
        self.unsettled = number("unsettled");
        self.unrecorded = number("unrecorded");
        self.is_closed = notice.detail.contains_key("closed");
    }
}

/// What is said even where it is nothing.
const ALWAYS: [&str; 3] = ["number", "redirected", "taken"];

/// The books of all agents, as a journal tells them.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Vec<Account>,
    current: HashMap<Arc<str>, Current>,
}

/// Which account what comes under a name belongs to.
#[derive(Debug, Default)]
struct Current {
    /// Its place among the accounts.
    open: Option<usize>,
    /// A tag was asked for, and nothing has been counted since: what came since then belongs to the agent
    /// whose number the next count has.
    asked: Option<Account>,
}

impl Ledger {
    /// Takes in the next record of a journal.
    pub fn observe(&mut self, record: &Record) {
        if record.agent.is_empty() {
            return;
        }
        match &record.event {
            // No connect that the hooks count leads to a UNIX socket.
            Event::SessionStart(start) if start.origin.destination.address().is_none() => {}
            Event::SessionStart(_) => {
                if let Some(account) = self.account(&record.agent) {
                    account.sessions += 1;
                }
            }
            Event::Event(notice) => match &*notice.name {
                "connection_refused" => {
                    if let Some(account) = self.account(&record.agent) {
                        account.turned_away += 1;
                    }
                }
                // What is left of sessions and refusals that retention has removed.
                SESSIONS_REMOVED => {
                    if let Some(account) = self.account(&record.agent) {
                        let of = |name| notice.detail.get(name)?.parse().ok();
                        account.sessions += of("sessions").unwrap_or(0);
                        account.turned_away += of("refused").unwrap_or(0);
                    }
                }
                "tag_added" => {
                    let current = self.current.entry(record.agent.clone()).or_default();
                    current.asked.get_or_insert_default();
                }
                COUNTED => self.count(&record.agent, notice),
                _ => {}
            },
            _ => {}
        }
    }

    /// The books of every agent that was ever counted, in the order of their first counts.
    #[must_use]
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The books of the agent `name` of that number, where the daemon counts on.
    #[must_use]
    pub fn of(&self, name: &str, number: u64) -> Account {
        let known = self
            .accounts
            .iter()
            .find(|account| account.number == number && &*account.agent == name);
        let asked = self
            .current
            .get(name)
            .and_then(|current| current.asked.as_ref());
        let mut account = known.or(asked).cloned().unwrap_or_default();
        if let (Some(_), Some(asked)) = (known, asked) {
            // The tag that was asked for was never made.
            account.sessions += asked.sessions;
            account.turned_away += asked.turned_away;
        }
        account.agent = name.into();
        account.number = number;
        account
    }

    fn account(&mut self, name: &Arc<str>) -> Option<&mut Account> {
        let current = self.current.get_mut(name)?;
        if current.asked.is_some() {
            return current.asked.as_mut();
        }
        self.accounts.get_mut(current.open?)
    }

    fn count(&mut self, name: &Arc<str>, notice: &Notice) {
        let mut counted = Account::default();
        counted.read(notice);
        let known = self
            .accounts
            .iter()
            .rposition(|account| account.number == counted.number && *account.agent == **name);
        let current = self.current.entry(name.clone()).or_default();
        let is_open = known.is_some() && known == current.open;
        let asked = if known.is_none() || is_open {
            current.asked.take()
        } else {
            None
        };
        let place = known.unwrap_or_else(|| {
            self.accounts.push(Account {
                agent: (&**name).into(),
                ..Account::default()
            });
            self.accounts.len() - 1
        });
        if known.is_none() {
            current.open = Some(place);
        }
        let Some(account) = self.accounts.get_mut(place) else {
            return;
        };
        account.read(notice);
        if let Some(asked) = asked {
            account.sessions += asked.sessions;
            account.turned_away += asked.turned_away;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use interceptor_core::{
        origin::{Agent, Destination, Origin, Process},
        record::{SessionStart, Timestamp},
    };

    use super::*;

    fn record(agent: &str, event: Event) -> Record {
        Record {
            seq: 1,
            time: Timestamp(0),
            session: None,
            agent: agent.into(),
            event,
        }
    }

    fn start() -> Event {
        start_to("192.0.2.1:80")
    }

    fn start_to(destination: &str) -> Event {
        let destination: Destination = destination.parse().unwrap();
        Event::SessionStart(SessionStart {
            origin: Arc::new(Origin {
                agent: Arc::new(Agent {
                    name: "a".into(),
                    labels: BTreeMap::new(),
                }),
                process: Process::default(),
                destination: destination.clone(),
                names: Vec::new(),
            }),
            client: destination.address(),
        })
    }

    fn counted(number: u64, taken: u64, cut_off: u64) -> Event {
        let account = Account {
            number,
            connects: Connects {
                redirected: taken,
                begun: taken,
                taken,
                ..Connects::default()
            },
            cut_off,
            ..Account::default()
        };
        account.notice()
    }

    fn refused() -> Event {
        Event::notice("connection_refused", [("reason", "too many".to_owned())])
    }

    fn tag() -> Event {
        Event::notice("tag_added", [])
    }

    fn ledger(events: impl IntoIterator<Item = Event>) -> Ledger {
        let mut ledger = Ledger::default();
        for event in events {
            ledger.observe(&record("a", event));
        }
        ledger
    }

    #[test]
    fn what_is_on_record_is_held_to_what_was_counted() {
        let table = [
            (vec![tag(), counted(1, 0, 0)], 0),
            (vec![tag(), counted(1, 0, 0), counted(1, 2, 0)], 2),
            (
                vec![
                    tag(),
                    counted(1, 0, 0),
                    start(),
                    refused(),
                    counted(1, 2, 0),
                ],
                0,
            ),
            // It connected before its first count was on record.
            (vec![tag(), start(), counted(1, 1, 0)], 0),
            // No hook counts what is met at the place of an engine's socket.
            (
                vec![
                    tag(),
                    counted(1, 0, 0),
                    start_to("unix:/run/docker.sock"),
                    counted(1, 1, 0),
                ],
                1,
            ),
            // What comes after the last count is not missing.
            (vec![tag(), counted(1, 0, 0), start()], 0),
            // What ended with a daemon is accounted for.
            (vec![tag(), counted(1, 3, 0), start(), counted(1, 3, 2)], 0),
            // Sessions from before anything was counted.
            (vec![start(), tag(), counted(1, 1, 0)], 1),
        ];
        for (events, unaccounted) in table {
            let ledger = ledger(events.clone());
            let [account] = ledger.accounts() else {
                panic!("{ledger:?}")
            };
            assert_eq!(account.unaccounted(), unaccounted, "{events:?}");
        }
    }

    #[test]
    fn agents_of_one_name_have_books_of_their_own() {
        let ledger = ledger([
            tag(),
            counted(1, 0, 0),
            start(),
            start(),
            counted(1, 2, 0),
            tag(),
            start(),
            counted(2, 2, 0),
            // The first one's last count, late.
            counted(1, 2, 0),
        ]);
        let unaccounted: Vec<u64> = ledger.accounts().iter().map(Account::unaccounted).collect();
        assert_eq!(
            unaccounted,
            [0, 1],
            "a session of the first must not make up for one of the second"
        );
    }

    #[test]
    fn a_tag_that_was_refused_changes_nothing() {
        let ledger = ledger([tag(), counted(1, 0, 0), tag(), start(), counted(1, 1, 0)]);
        let [account] = ledger.accounts() else {
            panic!("{ledger:?}")
        };
        assert_eq!((account.sessions, account.unaccounted()), (1, 0));
    }

    #[test]
    fn a_daemon_goes_on_where_the_one_before_was_killed() {
        let ledger = ledger([tag(), start(), counted(1, 1, 0), start()]);
        assert_eq!(ledger.of("a", 1).sessions, 2);
        assert_eq!(ledger.of("a", 2).sessions, 0, "it is another one");
        let ledger = super::tests::ledger([tag(), start()]);
        assert_eq!(
            ledger.of("a", 7).sessions,
            1,
            "killed before its first count"
        );
    }
}
