//! What a rule can ask of a question to the DNS: its name, its type, and how much it looks like data that goes
//! out in it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;

use super::rule::Unmet;
use crate::{
    glob::Glob,
    limits,
    operation::{Effects, Operation, Protocol, ResourceKind, attribute, dns},
    record::Timestamp,
};

/// Conditions on a DNS message; all of them have to hold.
#[derive(Debug, Default)]
pub(super) struct DnsMatch {
    pub(super) names: Option<Vec<Glob>>,
    pub(super) types: Option<Vec<Glob>>,
    pub(super) options: Option<Vec<Glob>>,
    /// Bytes of name that are too few for the rule.
    pub(super) longer_than: Option<usize>,
    /// Bytes of label that are too few for it.
    pub(super) label_longer_than: Option<usize>,
    /// Bits a character that are too few for it.
    pub(super) entropy_over: Option<f64>,
    pub(super) distinct: Option<Distinct>,
}

/// Different names below one registered domain that one agent may ask for before a rule matches.
#[derive(Debug)]
pub(super) struct Distinct {
    pub(super) over: u32,
    pub(super) per: Duration,
    seen: Mutex<HashMap<Box<str>, Seen>>,
}

/// What one agent has asked for, by hashes.
#[derive(Debug, Clone, Default)]
struct Seen {
    window: u64,
    names: HashSet<u64>,
    domains: HashMap<u64, u32>,
}

impl DnsMatch {
    /// The first condition that `operation` doesn't meet, apart from how many names were asked for. A rule that
    /// allows without a word on what (`says_what`: by class or action) means questions: no transfers or updates.
    pub(super) fn unmet(
        &self,
        operation: &Operation,
        permissive: bool,
        says_what: bool,
    ) -> Option<Unmet> {
        let description = &operation.description;
        if operation.protocol != Protocol::Dns {
            return Some(Unmet::NoQuestion);
        }
        if permissive
            && !says_what
            && self.types.is_none()
            && !Effects::READ.contains(description.effects)
        {
            return Some(Unmet::MoreThanQuestion);
        }
        if !self.types_match(operation, permissive) {
            return Some(Unmet::Type);
        }
        if !self.options_match(operation, permissive) {
            return Some(Unmet::Extension);
        }
        let is_name = self.names.as_ref().is_none_or(|globs| {
            let meant = |name: &str| globs.iter().any(|glob| glob.matches(name));
            let mut names = names(operation);
            if permissive {
                names.clone().next().is_some() && names.all(meant)
            } else {
                names.any(meant)
            }
        });
        if !is_name {
            return Some(Unmet::Question);
        }
        let any = |is: &dyn Fn(&str) -> bool| names(operation).any(is);
        if let Some(bytes) = self.longer_than
            && !any(&|name| dns::name_bytes(name) > bytes)
        {
            return Some(Unmet::LongerThan);
        }
        if let Some(bytes) = self.label_longer_than
            && !any(&|name| dns::label_bytes(name) > bytes)
        {
            return Some(Unmet::LabelLongerThan);
        }
        if let Some(bits) = self.entropy_over
            && !any(&|name| dns::entropy(dns::below_registered(name)) > bits)
        {
            return Some(Unmet::Entropy);
        }
        None
    }

    /// The type is a question's: of what isn't one (UPDATE names the type of a zone) it only restricts.
    fn types_match(&self, operation: &Operation, permissive: bool) -> bool {
        self.types.as_ref().is_none_or(|globs| {
            let meant = |kind: &str| globs.iter().any(|glob| glob.matches(kind));
            let description = &operation.description;
            if permissive {
                let actions = &description.actions;
                !actions.is_empty() && actions.iter().all(|action| meant(action))
            } else {
                let asked = description.attributes.get(attribute::DNS_TYPE);
                asked.is_some_and(|kind| meant(kind))
            }
        })
    }

    fn options_match(&self, operation: &Operation, permissive: bool) -> bool {
        self.options.as_ref().is_none_or(|globs| {
            let attributes = &operation.description.attributes;
            let mut used = attributes
                .get(attribute::DNS_OPTIONS)
                .into_iter()
                .flat_map(|names| names.split(','));
            let meant = |name: &str| globs.iter().any(|glob| glob.matches(name));
            if permissive {
                used.all(meant)
            } else {
                used.any(meant)
            }
        })
    }
}

