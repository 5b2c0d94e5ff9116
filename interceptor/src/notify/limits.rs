//! The bounds of what is told, each with its arithmetic and what breaks when it changes.

use std::time::Duration;

/// Notifiers that can be configured. Each is a task with a queue; a page of people's tools is some ten.
pub(super) const NOTIFIERS_MAX: usize = 64;

/// Notices that wait at one notifier. Each is shared by all notifiers and holds at most
/// [`TEXT_BYTES_MAX`] × some 15 fields + [`CONTENT_BYTES_MAX`], under 20 KiB: 20 MiB in the worst case. An agent
/// may have 1,000 questions open at a time.
pub(super) const QUEUED_MAX: usize = 1_000;

/// Dead letters that one notifier keeps, to be looked at and sent again: a list that a person can still read. The
/// oldest goes, and is counted.
pub(super) const DEAD_MAX: usize = 200;

/// Reports of what became of deliveries that wait to be taken by the daemon. What is more is counted.
pub(super) const REPORTS_MAX: usize = 4_096;

/// Bytes kept of one field that an agent may have written (a command line, a list of tables).
pub(super) const TEXT_BYTES_MAX: usize = 800;

/// Bytes kept of the content of an operation. What chats show at once is some 3,000 characters.
pub(super) const CONTENT_BYTES_MAX: usize = 4_096;

/// Resources that are named; the console has all.
pub(super) const RESOURCES_MAX: usize = 12;

/// Bytes of an answer that are read: Slack's repeat the message, some 10 KiB.
pub(super) const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Bytes of an answer's head.
pub(super) const ANSWER_HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes of one message on Slack's socket: a click brings the message that was clicked along, some 30 KiB.
pub(super) const SOCKET_BYTES_MAX: usize = 512 << 10;

/// Bytes of a template as it is configured, as JSON. PagerDuty takes 512 KiB in all.
pub(super) const TEMPLATE_BYTES_MAX: usize = 64 << 10;

/// Places in a template: with [`CONTENT_BYTES_MAX`] six-fold where all of it is written out, 1.5 MiB at the most.
pub(super) const PLACES_MAX: usize = 64;

/// Addresses of one name that are tried, one after the other.
pub(super) const ADDRESSES_MAX: usize = 8;

/// Messages in Slack that are remembered, so that they can be changed: twice what may wait at a time. Some 100
/// bytes each.
pub(super) const POSTED_MAX: usize = 20_000;

/// Clicks in Slack that are answered at once; who clicks meanwhile is asked to open the link.
pub(super) const CLICKS_MAX: usize = 32;

/// Recipients of one notifier's mail; a mailing list is one.
pub(super) const RECIPIENTS_MAX: usize = 50;

/// How long things may take, and how often they are tried again. A parameter, so that tests needn't wait.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Opening a connection to one address, its TLS included.
    pub connect: Duration,
    /// One attempt in all: with ten of them a notifier that hangs is known to fail after minutes.
    pub attempt: Duration,
    /// From a first failure to the next attempt; doubled from then on.
    pub first_pause: Duration,
    /// The longest pause: who is back after a night hears of it within the hour at the latest, sooner where
    /// anything else is delivered.
    pub longest_pause: Duration,
    /// From the drop of Slack's socket to the next; doubled while none can be opened, up to a minute.
    pub reconnect: Duration,
    /// Between pings on Slack's socket; one that is silent for two of them is dropped.
    pub ping: Duration,
    /// How long the daemon may take over a click before the person is told to look in the console.
    pub answer: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            attempt: Duration::from_secs(30),
            first_pause: Duration::from_secs(5),
            longest_pause: Duration::from_secs(3_600),
            reconnect: Duration::from_secs(1),
            ping: Duration::from_secs(30),
            answer: Duration::from_secs(20),
        }
    }
}
