//! What an operation does, in sentences for the people who are asked about it.
//!
//! The sentences hold names and conditions as an agent wrote them: whoever shows them makes them inert.

use super::{Effects, Resource, ResourceKind, Touch};
use crate::limits;

/// What an operation does, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// A sentence for each of its parts, in their order. Never empty.
    pub sentences: Vec<Sentence>,
}

/// What one part of an operation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// With a capital letter and without a full stop: `Deletes EVERY row of t (there is no WHERE)`.
    pub text: String,
    /// What somebody in a hurry must not overlook in it, each once.
    pub warnings: Vec<Warning>,
}

/// What somebody in a hurry must not overlook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Warning {
    /// A change without a condition.
    EveryRow,
    /// A change whose condition keeps no row out.
    AlwaysTrue,
    /// Whatever depends on it goes too.
    Cascade,
    /// It is for PUBLIC.
    Everybody,
    /// Somebody may do anything, or nearly.
    Superuser,
    /// Who sees which rows isn't looked at any more.
    RowSecurityOff,
    /// What should happen on changes doesn't.
    TriggersOff,
    /// Code that can't be seen into.
    HiddenCode,
    /// Code that runs with the rights of its owner, whoever calls it.
    OwnersRights,
    /// A program that the server runs.
    Program,
    /// A file of the server.
    File,
    /// EXPLAIN, and yet it happens.
    ReallyRuns,
    /// It is more than what could be put into words.
    NotAllSaid,
}

/// What is known of an operation without looking at its content.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What is done, in the protocol's own names.
    pub action: &'a str,
    /// What that does.
    pub effects: Effects,
    /// To what.
    pub resources: &'a [Resource],
}

impl Words {
    /// Of one part, without anything to overlook.
    #[must_use]
    pub fn of(text: String) -> Self {
        Self {
            sentences: vec![Sentence {
                text,
                warnings: Vec::new(),
            }],
        }
    }

    /// The same, with something that must not be overlooked in its last part.
    pub fn warn(&mut self, warning: Warning) {
        if let Some(last) = self.sentences.last_mut()
            && !last.warnings.contains(&warning)
        {
            last.warnings.push(warning);
        }
    }

    /// All as one text: one sentence, or several with their numbers.
    #[must_use]
    pub fn text(&self) -> String {
        match self.sentences.as_slice() {
            [one] => format!("{}.", one.text),
            all => {
                let numbered = all.iter().enumerate();
                let numbered = numbered.map(|(at, one)| format!("{}. {}.", at + 1, one.text));
                numbered.collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// All warnings, each once.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let all = self.sentences.iter().flat_map(|one| &one.warnings);
        let mut all: Vec<_> = all.copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Warning {
    /// In words, as a sentence.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::EveryRow => "There is no condition: every row is meant.",
            Self::AlwaysTrue => "Its condition keeps no row out: every row is meant.",
            Self::Cascade => "CASCADE: whatever depends on it goes as well, and isn't named here.",
            Self::Everybody => "PUBLIC is everybody who can connect, now and later.",
            Self::Superuser => "It gives somebody rights over the whole server.",
            Self::RowSecurityOff => "Row security doesn't hold any more, for some or for all.",
            Self::TriggersOff => {
                "What should run on changes doesn't: checks and audits may be such."
            }
            Self::HiddenCode => "It runs code whose effects can't be seen from here.",
            Self::OwnersRights => "Whoever calls it acts with the rights of its owner.",
            Self::Program => "The server runs a program.",
            Self::File => "It reaches files of the server.",
            Self::ReallyRuns => "EXPLAIN ANALYZE doesn't only explain: it really runs this.",
            Self::NotAllSaid => "There is more to it than these words say. Read all of it.",
        }
    }
}

impl Known<'_> {
    /// In words, as far as effects and names tell.
    #[must_use]
    pub fn words(&self) -> Words {
        let mut words = Words::of(format!("It {}", self.phrase()));
        if self.effects.contains(Effects::UNCLASSIFIED) {
            words.warn(Warning::NotAllSaid);
        }
        words
    }

    /// The same, to stand behind a subject.
    #[must_use]
    pub fn phrase(&self) -> String {
        let verbs: Vec<&str> = self.effects.names().map(verb).collect();
        let names = match self.named().as_str() {
            "" => "something that isn't named".to_owned(),
            names => names.to_owned(),
        };
        match verbs.as_slice() {
            [] => format!("does nothing that is known to {names}"),
            all => format!("{} {names}", and(all)),
        }
    }

    /// What it is done to; built-in functions are no answer to that.
    fn named(&self) -> String {
        let is_meant = |resource: &&Resource| {
            resource.kind != ResourceKind::Function || resource.touch == Touch::Write
        };
        let mut names: Vec<String> = Vec::new();
        let mut more = 0;
        for resource in self.resources.iter().filter(is_meant) {
            let name = resource.to_string();
            // What is read and written is there twice.
            if names.contains(&name) {
            } else if names.len() < limits::WORDS_NAMES_MAX {
                names.push(name);
            } else {
                more += 1;
            }
        }
        match more {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }
}

/// `a, b and c`.
pub(crate) fn and<T: AsRef<str>>(parts: &[T]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [all @ .., last] => {
            let all: Vec<&str> = all.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", all.join(", "), last.as_ref())
        }
    }
}

fn verb(effect: &str) -> &str {
    match effect {
        "read" => "reads",
        "write" => "changes data in",
        "schema" => "changes the structure of",
        "admin" => "administers",
        "execute" => "runs code in",
        "export" => "takes data out of",
        "transfer" => "moves data in or out of",
        "unclassified" => "does something that can't be told to",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_and_names_make_a_sentence() {
        let resource = |kind, name: &str, touch| Resource {
            kind,
            namespace: None,
            name: name.into(),
            touch,
        };
        let table = |name, touch| resource(ResourceKind::Table, name, touch);
        let read = [
            table("a", Touch::Read),
            table("a", Touch::Write),
            resource(ResourceKind::Function, "count", Touch::Read),
        ];
        let many: Vec<_> = ["a", "b", "c", "d", "e", "f"]
            .map(|name| table(name, Touch::Read))
            .into();
        for (effects, resources, text) in [
            (
                Effects::empty(),
                &[][..],
                "It does nothing that is known to something that isn't named.",
            ),
            (
                Effects::READ | Effects::WRITE,
                &read,
                "It reads and changes data in a.",
            ),
            (
                Effects::READ | Effects::WRITE | Effects::UNCLASSIFIED,
                &many,
                "It reads, changes data in and does something that can't be told to a, b, c, d and 2 more.",
            ),
        ] {
            let known = Known {
                action: "",
                effects,
                resources,
            };
            assert_eq!(known.words().text(), text);
        }
    }
}
