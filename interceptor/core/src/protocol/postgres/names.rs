//! The names that only a session can resolve: prepared statements, portals, cursors.
//!
//! What a name means is the server's to say, and it says so later than the client uses it. Two ways
//! to be wrong are closed here:
//!
//! * A name whose last change is still unanswered in an earlier segment (up to a Sync) may or may not
//!   have changed. Whoever uses it has to wait ([`Certainty::Wait`]). In the same segment there is no
//!   doubt: if the change fails, everything up to Sync is skipped.
//! * A name changed by SQL (PREPARE, DECLARE) inside a larger statement may or may not have been
//!   defined. Until the statement has succeeded as a whole, the name means all of its possibilities.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::describe::{Described, NameChange};
use crate::{limits, mask::MaskPlan, operation::Parameter, ruling::Permit};

/// A statement that was prepared with Parse.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) text: Bytes,
    pub(super) described: Arc<Described>,
    pub(super) parameter_types: Vec<u32>,
    /// Its RowDescription (a whole frame, all columns as text), once described.
    pub(super) layout: Mutex<Layout>,
}

/// Whether the layout of a result is known.
#[derive(Debug, Default, Clone)]
pub(super) enum Layout {
    /// Nobody has asked.
    #[default]
    Unknown,
    /// The answer is on its way.
    Asked,
    /// It returns no rows.
    NoData,
    /// Its RowDescription, a whole frame.
    Known(Bytes),
}

/// A statement with its values, ready to run.
#[derive(Debug)]
pub(super) struct Portal {
    pub(super) name: Bytes,
    pub(super) statement: Arc<Prepared>,
    pub(super) parameters: Arc<[Parameter]>,
    pub(super) result_formats: Vec<i16>,
    /// Its RowDescription, once described.
    pub(super) layout: Mutex<Layout>,
    /// The leave to run it that was given before its next Execute.
    pub(super) leave: Mutex<Option<Leave>>,
}

/// A leave to run a portal; taken by its next Execute.
#[derive(Debug)]
pub(super) enum Leave {
    /// Bind was ruled on, as the operation of this number, in the place of Execute.
    Granted(u64, Permit),
    /// A row limit ended the last Execute; the rest belongs to the same operation.
    Continues(u64, Arc<MaskPlan>),
}

/// What SQL may have made a name mean.
#[derive(Debug, Clone)]
pub(super) struct Possibility {
    /// What running it does.
    pub(super) described: Arc<Described>,
    /// The whole text of the message that defined it.
    pub(super) defined_by: Bytes,
}

/// Whether a name can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    Certain,
    /// Its last change is unanswered in an earlier segment.
    Wait,
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<Arc<T>>,
    /// The segment in which `value` was set.
    segment: u64,
}

/// One name space.
#[derive(Debug)]
pub(super) struct Space<T> {
    /// What the empty name means: the statement or portal that most clients use for everything.
    unnamed: Option<Slot<T>>,
    named: FxHashMap<Bytes, Slot<T>>,
}

/// How to take a change back when the server refused it.
#[derive(Debug)]
pub(super) struct Undo<T> {
    name: Bytes,
    set: Option<Arc<T>>,
    before: Option<Arc<T>>,
}

/// All names of a session.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) statements: Space<Prepared>,
    pub(super) portals: Space<Portal>,
    sql_statements: FxHashMap<Box<str>, Vec<Possibility>>,
    cursors: FxHashMap<Box<str>, Vec<Possibility>>,
}

impl<T> Space<T> {
    fn new() -> Self {
        Self {
            unnamed: None,
            named: FxHashMap::default(),
        }
    }

    fn slot(&self, name: &[u8]) -> Option<&Slot<T>> {
        match name {
            [] => self.unnamed.as_ref(),
            name => self.named.get(name),
        }
    }

    fn slot_mut(&mut self, name: &[u8]) -> Option<&mut Slot<T>> {
        match name {
            [] => self.unnamed.as_mut(),
            name => self.named.get_mut(name),
        }
    }

    fn remove(&mut self, name: &[u8]) {
        match name {
            [] => self.unnamed = None,
            name => drop(self.named.remove(name)),
        }
    }

