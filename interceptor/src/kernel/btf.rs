//! What the running kernel says of its own types and functions: BTF, in /sys/kernel/btf/vmlinux.
//!
//! aya reads it too, and keeps to itself where fields stand.

use std::{fs, io};

/// The kernel's types, by their numbers.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    /// Where each type begins. Number 0 is void, which has no place.
    types: Vec<usize>,
    /// Where the names begin.
    names: usize,
}

/// Kinds of types, of linux/btf.h.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Bytes of a type before what its kind adds, and of a member.
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;

/// Structures within structures, and names of names, that are followed.
const DEPTH_MAX: u32 = 16;

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// Where it has none (CONFIG_DEBUG_INFO_BTF), or in a form that isn't known.
    pub(super) fn of_kernel() -> io::Result<Self> {
        Self::read(fs::read("/sys/kernel/btf/vmlinux")?).ok_or_else(|| {
            io::Error::other("/sys/kernel/btf/vmlinux is in a form that isn't known")
        })
    }

    fn read(bytes: Vec<u8>) -> Option<Self> {
        const MAGIC: u16 = 0xEB9F;
        if bytes.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = word(&bytes, 4)? as usize;
        let begin = header.checked_add(word(&bytes, 8)? as usize)?;
        let end = begin.checked_add(word(&bytes, 12)? as usize)?;
        let names = header.checked_add(word(&bytes, 16)? as usize)?;
        let mut types = vec![0];
        let mut at = begin;
        while at < end {
            types.push(at);
            let info = word(&bytes, at + 4)?;
            let count = (info & 0xFFFF) as usize;
            let more = match kind_of(info) {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION => count * MEMBER_BYTES,
                kind::DATASEC | kind::ENUM64 => count * 12,
                kind::ENUM | kind::FUNC_PROTO => count * 8,
                // Pointers, names of others, floats, functions.
                0..=kind::ENUM64 => 0,
                _ => return None,
            };
            at += TYPE_BYTES + more;
        }
        Some(Self {
            bytes,
            types,
            names,
        })
    }

    /// The number of a function.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        self.find(kind::FUNC, name)
    }

    /// Where a field stands in a structure, in bytes: `path` leads there through structures within it.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut number = self.find(kind::STRUCT, structure)?;
        let mut offset = 0;
        for name in path {
            let (within, field) = self.member(number, name, 0)?;
            offset += within;
            number = field;
        }
        Some(offset)
    }

    fn find(&self, wanted: u32, name: &str) -> Option<u32> {
        let found = self.types.iter().skip(1).position(|at| {
            let info = word(&self.bytes, at + 4).unwrap_or(0);
            // What is only declared has no fields.
            let is_whole = wanted != kind::STRUCT || info & 0xFFFF > 0;
            kind_of(info) == wanted && is_whole && self.is_named(*at, name)
        })?;
        u32::try_from(found + 1).ok()
    }

    /// Offset and type of a field, those of structures without a name among them.
    fn member(&self, structure: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > DEPTH_MAX {
            return None;
        }
        let at = self.structure(structure)?;
        let info = word(&self.bytes, at + 4)?;
        // Then the size of bit fields stands in the offset's upper byte.
        let has_sizes = info >> 31 == 1;
        for index in 0..(info & 0xFFFF) as usize {
            let member = at + TYPE_BYTES + index * MEMBER_BYTES;
            let field = word(&self.bytes, member + 4)?;
            let bits = word(&self.bytes, member + 8)?;
            let offset = if has_sizes { bits & 0x00FF_FFFF } else { bits } / 8;
            if self.is_named(member, name) {
                return Some((offset, field));
            }
            if self.is_named(member, "")
                && let Some((within, field)) = self.member(field, name, depth + 1)
            {
                return Some((offset + within, field));
            }
        }
        None
    }

    /// Where the structure or union begins that a type is, or is another name of.
    fn structure(&self, mut number: u32) -> Option<usize> {
        for _ in 0..DEPTH_MAX {
            let at = *self.types.get(number as usize).filter(|_| number != 0)?;
            match kind_of(word(&self.bytes, at + 4)?) {
                kind::STRUCT | kind::UNION => return Some(at),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    number = word(&self.bytes, at + 8)?
                }
                _ => return None,
            }
        }
        None
    }

    /// Whether the type or member at `at` has this name.
    fn is_named(&self, at: usize, name: &str) -> bool {
        let named = || {
            let begin = self.names.checked_add(word(&self.bytes, at)? as usize)?;
            let end = begin.checked_add(name.len())?;
            let is_it = self.bytes.get(begin..end)? == name.as_bytes();
            Some(is_it && self.bytes.get(end) == Some(&0))
        };
        named().unwrap_or(false)
    }
}