/// The names that it is about: one of a question, those of all records of an update.
fn names(operation: &Operation) -> impl Iterator<Item = &str> + Clone {
    let resources = operation.description.resources.iter();
    resources
        .filter(|resource| resource.kind == ResourceKind::Name)
        .map(|resource| &*resource.name)
}

impl Distinct {
    pub(super) fn new(over: u32, per: Duration) -> Self {
        Self {
            over,
            per,
            seen: Mutex::default(),
        }
    }

    /// Counts the names of `operation`; whether one of them is one too many. Those that were counted before
    /// aren't: to ask again, as clients do that got no answer, tells nobody more.
    pub(super) fn exceeded(&self, agent: &str, operation: &Operation, now: Timestamp) -> bool {
        let window = self.window(now);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.get(agent).is_none_or(|seen| seen.window != window) {
            // Of agents that are gone, too.
            seen.retain(|_, seen| seen.window == window);
            let begun = Seen {
                window,
                ..Seen::default()
            };
            seen.insert(agent.into(), begun);
        }
        let Some(seen) = seen.get_mut(agent) else {
            return true;
        };
        let mut exceeded = false;
        for (name, domain) in hashes(operation) {
            exceeded |= seen.exceeded(name, domain, self.over);
        }
        exceeded
    }

    /// As [`Self::exceeded`] would say, without counting.
    pub(super) fn would_exceed(&self, agent: &str, operation: &Operation, now: Timestamp) -> bool {
        let window = self.window(now);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Of what is asked about at once there are few names: an update's zone and its records'.
        let of_agent = seen.get(agent).filter(|seen| seen.window == window);
        let mut seen = of_agent.cloned().unwrap_or_default();
        let mut exceeded = false;
        for (name, domain) in hashes(operation) {
            exceeded |= seen.exceeded(name, domain, self.over);
        }
        exceeded
    }

    pub(super) fn forget(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clear();
    }

    fn window(&self, now: Timestamp) -> u64 {
        let per = u64::try_from(self.per.as_nanos()).unwrap_or(u64::MAX);
        now.0 / per.max(1)
    }
}

/// Each name that `operation` is about, as it was written, with the domain that it is below.
fn hashes(operation: &Operation) -> impl Iterator<Item = (u64, u64)> {
    let asked_folded = operation.description.attributes.get(attribute::DNS_NAME);
    let asked = asked(operation);
    names(operation).map(move |name| {
        // Case goes on as it was sent and can carry a bit a letter.
        let written = match asked_folded {
            Some(folded) if **folded == *name => asked.unwrap_or(name.as_bytes()),
            _ => name.as_bytes(),
        };
        (hash(written), hash(dns::registered(name).as_bytes()))
    })
}

impl Seen {
    fn exceeded(&mut self, name: u64, domain: u64, over: u32) -> bool {
        if self.names.contains(&name) {
            return false;
        }
        if self.names.len() >= limits::DNS_DISTINCT_NAMES_MAX {
            return true;
        }
        let count = self.domains.entry(domain).or_default();
        if *count >= over {
            return true;
        }
        *count += 1;
        self.names.insert(name);
        false
    }
}

/// Of the kind for which nobody finds names that count as one.
fn hash(name: &[u8]) -> u64 {
    let digest = digest::digest(&digest::SHA256, name);
    let first = digest.as_ref().first_chunk().copied();
    u64::from_be_bytes(first.unwrap_or_default())
}

