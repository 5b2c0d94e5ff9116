//! What statements say, in words for the people who are asked about them.
//!
//! A reviewer in a hurry reads a sentence before they read SQL, and may read nothing else. So a sentence says no more than
//! what stands there, names what a statement does beside its main thing (`also`), and where something isn't known here it
//! is told by its effects, as the describer sees them, never by a guess. What must not be overlooked is a [`Warning`].

mod admin;
mod definitions;
mod names;
mod quote;
mod rights;
mod rows;
mod session;
#[cfg(test)]
mod tests;
mod truth;

use std::{collections::BTreeSet, sync::Arc};

use pg_query::{
    NodeEnum,
    protobuf::{Node, RangeVar},
};

use self::quote::Source;
use super::describe;
use crate::{
    limits,
    operation::{
        Description, Effects, Resource, ResourceKind, Touch,
        words::{Known, Sentence, Warning, Words, and},
    },
};

/// What the statements in `text` do, in words, of an operation of which this is `known`.
///
/// Where the text can't be read, or where what can be read of it isn't what was decided on (the session may have settings
/// by which it reads otherwise), what is `known` is all that there is to tell.
#[must_use]
pub fn words(text: &str, known: Known<'_>) -> Words {
    read(text, known).unwrap_or_else(|| known.words())
}

fn read(text: &str, known: Known<'_>) -> Option<Words> {
    if text.len() > limits::WORDS_STATEMENT_BYTES_MAX || text.contains('\0') {
        return None;
    }
    let parsed = pg_query::parse(text, pg_query::ParserOptions::default()).ok()?;
    let tree = serde_json::to_value(&parsed.protobuf).ok()?;
    let descriptions: Vec<_> = tree
        .get("stmts")?
        .as_array()?
        .iter()
        .map(|statement| Some(describe::statement(statement.get("stmt")?)))
        .collect::<Option<_>>()?;
    let statements = &parsed.protobuf.stmts;
    let (actions, effects) = together(&descriptions);
    // What a name stands for (EXECUTE, FETCH) is known to the session alone, and added to it there.
    if !known.action.starts_with(&actions) || !known.effects.contains(effects) {
        return None;
    }
    if statements.is_empty() {
        return Some(Words::of("Does nothing: there is no statement".to_owned()));
    }
    let mut speech = Speech {
        source: Source::new(text),
        warnings: Vec::new(),
        said: Said::default(),
    };
    let mut sentences = Vec::new();
    let mut rest = Rest::default();
    for (statement, description) in statements.iter().zip(&descriptions) {
        let sentence = speech.sentence(statement.stmt.as_deref()?, description);
        if sentences.len() < limits::WORDS_SENTENCES_MAX {
            sentences.push(sentence);
        } else {
            rest.add(description, sentence);
        }
    }
    sentences.extend(rest.sentence());
    if known.effects != effects {
        let beyond = Known {
            effects: known.effects - effects,
            ..known
        };
        sentences.push(Sentence {
            text: format!("By what it names, it also {}", beyond.phrase()),
            warnings: vec![Warning::NotAllSaid],
        });
    }
    Some(Words { sentences })
}

/// The actions of all, as one phrase, and their effects.
fn together(descriptions: &[Arc<Description>]) -> (String, Effects) {
    let mut actions: Vec<&str> = Vec::new();
    let mut effects = Effects::empty();
    for description in descriptions {
        effects |= description.effects;
        for action in &description.actions {
            if !actions.contains(&&**action) {
                actions.push(action);
            }
        }
    }
    (actions.join("; "), effects)
}

/// What `node` does by itself.
fn description(node: &Node) -> Option<Arc<Description>> {
    Some(describe::statement(&serde_json::to_value(node).ok()?))
}

/// What is said while statements are put into words.
#[derive(Debug)]
struct Speech<'a> {
    source: Source<'a>,
    /// Of the statement at hand.
    warnings: Vec<Warning>,
    said: Said,
}