const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1F
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types, each with its name and the words that follow it, and their names.
    fn btf(types: &[(&str, &[u32])], members: &[&str]) -> Vec<u8> {
        let mut names = vec![0_u8];
        let mut name = |name: &str| {
            let at = names.len() as u32;
            names.extend(name.bytes().chain([0]));
            if name.is_empty() { 0 } else { at }
        };
        let members: Vec<u32> = members.iter().map(|member| name(member)).collect();
        let mut words = Vec::new();
        for (named, rest) in types {
            words.push(name(named));
            // Members are named by their number, from 1000 on.
            let rest = rest.iter().map(|word| match word.checked_sub(1_000) {
                Some(member) if (member as usize) < members.len() => members[member as usize],
                _ => *word,
            });
            words.extend(rest);
        }
        let length = words.len() as u32 * 4;
        let mut bytes = vec![0x9F, 0xEB, 1, 0];
        for word in [24, 0, length, length, names.len() as u32] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(words.into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(names);
        bytes
    }

    fn small() -> Vec<u8> {
        btf(
            &[
                ("int", &[kind::INT << 24, 4, 32]),
                // struct inner { int a; int b; }
                (
                    "inner",
                    &[kind::STRUCT << 24 | 2, 8, 1_000, 1, 0, 1_001, 1, 32],
                ),
                ("other", &[kind::TYPEDEF << 24, 2]),
                // union { int c; struct inner d; }
                ("", &[kind::UNION << 24 | 2, 8, 1_002, 1, 0, 1_003, 3, 0]),
                // struct outer { int a; union { … }; }, with sizes of bit fields
                (
                    "outer",
                    &[
                        1 << 31 | kind::STRUCT << 24 | 2,
                        12,
                        1_000,
                        1,
                        32 << 24,
                        0,
                        4,
                        32,
                    ],
                ),
                ("called", &[kind::FUNC << 24, 0]),
            ],
            &["a", "b", "c", "d"],
        )
    }

    #[test]
    fn fields_are_found_through_structures_with_and_without_a_name() {
        let btf = Btf::read(small()).unwrap();
        assert_eq!(btf.offset("outer", &["a"]), Some(0));
        assert_eq!(btf.offset("outer", &["c"]), Some(4));
        assert_eq!(btf.offset("outer", &["d", "b"]), Some(8));
        assert_eq!(btf.function("called"), Some(6));
        for (structure, path) in [
            ("outer", ["e"].as_slice()),
            ("none", &["a"]),
            ("outer", &["a", "b"]),
            ("int", &["a"]),
        ] {
            assert_eq!(btf.offset(structure, path), None, "{structure} {path:?}");
        }
        assert_eq!(btf.function("outer"), None);
    }

    #[test]
    fn what_is_cut_short_or_turned_over_is_refused_and_never_a_panic() {
        let whole = small();
        for end in 0..whole.len() {
            let _ = Btf::read(whole[..end].to_vec()).map(|btf| btf.offset("outer", &["d", "b"]));
        }
        for at in 0..whole.len() {
            for flipped in [0x01, 0x80, 0xFF] {
                let mut bytes = whole.clone();
                bytes[at] ^= flipped;
                let read = Btf::read(bytes);
                let _ = read.map(|btf| (btf.offset("outer", &["d", "b"]), btf.function("x")));
            }
        }
    }
}
