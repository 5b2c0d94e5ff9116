//! What a word is, and which texts of an operation are searched.

use interceptor_core::operation::{Operation, ParameterFormat, attribute};

/// Bytes of a word that the index has. Longer ones are found by these, and then looked for where they are on record.
pub(super) const WORD_BYTES_MAX: usize = 64;

/// Parts of an identifier that are put together: `catalog.schema.table.column` has four, hosts some more.
pub(super) const PARTS_MAX: usize = 8;

/// Attributes that are searched: the rest are numbers and what the request says again.
pub const SEARCHED: [&str; 4] = [
    attribute::HTTP_HOST,
    attribute::HTTP_PATH,
    attribute::TLS_SERVER_NAME,
    attribute::DNS_NAME,
];

/// Gives `take` every text of `operation` that is searched: what was sent, and what it was for. It is taken from
/// what goes on record, so what a mask removed is in none of them; and nothing that came back is.
pub(super) fn texts(operation: &Operation, mut take: impl FnMut(&[u8])) {
    take(&operation.content);
    let description = &operation.description;
    for action in &description.actions {
        take(action.as_bytes());
    }
    for resource in &description.resources {
        take(resource.to_string().as_bytes());
    }
    for name in SEARCHED {
        if let Some(value) = description.attributes.get(name) {
            take(value.as_bytes());
        }
    }
    for parameter in &*operation.parameters {
        if let (ParameterFormat::Text, Some(value)) = (parameter.format, &parameter.value) {
            take(value);
        }
    }
}

/// Whether `character` is a part of words.
pub(super) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// What a word of a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Letters, digits and underscores.
    Word,
    /// Words with dots between them: a whole identifier, or what one ends with.
    Identifier,
}

/// Gives `take` the words of `text`, in lower case: runs of letters, digits and underscores; and where dots join them
/// (`db.shop.orders`) what they are together and what that ends with (`shop.orders`), as people name tables and hosts.
/// What isn't UTF-8 ends a word.
pub(super) fn each(text: &[u8], mut take: impl FnMut(&[u8], Kind)) {
    let mut lower = Vec::with_capacity(WORD_BYTES_MAX);
    let mut give = |word: &str, kind| {
        lowered(word, &mut lower);
        take(&lower, kind);
    };
    for chunk in text.utf8_chunks() {
        identifiers(chunk.valid(), |identifier, parts| {
            for (index, (start, end)) in parts.iter().enumerate() {
                let part = identifier.get(*start..*end).unwrap_or_default();
                give(part, Kind::Word);
                // `2.10` says nothing of `192.0.2.10`.
                let says = index == 0 || !part.starts_with(|first: char| first.is_ascii_digit());
                if says && index + 1 < parts.len() {
                    let end = parts.last().map_or(*end, |(_, end)| *end);
                    give(
                        identifier.get(*start..end).unwrap_or_default(),
                        Kind::Identifier,
                    );
                }
            }
        });
    }
}

/// Gives `take` each run of words with single dots between them of `text`, with where its words are in it.
fn identifiers(text: &str, mut take: impl FnMut(&str, &[(usize, usize)])) {
    let mut parts = [(0, 0); PARTS_MAX];
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let identifier = rest.get(start..).unwrap_or_default();
        let (mut at, mut count) = (0, 0);
        for part in &mut parts {
            let word = identifier.get(at..).unwrap_or_default();
            let length = word.find(|c| !is_word(c)).unwrap_or(word.len());
            *part = (at, at + length);
            at += length;
            count += 1;
            let mut after = word.get(length..).unwrap_or_default().chars();
            if after.next() != Some('.') || !after.next().is_some_and(is_word) {
                break;
            }
            at += 1;
        }
        take(identifier, parts.get(..count).unwrap_or_default());
        rest = identifier.get(at..).unwrap_or_default();
    }
}

/// Has `lower` be `word` in lower case, as much of it as the index has.
fn lowered(word: &str, lower: &mut Vec<u8>) {
    lower.clear();
    if word.is_ascii() {
        let word = word.as_bytes();
        lower.extend(word.iter().take(WORD_BYTES_MAX).map(u8::to_ascii_lowercase));
        return;
    }
    let mut bytes = [0; 4];
    for character in word.chars().flat_map(char::to_lowercase) {
        let encoded = character.encode_utf8(&mut bytes).as_bytes();
        if lower.len() + encoded.len() > WORD_BYTES_MAX {
            return;
        }
        lower.extend_from_slice(encoded);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        each(text, |word, _| {
            all.push(String::from_utf8(word.to_vec()).unwrap());
        });
        all
    }

    #[test]
    fn words_are_what_people_search_for() {
        let table: [(&[u8], &[&str]); 12] = [
            (b"SELECT id FROM t_1;", &["select", "id", "from", "t_1"]),
            (
                b"db.Shop.orders",
                &["db", "db.shop.orders", "shop", "shop.orders", "orders"],
            ),
            (b"/api/v1/users?id=7", &["api", "v1", "users", "id", "7"]),
            (b"192.0.2.10", &["192", "192.0.2.10", "0", "2", "10"]),
            (b"a..b .c d. e", &["a", "b", "c", "d", "e"]),
            (
                b"user@example.com",
                &["user", "example", "example.com", "com"],
            ),
            ("ÄRGER Straße".as_bytes(), &["ärger", "straße"]),
            (b"a\xffb", &["a", "b"]),
            (b"a\0b\x1b[31mc", &["a", "b", "31mc"]),
            (b"", &[]),
            (b"...", &[]),
            ("漢字.x".as_bytes(), &["漢字", "漢字.x", "x"]),
        ];
        for (text, expected) in table {
            assert_eq!(words(text), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn what_is_long_is_cut_and_what_has_many_parts_is_not_put_together_for_ever() {
        let long = words(&[b'x'; 1_000]);
        assert_eq!(long, ["x".repeat(WORD_BYTES_MAX)]);
        let wide = words("ä".repeat(1_000).as_bytes());
        assert_eq!(wide, ["ä".repeat(WORD_BYTES_MAX / 2)]);
        let parts = words("a.".repeat(10_000).as_bytes());
        assert!(parts.len() < 10_000 * 2);
        let longest = parts.iter().map(|part| part.split('.').count()).max();
        assert_eq!(longest, Some(PARTS_MAX));
    }

    proptest! {
        #[test]
        fn any_bytes_have_words_and_no_other_characters(text in any::<Vec<u8>>()) {
            for word in words(&text) {
                prop_assert!(!word.is_empty() && word.len() <= WORD_BYTES_MAX);
                prop_assert!(word.split('.').all(|part| !part.is_empty()));
            }
        }
    }
}
