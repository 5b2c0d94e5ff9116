//! What is known of names in the DNS, whoever asks for them: types of records, who registers what, and how
//! much a name looks like data.

use std::borrow::Cow;

/// The types of records by number (IANA's registry), meta types for questions included.
const TYPES: [(u16, &str); 86] = [
    (1, "A"),
    (2, "NS"),
    (3, "MD"),
    (4, "MF"),
    (5, "CNAME"),
    (6, "SOA"),
    (7, "MB"),
    (8, "MG"),
    (9, "MR"),
    (10, "NULL"),
    (11, "WKS"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (19, "X25"),
    (20, "ISDN"),
    (21, "RT"),
    (22, "NSAP"),
    (23, "NSAP-PTR"),
    (24, "SIG"),
    (25, "KEY"),
    (26, "PX"),
    (27, "GPOS"),
    (28, "AAAA"),
    (29, "LOC"),
    (30, "NXT"),
    (31, "EID"),
    (32, "NIMLOC"),
    (33, "SRV"),
    (34, "ATMA"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (38, "A6"),
    (39, "DNAME"),
    (40, "SINK"),
    (41, "OPT"),
    (42, "APL"),
    (43, "DS"),
    (44, "SSHFP"),
    (45, "IPSECKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (49, "DHCID"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (55, "HIP"),
    (56, "NINFO"),
    (57, "RKEY"),
    (58, "TALINK"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (62, "CSYNC"),
    (63, "ZONEMD"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (66, "DSYNC"),
    (99, "SPF"),
    (104, "NID"),
    (105, "L32"),
    (106, "L64"),
    (107, "LP"),
    (108, "EUI48"),
    (109, "EUI64"),
    (128, "NXNAME"),
    (249, "TKEY"),
    (250, "TSIG"),
    (251, "IXFR"),
    (252, "AXFR"),
    (253, "MAILB"),
    (254, "MAILA"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
    (258, "AVC"),
    (260, "AMTRELAY"),
    (32_768, "TA"),
    (32_769, "DLV"),
];

/// Most bytes that a name has as it is written, without the last dot: 255 on the wire.
pub const NAME_BYTES_MAX: usize = 253;

/// Most bytes that a label has.
pub const LABEL_BYTES_MAX: usize = 63;

/// The extensions (EDNS options) that a question may have, by number.
pub const OPTIONS: [(u16, &str); 13] = [
    (3, "nsid"),
    (5, "dau"),
    (6, "dhu"),
    (7, "n3u"),
    (8, "client-subnet"),
    (9, "expire"),
    (10, "cookie"),
    (11, "tcp-keepalive"),
    (12, "padding"),
    (13, "chain"),
    (14, "key-tag"),
    (15, "extended-error"),
    (19, "zone-version"),
];

/// Second-level names below which registries of countries sell names, by top-level domain.
///
/// Of our own rather than the public suffix list: that is under a licence (MPL 2.0) which isn't among those
/// that may come in, and it takes private domains (`github.io`, a dynamic DNS provider's) for registries. A
/// registry that is missing here makes its names count as one domain's: rules on `distinct` and
/// `entropy_over` get stricter by that, never laxer. So nothing stands here that anybody could register.
const REGISTRIES: [(&str, &[&str]); 45] = [
    ("ae", &["ac", "co", "gov", "net", "org", "sch"]),
    (
        "ar",
        &["com", "edu", "gob", "gov", "int", "mil", "net", "org"],
    ),
    ("at", &["ac", "co", "gv", "or"]),
    ("au", &["asn", "com", "edu", "gov", "id", "net", "org"]),
    ("bd", &["ac", "com", "edu", "gov", "net", "org"]),
    (
        "br",
        &["com", "edu", "gov", "jus", "leg", "mil", "net", "org"],
    ),
    ("cn", &["ac", "com", "edu", "gov", "mil", "net", "org"]),
    ("co", &["com", "edu", "gov", "mil", "net", "nom", "org"]),
    ("cr", &["ac", "co", "ed", "fi", "go", "or"]),
    ("cy", &["ac", "com", "gov", "net", "org"]),
    ("ec", &["com", "edu", "fin", "gob", "gov", "net", "org"]),
    ("eg", &["com", "edu", "gov", "net", "org"]),
    ("gr", &["com", "edu", "gov", "net", "org"]),
    ("hk", &["com", "edu", "gov", "idv", "net", "org"]),
    ("hu", &["co", "org"]),
    ("id", &["ac", "co", "go", "mil", "net", "or", "sch", "web"]),
    (
        "il",
        &["ac", "co", "gov", "idf", "k12", "muni", "net", "org"],
    ),
    (
        "in",
        &[
            "ac", "co", "edu", "firm", "gen", "gov", "ind", "net", "nic", "org", "res",
        ],
    ),
    (
        "jp",
        &["ac", "ad", "co", "ed", "go", "gr", "lg", "ne", "or"],
    ),
    ("ke", &["ac", "co", "go", "ne", "or", "sc"]),
    (
        "kr",
        &["ac", "co", "go", "hs", "kg", "mil", "ne", "or", "pe", "re"],
    ),
    ("lk", &["ac", "com", "edu", "gov", "net", "org"]),
    ("ma", &["ac", "co", "gov", "net", "org", "press"]),
    ("mt", &["com", "edu", "net", "org"]),
    ("mx", &["com", "edu", "gob", "net", "org"]),
    ("my", &["com", "edu", "gov", "mil", "name", "net", "org"]),
    (
        "ng",
        &["com", "edu", "gov", "mil", "name", "net", "org", "sch"],
    ),
    (
        "nz",
        &[
            "ac",
            "co",
            "cri",
            "geek",
            "gen",
            "govt",
            "health",
            "iwi",
            "maori",
            "mil",
            "net",
            "org",
            "parliament",
            "school",
        ],
    ),
    ("pe", &["com", "edu", "gob", "mil", "net", "nom", "org"]),
    ("ph", &["com", "edu", "gov", "mil", "net", "ngo", "org"]),
    ("pk", &["com", "edu", "gov", "net", "org"]),
    ("pl", &["com", "edu", "gov", "net", "org", "waw"]),
    ("pt", &["com", "edu", "gov", "org"]),
    ("sa", &["com", "edu", "gov", "med", "net", "org", "sch"]),
    ("sg", &["com", "edu", "gov", "net", "org", "per"]),
    ("th", &["ac", "co", "go", "in", "mi", "net", "or"]),
    (
        "tr",
        &[
            "bel", "com", "edu", "gen", "gov", "info", "k12", "net", "org", "web",
        ],
    ),
    ("tw", &["com", "edu", "gov", "idv", "mil", "net", "org"]),
    ("tz", &["ac", "co", "go", "ne", "or"]),
    ("ua", &["com", "edu", "gov", "net", "org"]),
    (
        "uk",
        &[
            "ac", "co", "gov", "ltd", "me", "mod", "net", "nhs", "org", "plc", "police", "sch",
        ],
    ),
    ("uy", &["com", "edu", "gub", "mil", "net", "org"]),
    ("ve", &["co", "com", "edu", "gob", "net", "org", "web"]),
    ("vn", &["ac", "com", "edu", "gov", "net", "org"]),
    (
        "za",
        &["ac", "co", "edu", "gov", "net", "nom", "org", "web"],
    ),
];

/// The name of a type of record; `TYPE65280` for one that has none (RFC 3597).
#[must_use]
pub fn type_name(number: u16) -> Cow<'static, str> {
    match TYPES.binary_search_by_key(&number, |(number, _)| *number) {
        Ok(place) => Cow::Borrowed(TYPES.get(place).map_or("", |(_, name)| name)),
        Err(_) => Cow::Owned(format!("TYPE{number}")),
    }
}

/// The type of record of that name, in capitals.
#[must_use]
pub fn type_number(name: &str) -> Option<u16> {
    match TYPES.iter().find(|(_, known)| *known == name) {
        Some((number, _)) => Some(*number),
        None => {
            let number = name.strip_prefix("TYPE")?.parse().ok()?;
            // Of a type with a name that is the only one.
            (type_name(number) == name).then_some(number)
        }
    }
}

/// The names of all types of records that have one.
pub fn type_names() -> impl Iterator<Item = &'static str> {
    TYPES.into_iter().map(|(_, name)| name)
}

/// The part of `name` (lower case, without the last dot) that somebody has registered: its last two labels, or
/// three where a country's registry stands before them.
#[must_use]
pub fn registered(name: &str) -> &str {
    let mut labels = name.rsplit('.');
    let (Some(top), Some(second)) = (labels.next(), labels.next()) else {
        return name;
    };
    let taken = REGISTRIES
        .binary_search_by_key(&top, |(country, _)| country)
        .ok()
        .and_then(|place| REGISTRIES.get(place))
        .filter(|(_, registries)| registries.contains(&second))
        .and_then(|_| labels.next())
        .map_or(0, |third| third.len() + 1);
    let bytes = top.len() + 1 + second.len() + taken;
    name.get(name.len().saturating_sub(bytes)..).unwrap_or(name)
}

/// What stands before the registered part of `name`, for its owner to choose freely.
#[must_use]
pub fn below_registered(name: &str) -> &str {
    name.strip_suffix(registered(name)).unwrap_or_default()
}

/// How many bytes `name` has, the dots between its labels included.
#[must_use]
pub fn name_bytes(name: &str) -> usize {
    let bytes = Bytes(name.as_bytes()).count();
    // The root is a dot that stands between nothing.
    if name == "." { 0 } else { bytes }
}

/// How many bytes the longest label of `name` has.
#[must_use]
pub fn label_bytes(name: &str) -> usize {
    let (longest, last) =
        Bytes(name.as_bytes()).fold((0, 0_usize), |(longest, label), byte| match byte {
            None => (longest.max(label), 0),
            Some(_) => (longest, label + 1),
        });
    longest.max(last)
}

/// How many labels `name` has.
#[must_use]
pub fn labels(name: &str) -> usize {
    match name {
        "." | "" => 0,
        name => name.split('.').count(),
    }
}

/// Shannon's entropy of the bytes of a name or a part of it, dots between labels left out, in bits a byte.
#[must_use]
pub fn entropy(name: &str) -> f64 {
    let mut counts = [0_u32; 256];
    let mut all = 0_u32;
    for byte in Bytes(name.as_bytes()).flatten() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
            all += 1;
        }
    }
    let all = f64::from(all);
    // From zero, not from the -0 that is the sum of nothing.
    let counts = counts.into_iter().filter(|count| *count > 0);
    counts.fold(0.0, |entropy, count| {
        let share = f64::from(count) / all;
        entropy - share * share.log2()
    })
}

/// The bytes of a name that is written as text (`\007` is one byte); `None` is a dot between labels.
///
/// Counted as the four characters that it is written with, a byte that isn't printable would look like a number:
/// tunnels that use all 256 of them would have less entropy than those that use letters.
#[derive(Debug, Clone)]
struct Bytes<'a>(&'a [u8]);

impl Iterator for Bytes<'_> {
    type Item = Option<u8>;

    fn next(&mut self) -> Option<Option<u8>> {
        let (byte, rest) = match *self.0 {
            [b'\\', high, middle, low, ref rest @ ..] => {
                let digit = |byte: u8| byte.wrapping_sub(b'0');
                let value = digit(high).wrapping_mul(100);
                let value = value.wrapping_add(digit(middle).wrapping_mul(10));
                (Some(value.wrapping_add(digit(low))), rest)
            }
            [b'.', ref rest @ ..] => (None, rest),
            [byte, ref rest @ ..] => (Some(byte), rest),
            [] => return None,
        };
        self.0 = rest;
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted() {
        assert!(TYPES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(REGISTRIES.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn types_have_one_name_each() {
        for number in 0..=u16::MAX {
            assert_eq!(type_number(&type_name(number)), Some(number));
        }
        for name in ["TYPE1", "TYPE01234", "TYPE70000", "TYPE", "a", "TYPE+300"] {
            assert_eq!(type_number(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_registered_is_found() {
        for (name, expected) in [
            ("", ""),
            ("com", "com"),
            ("example.com", "example.com"),
            ("www.example.com", "example.com"),
            ("a.b.c.d.example.com", "example.com"),
            ("co.uk", "co.uk"),
            ("example.co.uk", "example.co.uk"),
            ("a.www.example.co.uk", "example.co.uk"),
            ("www.example.uk", "example.uk"),
            ("a.com.de", "com.de"),
            ("a.b.com.au", "b.com.au"),
        ] {
            assert_eq!(registered(name), expected, "{name}");
        }
    }

    #[test]
    fn entropy_tells_data_from_words() {
        assert_eq!(entropy(""), 0.0);
        assert_eq!(entropy("aaaa"), 0.0);
        assert_eq!(entropy("ab.ab"), 1.0);
        assert!(entropy("mzxw6ytboi4dgnbvgy3tqojqmfrggzdf") > 4.0);
        assert!(entropy("www") < 1.0);
        let letters: String = (b'a'..=b'p').map(char::from).collect();
        let others: String = (0xC0..0xD0_u8).map(|byte| format!("\\{byte:03}")).collect();
        assert_eq!([entropy(&letters), entropy(&others)], [4.0, 4.0]);
    }

    #[test]
    fn names_are_measured_by_their_bytes() {
        for (name, expected) in [
            (".", [0, 0, 0]),
            ("com", [3, 3, 1]),
            ("www.example.com", [15, 7, 3]),
            (r"a\046b\255\000.com", [9, 5, 2]),
        ] {
            let found = [name_bytes(name), label_bytes(name), labels(name)];
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(below_registered("a.b.example.co.uk"), "a.b.");
        assert_eq!(below_registered("example.com"), "");
    }
}