/// The name as it was asked for, letter by letter: the last word of the first line (`A www.Example.com.`).
fn asked(operation: &Operation) -> Option<&[u8]> {
    let line = operation.content.split(|byte| *byte == b'\n').next()?;
    line.rsplit(|byte| *byte == b' ').next()
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use crate::{
        limits,
        operation::{Operation, attribute},
        origin::{Agent, Destination, Origin, Process},
        policy::{Policy, decision::Verdict, scope::Scope},
        protocol::dns::describe::example,
        record::Timestamp,
    };

    const SECOND: u64 = 1_000_000_000;

    fn policy(text: &str) -> Arc<Policy> {
        Arc::new(Policy::parse(&[("p.yaml".to_owned(), text.to_owned())]).unwrap())
    }

    fn scope(policy: &Arc<Policy>, agent: &str) -> Scope {
        let origin = Origin {
            agent: Arc::new(Agent {
                name: agent.into(),
                labels: [].into(),
            }),
            process: Process::default(),
            destination: Destination::Ip((Ipv4Addr::LOCALHOST, 53).into()),
            names: Vec::new(),
        };
        Policy::scope(policy, Arc::new(origin))
    }

    fn asked(question: &str) -> Operation {
        example(question).unwrap()
    }

    /// Whether a rule with that condition matches the question, when it allows and when it denies.
    fn matches(condition: &str, operation: &Operation) -> [bool; 2] {
        [("allow", "deny"), ("deny", "allow")].map(|(says, default)| {
            let text = format!(
                "default: {{action: {default}}}\nrules: [{{id: it, match: {condition}, action: {says}}}]"
            );
            let decision = scope(&policy(&text), "a").evaluate(operation, Timestamp(0));
            &*decision.decision.rule == "it"
        })
    }

    #[test]
    fn questions_are_told_by_name_type_and_how_much_they_carry() {
        for (condition, question, expected) in [
            ("{protocol: dns}", "A example.com", true),
            ("{protocol: postgres}", "A example.com", false),
            ("{dns: {}}", "A example.com", true),
            ("{dns: {name: example.com}}", "A eXample.com", true),
            ("{dns: {name: Example.com.}}", "A example.com", true),
            (
                "{dns: {name: \"*.example.com\"}}",
                "A a.b.example.com",
                true,
            ),
            ("{dns: {name: \"*.example.com\"}}", "A example.com", false),
            ("{dns: {name: \"*.example.com\"}}", "A aexample.com", false),
            // A dot within a label is none between labels.
            (
                "{dns: {name: \"*.example.com\"}}",
                r"A a\046example.com",
                false,
            ),
            ("{dns: {name: .}}", "NS .", true),
            ("{dns: {name: .}}", "NS com", false),
            ("{dns: {type: [a, txt]}}", "TXT example.com", true),
            ("{dns: {type: [A, TXT]}}", "AAAA example.com", false),
            ("{dns: {type: TYPE*}}", "TYPE65280 example.com", true),
            ("{dns: {type: TYPE*}}", "NULL example.com", false),
            ("{dns: {longer_than: 10}}", "A example.com", true),
            ("{dns: {longer_than: 11}}", "A example.com", false),
            ("{dns: {label_longer_than: 6}}", "A example.com", true),
            ("{dns: {label_longer_than: 7}}", "A example.com", false),
            ("{dns: {entropy_over: 2.9}}", "A abcdefgh.example.com", true),
            ("{dns: {entropy_over: 3}}", "A abcdefgh.example.com", false),
            // What is registered was chosen once and carries nothing.
            ("{dns: {entropy_over: 0}}", "A abcdefgh.com", false),
            (
                "{dns: {type: A, name: example.com, longer_than: 12}}",
                "A example.com",
                false,
            ),
            ("{action: AAAA}", "AAAA example.com", true),
            ("{class: [read]}", "AAAA example.com", true),
            (
                "{protocol: dns, resources: [\"*.Example.com\"]}",
                "A www.example.com",
                true,
            ),
            (
                "{resources: [\"name:*.example.com\"]}",
                "A www.example.com",
                true,
            ),
            (
                "{resources: [\"*.example.com\"]}",
                "A www.example.com",
                false,
            ),
            ("{attributes: {dns.class: IN}}", "A CH example.com", false),
            ("{attributes: {dns.class: CH}}", "A CH example.com", true),
        ] {
            let found = matches(condition, &asked(question));
            assert_eq!(found, [expected; 2], "{condition} {question}");
        }
    }

    #[test]
    fn a_rule_that_allows_names_means_questions_about_them() {
        for (condition, question, expected) in [
            ("{dns: {name: \"*\"}}", "AXFR example.com", [false, true]),
            ("{dns: {type: AXFR}}", "AXFR example.com", [true, true]),
            (
                "{action: AXFR, dns: {name: \"*\"}}",
                "AXFR example.com",
                [true, true],
            ),
            ("{class: [read]}", "AXFR example.com", [false, true]),
            ("{class: [read, export]}", "AXFR example.com", [true, true]),
        ] {
            let found = matches(condition, &asked(question));
            assert_eq!(found, expected, "{condition} {question}");
        }
    }

    #[test]
    fn a_rule_that_allows_by_options_allows_no_others() {
        let with = |options: &str| {
            let mut operation = asked("A example.com");
            let description = Arc::make_mut(&mut operation.description);
            let attributes = &mut description.attributes;
            attributes.insert(attribute::DNS_OPTIONS.into(), options.into());
            operation
        };
        let condition = "{dns: {option: [cookie, padding]}}";
        for (operation, expected) in [
            (asked("A example.com"), [true, false]),
            (with("cookie"), [true, true]),
            (with("cookie,padding"), [true, true]),
            (with("cookie,chain"), [false, true]),
            (with("chain"), [false, false]),
        ] {
            assert_eq!(matches(condition, &operation), expected, "{operation:?}");
        }
    }

    const MANY: &str = "default: {action: allow}\nrules: [{id: many, \
                        match: {dns: {distinct: {over: 3, per: 10m}}}, action: deny}]";

    fn is_denied(scope: &mut Scope, question: &str, second: u64) -> bool {
        let decision = scope.evaluate(&asked(question), Timestamp(second * SECOND));
        decision.decision.verdict == Verdict::Deny
    }

    #[test]
    fn different_names_below_one_domain_are_counted() {
        let policy = policy(MANY);
        let mut one = scope(&policy, "one");
        for (question, second, expected) in [
            ("A a.example.com", 0, false),
            ("A b.example.com", 1, false),
            // Again, in another type, as a client asks that got no answer.
            ("AAAA b.example.com", 1, false),
            ("A c.d.example.com", 2, false),
            ("A e.example.com", 3, true),
            ("A e.example.com", 3, true),
            ("A example.com", 3, true),
            // Other domains have counts of their own, the known names pass.
            ("A e.example.net", 3, false),
            ("A a.example.com", 4, false),
            ("A f.example.com", 599, true),
            ("A f.example.com", 600, false),
        ] {
            assert_eq!(
                is_denied(&mut one, question, second),
                expected,
                "{question}"
            );
        }
        let mut other = scope(&policy, "other");
        assert!(!is_denied(&mut other, "A e.example.com", 601));
        // Another session of the same agent.
        let mut again = scope(&policy, "one");
        assert!(!is_denied(&mut again, "A g.example.com", 601));
        assert!(!is_denied(&mut again, "A h.example.com", 601));
        assert!(is_denied(&mut again, "A i.example.com", 601));
    }

    #[test]
    fn names_that_differ_in_case_alone_are_different_for_whoever_gets_them() {
        let policy = policy(MANY);
        let mut scope = scope(&policy, "a");
        let denied = ["www", "wwW", "wWw", "wWW"]
            .map(|label| is_denied(&mut scope, &format!("A {label}.example.com"), 0));
        assert_eq!(denied, [false, false, false, true]);
    }

    #[test]
    fn what_a_rule_before_it_denies_isnt_counted() {
        let policy = policy(
            "default: {action: allow}\nrules: [{id: txt, match: {dns: {type: TXT}}, action: deny}, \
             {id: many, match: {dns: {distinct: {over: 3, per: 10m}}}, action: deny}]",
        );
        let mut scope = scope(&policy, "a");
        for label in 0..9 {
            assert!(is_denied(
                &mut scope,
                &format!("TXT {label}.example.com"),
                0
            ));
        }
        assert!(!is_denied(&mut scope, "A a.example.com", 0));
    }

    #[test]
    fn a_rate_and_a_number_of_names_are_counted_side_by_side() {
        let policy = policy(
            "default: {action: allow}\nrules: [{id: both, match: {rate: {over: 2, per: 10m}, \
             dns: {distinct: {over: 2, per: 10m}}}, action: deny}]",
        );
        let mut scope = scope(&policy, "a");
        let denied = ["a", "b", "c"]
            .map(|label| is_denied(&mut scope, &format!("A {label}.example.com"), 0));
        assert_eq!(denied, [false, false, true]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_over_it_all_is_too_much() {
        let policy = policy(MANY);
        let mut scope = scope(&policy, "a");
        for number in 0..limits::DNS_DISTINCT_NAMES_MAX {
            assert!(!is_denied(&mut scope, &format!("A a.e{number}.com"), 0));
        }
        assert!(is_denied(&mut scope, "A another.example", 0));
        assert!(!is_denied(&mut scope, "A a.e7.com", 0));
        assert!(!is_denied(&mut scope, "A another.example", 600));
    }
}