/// What was said of a statement beside what it mainly does.
#[derive(Debug, Default)]
struct Said {
    /// Effects.
    covered: Effects,
    /// Tables that are written.
    written: Vec<(String, String)>,
    /// Tables that are read, where all of them are to be said.
    read: Option<Vec<(String, String)>>,
    /// Functions that aren't built in: all that are called, or that is what is defined.
    calls: bool,
    /// The procedure that is called.
    called: Option<String>,
}

impl Speech<'_> {
    /// A statement of its own.
    fn sentence(&mut self, node: &Node, description: &Description) -> Sentence {
        self.warnings.clear();
        let text = self.whole(node, description);
        let text = match quote::cut(&text, limits::WORDS_SENTENCE_CHARACTERS_MAX) {
            None => text,
            Some(cut) => {
                self.warn(Warning::NotAllSaid);
                cut
            }
        };
        let mut characters = text.chars();
        let text = characters.next().map_or_else(String::new, |first| {
            first.to_uppercase().chain(characters).collect()
        });
        Sentence {
            text,
            warnings: std::mem::take(&mut self.warnings),
        }
    }

    /// A statement inside another one, which does it later, only perhaps, or not at all.
    fn inner(&mut self, node: Option<&Node>) -> String {
        let described = node.and_then(|node| Some((node, description(node)?)));
        match described {
            Some((node, description)) => self.whole(node, &description),
            None => "does something that can't be told".to_owned(),
        }
    }

    /// What `node` does, and what it does besides.
    fn whole(&mut self, node: &Node, description: &Description) -> String {
        let outside = std::mem::take(&mut self.said);
        let mut text = node
            .node
            .as_ref()
            .and_then(|node| self.statement(node, description))
            .unwrap_or_else(|| self.by_effects(description));
        let also = and(&self.also(description));
        match (text.is_empty(), also.is_empty()) {
            (_, true) => {}
            (true, false) => text = also,
            (false, false) => text = format!("{text}; also {also}"),
        }
        self.said = outside;
        text
    }

    /// What a statement of a kind that has no words of its own does.
    fn by_effects(&mut self, description: &Description) -> String {
        self.said.covered = Effects::all();
        self.said.calls = true;
        let known = Known {
            action: "",
            effects: description.effects,
            resources: &description.resources,
        };
        if description.effects.contains(Effects::UNCLASSIFIED) {
            self.warn(Warning::NotAllSaid);
        }
        match &*description.action() {
            "" => known.phrase(),
            action => format!("{action}: {}", known.phrase()),
        }
    }

    /// What it does beyond what was said.
    fn also(&mut self, description: &Description) -> Vec<String> {
        let mut also = Vec::new();
        let mut rest = description.effects - self.said.covered;
        let calls = if self.said.calls {
            Vec::new()
        } else {
            self.calls(description, &mut rest)
        };
        // What defines names what it defines.
        let written = if self.said.covered.contains(Effects::SCHEMA) {
            Vec::new()
        } else {
            unsaid(description, Touch::Write, &[&self.said.written])
        };
        if !written.is_empty() {
            if rest.contains(Effects::WRITE) {
                self.warn(Warning::NotAllSaid);
            }
            rest -= Effects::WRITE;
            also.push(format!("changes {}", names::some(&written)));
        }
        if let Some(read) = &self.said.read {
            let read = unsaid(description, Touch::Read, &[read, &self.said.written]);
            if !read.is_empty() {
                also.push(format!("reads {}", names::some(&read)));
            }
        }
        if !calls.is_empty() {
            let of = description.resources.iter().filter(|one| {
                let kinds = [
                    ResourceKind::Setting,
                    ResourceKind::File,
                    ResourceKind::Channel,
                ];
                kinds.contains(&one.kind)
            });
            let of: Vec<String> = of.map(|one| quote::string(&one.name)).collect();
            let of = match of.as_slice() {
                [] => String::new(),
                of => format!(" for {}", names::some(of)),
            };
            also.push(format!("calls {}{of}", names::some(&calls)));
        }
        if !rest.is_empty() {
            self.warn(Warning::NotAllSaid);
            let known = Known {
                action: "",
                effects: rest,
                resources: &description.resources,
            };
            also.push(known.phrase());
        }
        also
    }

    /// Functions that aren't harmless, with what they can do, which is taken out of `rest`.
    fn calls(&self, description: &Description, rest: &mut Effects) -> Vec<String> {
        let mut calls = Vec::new();
        for call in &description.resources {
            let is_call = call.kind == ResourceKind::Function && call.touch == Touch::Write;
            let name = named(call);
            if !is_call || self.said.called.as_ref() == Some(&name) {
                continue;
            }
            let effects = match describe::function(call.namespace.as_deref(), &call.name) {
                // An operator, or a method of sampling.
                effects if effects.is_empty() => Effects::EXECUTE,
                effects => effects,
            };
            // Arguments may make it harmless.
            let effects = effects & description.effects;
            *rest -= effects;
            calls.push(match effects.is_empty() {
                true => name,
                false => format!("{name} (which can {})", can(effects)),
            });
        }
        calls
    }

    fn warn(&mut self, warning: Warning) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Notes that `range` was said to be written, and gives its name.
    fn writes(&mut self, range: Option<&RangeVar>) -> String {
        if let Some(range) = range {
            self.said
                .written
                .push((range.schemaname.clone(), range.relname.clone()));
        }
        names::table(range)
    }

    /// Notes that `range` was said to be read.
    fn reads(&mut self, range: &RangeVar) -> String {
        if let Some(read) = &mut self.said.read {
            read.push((range.schemaname.clone(), range.relname.clone()));
        }
        names::table(Some(range))
    }

    /// What a statement of a kind that is known does.
    fn statement(&mut self, node: &NodeEnum, description: &Description) -> Option<String> {
        rows::say(self, node, description)
            .or_else(|| session::say(self, node, description))
            .or_else(|| definitions::say(self, node))
            .or_else(|| rights::say(self, node))
            .or_else(|| admin::say(self, node))
    }
}

