//! Who is asked about what is held, for how long, and what a yes may be for.

use std::{sync::Arc, time::Duration};

use serde_saphyr::{Location, Spanned};

use super::{Compiler, duration};
use crate::policy::{
    decision::{Escalation, HoldTerms, Otherwise, WindowLimits},
    file::{EscalationSpec, ReasonSpec, ReviewersSpec, WindowsSpec},
};

/// Longest time for which people may agree to anything in advance.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Most operations that they may agree to in advance.
const WINDOW_USES_MAX: u32 = 10_000;

impl Compiler {
    /// The terms of a rule that holds.
    pub(super) fn terms(
        &mut self,
        file: &str,
        reviewers: Option<&Spanned<ReviewersSpec>>,
    ) -> HoldTerms {
        let mut terms = HoldTerms::default();
        let Some(spec) = reviewers else { return terms };
        let place = spec.referenced;
        let spec = &spec.value;
        terms.groups = texts(&spec.groups);
        terms.people = texts(&spec.people);
        match spec.quorum {
            Some(0) => {
                let what = "a quorum of 0 would approve by itself; 1 is the least";
                self.problem(file, place, what);
            }
            Some(quorum) => terms.quorum = quorum,
            None => {}
        }
        if spec.groups.is_empty()
            && !spec.people.is_empty()
            && spec.escalate.is_empty()
            && spec.people.len() < terms.quorum as usize
        {
            let what = format!(
                "a quorum of {} of {} people can't be reached",
                terms.quorum,
                spec.people.len()
            );
            self.problem(file, place, what);
        }
        if let Some(within) = self.span(file, place, spec.within.as_deref()) {
            terms.within = within;
        }
        terms.wait = terms.within;
        if let Some(wait) = self.span(file, place, spec.wait.as_deref()) {
            if wait > terms.within {
                let what = "`wait` is how long a client is kept waiting, and `within` how long people have: it can't be longer";
                self.problem(file, place, what);
            }
            terms.wait = wait;
        }
        match spec.retry.as_deref() {
            // The one span that may be none.
            Some("0s") => terms.retry = Duration::ZERO,
            retry => terms.retry = self.span(file, place, retry).unwrap_or(terms.retry),
        }
        if terms.wait < terms.within && terms.retry.is_zero() {
            let what = "who is told to come back (`wait`) has to be let by when it does: give `retry` a time, or leave `wait` out";
            self.problem(file, place, what);
        }
        terms.otherwise = spec.otherwise.unwrap_or_default();
        terms.reason = spec.reason == Some(ReasonSpec::Required);
        terms.escalate = self.escalations(file, place, &spec.escalate, terms.within);
        terms.windows = spec
            .windows
            .as_ref()
            .and_then(|windows| self.windows(file, place, windows));
        terms.security_key = spec.security_key;
        terms.blast_radius = spec.blast_radius;
        if terms.security_key && terms.otherwise == Otherwise::Allow {
            let what = "with `otherwise: allow` silence lets it through, which no security key has signed: leave one of the two out";
            self.problem(file, place, what);
        }
        terms
    }

    fn escalations(
        &mut self,
        file: &str,
        place: Location,
        specs: &[EscalationSpec],
        within: Duration,
    ) -> Arc<[Escalation]> {
        let mut steps = Vec::new();
        for spec in specs {
            let Some(after) = self.span(file, place, Some(&spec.after)) else {
                continue;
            };
            if after >= within {
                let what = format!(
                    "nobody is asked after `{}`: it is over by then (`within`)",
                    spec.after
                );
                self.problem(file, place, what);
            }
            if spec.groups.is_empty() {
                self.problem(file, place, "an escalation names `groups` to ask");
            }
            steps.push(Escalation {
                after,
                groups: texts(&spec.groups),
            });
        }
        steps.sort_by_key(|step| step.after);
        steps.into()
    }

    fn windows(&mut self, file: &str, place: Location, spec: &WindowsSpec) -> Option<WindowLimits> {
        let span = self.span(file, place, Some(&spec.r#for))?;
        if span > WINDOW_MAX {
            let what = "nobody can agree to anything for longer than a day (`for: 24h`): what always goes is a rule that allows it";
            self.problem(file, place, what);
        }
        if !(1..=WINDOW_USES_MAX).contains(&spec.at_most) {
            let what = format!(
                "`at_most` is a number of operations from 1 to {WINDOW_USES_MAX}: what always goes is a rule that allows it"
            );
            self.problem(file, place, what);
        }
        Some(WindowLimits {
            scope: spec.scope,
            span,
            at_most: spec.at_most,
        })
    }

    /// A span of time, if there is one; not none.
    fn span(&mut self, file: &str, place: Location, text: Option<&str>) -> Option<Duration> {
        let text = text?;
        let span = duration(text).filter(|span| !span.is_zero());
        if span.is_none() {
            let what = format!("`{text}` is no time; `30s`, `15m`, `2h` are");
            self.problem(file, place, what);
        }
        span
    }
}

fn texts(list: &[String]) -> Arc<[Box<str>]> {
    list.iter().map(|text| text.as_str().into()).collect()
}
