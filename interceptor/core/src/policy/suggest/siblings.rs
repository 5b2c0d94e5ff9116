//! Patterns in the place of many names that differ in one part.

use std::collections::{BTreeMap, BTreeSet};

use crate::operation::dns;

/// How many names that differ in one part alone a pattern stands for at least.
pub(super) const MANY: usize = 8;

/// `paths` with `{id}` where many differ in one segment.
pub(super) fn of_paths(paths: &BTreeSet<String>) -> BTreeSet<String> {
    let mut paths: BTreeSet<Vec<String>> = paths
        .iter()
        .map(|path| path.split('/').map(str::to_owned).collect())
        .collect();
    let longest = paths.iter().map(Vec::len).max().unwrap_or(0);
    // What comes behind is more often what tells one from the other.
    for place in (1..longest).rev() {
        let mut alike: BTreeMap<Vec<String>, Vec<Vec<String>>> = BTreeMap::new();
        for path in &paths {
            let mut pattern = path.clone();
            if let Some(segment) = pattern.get_mut(place)
                && !segment.is_empty()
            {
                *segment = "{id}".to_owned();
                alike.entry(pattern).or_default().push(path.clone());
            }
        }
        for (pattern, of) in alike {
            if of.len() >= MANY {
                for path in &of {
                    paths.remove(path);
                }
                paths.insert(pattern);
            }
        }
    }
    paths.iter().map(|path| path.join("/")).collect()
}

/// `names` in the DNS with `*.example.com` where many stand below `example.com`.
pub(super) fn of_names(names: &BTreeSet<String>) -> BTreeSet<String> {
    let parent = |name: &str| {
        let (_, parent) = name.split_once('.')?;
        // Below what somebody registered, not below a registry.
        (parent.len() >= dns::registered(name).len()).then(|| parent.to_owned())
    };
    replaced(names, parent, |parent| format!("*.{parent}"))
}

/// Names of tables with `events_*` in the place of many that go on with numbers.
pub(super) fn of_tables(names: &BTreeSet<String>) -> BTreeSet<String> {
    let stem = |name: &str| {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
        let is_numbered = stem.len() + 1 < name.len()
            && name
                .get(stem.len()..)
                .is_some_and(|rest| rest.starts_with('_'))
            && !stem.is_empty()
            && !stem.ends_with('.');
        is_numbered.then(|| stem.to_owned())
    };
    replaced(names, stem, |stem| format!("{stem}_*"))
}

fn replaced(
    names: &BTreeSet<String>,
    common: impl Fn(&str) -> Option<String>,
    pattern: impl Fn(&str) -> String,
) -> BTreeSet<String> {
    let mut alike: BTreeMap<String, usize> = BTreeMap::new();
    for common in names.iter().filter_map(|name| common(name)) {
        *alike.entry(common).or_default() += 1;
    }
    let is_many = |common: &String| alike.get(common).is_some_and(|count| *count >= MANY);
    let names = names.iter().map(|name| match common(name).filter(is_many) {
        Some(common) => pattern(&common),
        None => name.clone(),
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        names.into_iter().collect()
    }

    #[test]
    fn many_that_differ_in_one_part_become_a_pattern_and_few_dont() {
        let paths = |count: usize| set((0..count).map(|id| format!("/v1/users/{id}/orders")));
        assert_eq!(
            of_paths(&paths(MANY)),
            set(["/v1/users/{id}/orders".to_owned()])
        );
        assert_eq!(of_paths(&paths(MANY - 1)), paths(MANY - 1));
        let both = set((0..MANY).flat_map(|a| (0..MANY).map(move |b| format!("/{a}/x/{b}"))));
        assert_eq!(of_paths(&both), set(["/{id}/x/{id}".to_owned()]));
        let folders = set((0..MANY).map(|id| format!("/{id}/")));
        assert_eq!(of_paths(&folders), set(["/{id}/".to_owned()]));

        let names =
            |count: usize, parent: &str| set((0..count).map(|id| format!("h{id}.{parent}")));
        assert_eq!(
            of_names(&names(MANY, "a.example.com")),
            set(["*.a.example.com".to_owned()])
        );
        assert_eq!(
            of_names(&names(MANY - 1, "example.com")),
            names(MANY - 1, "example.com")
        );
        for registry in ["com", "co.uk"] {
            assert_eq!(of_names(&names(MANY, registry)), names(MANY, registry));
        }

        let tables = |count: usize| set((0..count).map(|id| format!("public.events_2026_{id:02}")));
        assert_eq!(
            of_tables(&tables(MANY)),
            set(["public.events_*".to_owned()])
        );
        assert_eq!(of_tables(&tables(MANY - 1)), tables(MANY - 1));
        let letters = set(('a'..='z').map(|letter| format!("public.{letter}")));
        assert_eq!(of_tables(&letters), letters);
    }
}
