//! The certificates in a PKCS#12 store (RFC 7292) that are there for everybody to read, as in the trust
//! stores that Java has brought along since version 18.

/// Deeper than certificates are in any store: content, safes, safe, bags, bag, value.
const DEPTH_MAX: u32 = 16;

/// `x509Certificate`, the kind of a bag's content: 1.2.840.113549.1.9.22.1.
const X509: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x16, 0x01];

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// What holds further values: a bit of the tag.
const CONSTRUCTED: u8 = 0x20;

/// The certificates of `store`, as DER; nothing where it is no such store.
pub(super) fn certificates(store: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (outer, _) = value(store)?;
    let (version, content) = value(outer.content)?;
    if outer.tag != SEQUENCE || version.tag != INTEGER || version.content != [3] {
        return None;
    }
    let mut found = Vec::new();
    collect(content, DEPTH_MAX, &mut found);
    Some(found)
}

fn collect(mut values: &[u8], depth: u32, found: &mut Vec<Vec<u8>>) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    let mut before: Option<Value<'_>> = None;
    while let Some((next, rest)) = value(values) {
        let is_certificate =
            before.is_some_and(|kind| kind.tag == IDENTIFIER && kind.content == X509);
        match (is_certificate, value(next.content)) {
            (true, Some((certificate, _))) if certificate.tag == OCTETS => {
                found.push(certificate.content.to_vec());
            }
            // Strings of octets hold values here too; what holds none gives none.
            _ if next.tag & CONSTRUCTED != 0 || next.tag == OCTETS => {
                collect(next.content, depth, found);
            }
            _ => {}
        }
        before = Some(next);
        values = rest;
    }
}

#[derive(Clone, Copy)]
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
}

/// The first value of `bytes`, and what stands behind it.
fn value(bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (&[tag, short], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match short {
        0..=0x7F => (usize::from(short), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(short & 0x7F))?;
            let length = length
                .iter()
                .fold(0, |sum: usize, &byte| sum << 8 | usize::from(byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((Value { tag, content }, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_it_is_given_it_comes_back(mut bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            super::certificates(&bytes);
            // The same as a store by its first bytes.
            bytes.splice(0..0, [0x30, 0x82, 0x02, 0x00, 0x02, 0x01, 0x03]);
            super::certificates(&bytes);
        }
    }
}