/// Statements that have no sentence of their own any more.
#[derive(Debug, Default)]
struct Rest {
    count: usize,
    effects: Effects,
    resources: BTreeSet<Resource>,
    warnings: Vec<Warning>,
}

impl Rest {
    fn add(&mut self, description: &Description, sentence: Sentence) {
        self.count += 1;
        self.effects |= description.effects;
        self.resources.extend(description.resources.iter().cloned());
        for warning in sentence.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    fn sentence(mut self) -> Option<Sentence> {
        let resources: Vec<_> = self.resources.into_iter().collect();
        let known = Known {
            action: "",
            effects: self.effects,
            resources: &resources,
        };
        let statements = match self.count {
            0 => return None,
            1 => "1 more statement".to_owned(),
            more => format!("{more} more statements"),
        };
        self.warnings.push(Warning::NotAllSaid);
        Some(Sentence {
            text: format!("In {statements} it {}", known.phrase()),
            warnings: self.warnings,
        })
    }
}

/// Tables of `description` that are touched so, and not among those that were said.
fn unsaid(description: &Description, touch: Touch, said: &[&[(String, String)]]) -> Vec<String> {
    let is_said = |table: &Resource| {
        let schema = table.namespace.as_deref().unwrap_or_default();
        let is_it = |(of, name): &(String, String)| of == schema && **name == *table.name;
        said.iter().any(|said| said.iter().any(is_it))
    };
    let tables = description.resources.iter();
    tables
        .filter(|one| one.kind == ResourceKind::Table && one.touch == touch)
        .filter(|one| !is_said(one))
        .map(named)
        .collect()
}

fn named(resource: &Resource) -> String {
    let name = names::name(&resource.name);
    match &resource.namespace {
        Some(schema) => format!("{}.{name}", names::name(schema)),
        None => name,
    }
}

/// What something with these effects is able to do.
fn can(effects: Effects) -> String {
    if effects.contains(Effects::EXECUTE) {
        return "do anything".to_owned();
    }
    let verbs: Vec<&str> = effects
        .names()
        .map(|effect| match effect {
            "write" => "change data",
            "schema" => "change definitions",
            "admin" => "administer the server",
            "export" => "take data out",
            "transfer" => "move data in or out",
            "unclassified" => "do what can't be told",
            other => other,
        })
        .collect();
    and(&verbs)
}