    /// Whether what `name` means is known, while `answered` segments are complete and `current` is open.
    pub(super) fn certainty(&self, name: &[u8], answered: u64, current: u64) -> Certainty {
        match self.slot(name) {
            Some(slot) if slot.segment >= answered && slot.segment < current => Certainty::Wait,
            _ => Certainty::Certain,
        }
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<&Arc<T>> {
        self.slot(name)?.value.as_ref()
    }

    /// Makes `name` mean `value` (`None`: nothing) as of `segment`. The name is kept: it should be a copy
    /// of its own, not a part of a read buffer.
    pub(super) fn set(&mut self, name: Bytes, value: Option<Arc<T>>, segment: u64) -> Undo<T> {
        let slot = Slot {
            value: value.clone(),
            segment,
        };
        let before = match name.is_empty() {
            true => self.unnamed.replace(slot),
            false => self.named.insert(name.clone(), slot),
        }
        .and_then(|slot| slot.value);
        Undo {
            name,
            set: value,
            before,
        }
    }

    /// Takes a change back, unless another one came after it.
    pub(super) fn undo(&mut self, undo: Undo<T>) {
        let Some(slot) = self.slot_mut(&undo.name) else {
            return;
        };
        let unchanged = match (&slot.value, &undo.set) {
            (Some(now), Some(set)) => Arc::ptr_eq(now, set),
            (None, None) => true,
            _ => false,
        };
        if unchanged {
            slot.value = undo.before;
        }
    }

    /// Forgets names that mean nothing and whose removal is answered.
    pub(super) fn sweep(&mut self, answered: u64) {
        self.named
            .retain(|_, slot| slot.value.is_some() || slot.segment >= answered);
    }

    pub(super) fn clear(&mut self) {
        self.unnamed = None;
        self.named.clear();
    }

    pub(super) fn is_full(&self) -> bool {
        self.named.len() >= limits::NAMES_MAX
    }
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            statements: Space::new(),
            portals: Space::new(),
            sql_statements: FxHashMap::default(),
            cursors: FxHashMap::default(),
        }
    }

    /// All that SQL may have made the prepared statement `name` mean.
    pub(super) fn sql_statement(&self, name: &str) -> &[Possibility] {
        self.sql_statements.get(name).map_or(&[], Vec::as_slice)
    }

    /// All that SQL may have made the cursor `name` mean.
    pub(super) fn cursor(&self, name: &str) -> &[Possibility] {
        self.cursors.get(name).map_or(&[], Vec::as_slice)
    }

    /// `changes` are about to be tried by the message `text`: add what they may define.
    pub(super) fn try_changes(&mut self, changes: &[NameChange], text: &Bytes) {
        for change in changes {
            let (space, name, statement) = match change {
                NameChange::Prepare { name, statement } => {
                    (&mut self.sql_statements, name, statement)
                }
                NameChange::Declare { name, statement } => (&mut self.cursors, name, statement),
                _ => continue,
            };
            let possibility = Possibility {
                described: statement.clone(),
                defined_by: Bytes::copy_from_slice(text),
            };
            space.entry(name.clone()).or_default().push(possibility);
        }
    }

    /// `changes` have succeeded, all of them, as the message `text`: each name has one meaning again.
    pub(super) fn confirm_changes(&mut self, changes: &[NameChange], text: &Bytes) {
        for change in changes {
            match change {
                NameChange::Prepare { name, statement } => {
                    let one = Possibility {
                        described: statement.clone(),
                        defined_by: Bytes::copy_from_slice(text),
                    };
                    self.sql_statements.insert(name.clone(), vec![one]);
                }
                NameChange::Declare { name, statement } => {
                    let one = Possibility {
                        described: statement.clone(),
                        defined_by: Bytes::copy_from_slice(text),
                    };
                    self.cursors.insert(name.clone(), vec![one]);
                }
                NameChange::Deallocate(name) => {
                    self.sql_statements.remove(name);
                    self.statements.remove(name.as_bytes());
                }
                NameChange::DeallocateAll => {
                    self.sql_statements.clear();
                    self.statements.clear();
                }
                NameChange::Close(name) => {
                    self.cursors.remove(name);
                    self.portals.remove(name.as_bytes());
                }
                NameChange::CloseAll => {
                    self.cursors.clear();
                    self.portals.clear();
                }
            }
        }
    }

    /// Whether one more name would be too many.
    pub(super) fn is_full(&self) -> bool {
        self.statements.is_full() || self.portals.is_full()
    }

    /// Whether SQL has defined, or tried to define, too many names.
    pub(super) fn is_full_of_sql(&self) -> bool {
        let tried = |space: &FxHashMap<Box<str>, Vec<Possibility>>| -> usize {
            space.values().map(Vec::len).sum()
        };
        tried(&self.sql_statements) + tried(&self.cursors) >= limits::NAMES_MAX
    }
}
