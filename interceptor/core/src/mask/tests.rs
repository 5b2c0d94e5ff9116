use std::sync::Arc;

use proptest::prelude::*;

use super::{MaskKind, Pattern, PatternMask, Patterns};

fn patterns(masks: impl IntoIterator<Item = (Pattern, MaskKind)>) -> Patterns {
    let mask = |(pattern, with)| PatternMask {
        rule: Arc::from("r"),
        pattern,
        with,
    };
    Patterns::new(masks.into_iter().map(mask).collect())
}

fn all() -> Patterns {
    patterns(
        Pattern::NAMES
            .iter()
            .map(|(_, pattern)| (*pattern, pattern.usual())),
    )
}

fn redacting() -> Patterns {
    patterns(
        Pattern::NAMES
            .iter()
            .map(|(_, pattern)| (*pattern, MaskKind::Redact)),
    )
}

fn masked(text: &str) -> String {
    all().apply(text.as_bytes()).map_or_else(
        || text.to_owned(),
        |bytes| String::from_utf8(bytes).unwrap(),
    )
}

#[test]
fn secrets_are_found_wherever_they_stand() {
    for (text, expected) in [
        ("ada@example.com", "a***@example.com"),
        (
            "{\"mail\":\"ada@example.com\"}",
            "{\"mail\":\"a***@example.com\"}",
        ),
        (
            "Key (email)=(ada@example.co.uk) already exists.",
            "Key (email)=(a***@example.co.uk) already exists.",
        ),
        ("'ada@example.com'.", "'a***@example.com'."),
        ("<ada+x@example.com>", "<a***@example.com>"),
        (
            "ada@example.com,bob@example.org",
            "a***@example.com,b***@example.org",
        ),
        ("ada@bücher.example", "a***@bücher.example"),
        ("émile@example.fr", "é***@example.fr"),
        ("ada@xn--bcher-kva.xn--p1ai", "a***@xn--bcher-kva.xn--p1ai"),
        ("4111111111111111", "************1111"),
        ("card 4111 1111 1111 1111.", "card ***************1111."),
        ("4111-1111-1111-1111", "***************1111"),
        (
            "5500005555555559,4111111111111111",
            "************5559,************1111",
        ),
        // What follows a card number, or stands before it, doesn't hide it.
        ("4111111111111111 123", "************1111 123"),
        ("4111 1111 1111 1111 12/27", "***************1111 12/27"),
        ("4111 1111 1111 1111 123", "***************1111 123"),
        ("12 4111111111111111", "12 ************1111"),
        ("2026-11-20 4111111111111111", "2026-11-20 ************1111"),
        ("4111111111111111\t2027", "************1111\t2027"),
        ("\\n4111111111111111", "\\n************1111"),
        ("378282246310005", "***********0005"),
        ("3782 822463 10005", "*************0005"),
        ("6011000990139424", "************9424"),
        ("3566002020360505", "************0505"),
        ("DE89370400440532013000", "******************3000"),
        ("DE89370400440532013000 EUR", "******************3000 EUR"),
        (
            "DE89 3704 0044 0532 0130 00 EUR",
            "***********************0 00 EUR",
        ),
        ("de89370400440532013000", "******************3000"),
        ("to:NO9386011117947;", "to:***********7947;"),
        ("\\nDE89370400440532013000", "\\n******************3000"),
        ("GB82 WEST 1234 5698 7654 32", "***********************4 32"),
        ("ssn 078-05-1120", "ssn [redacted]"),
        ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
        ("key=ASIAIOSFODNN7EXAMPLE&x", "key=[redacted]&x"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "aws_secret_access_key = [redacted]",
        ),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[redacted]"),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
            "[redacted]",
        ),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxMjM0In0.", "[redacted]"),
        (
            "eyJhbGciOiJkaXIifQ..iv_iv_iv.ciphertext.tagtag",
            "[redacted]",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n",
            "[redacted]\n",
        ),
        (
            "a -----BEGIN OPENSSH PRIVATE KEY-----\\nb3Bl\\n-----END OPENSSH PRIVATE KEY----- z",
            "a [redacted] z",
        ),
        (
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----",
            "[redacted]",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "[redacted]"),
        ("call +49 30 1234567", "call [redacted]"),
        ("+44 (0)20 7946 0958", "[redacted]"),
        ("+1-555-0100", "[redacted]"),
        ("+1 555 123 4567 890123", "[redacted] 890123"),
        ("(555) 123-4567", "[redacted]"),
        ("call 1-555-123-4567, please", "call [redacted], please"),
        ("555.123.4567", "[redacted]"),
    ] {
        assert_eq!(masked(text), expected, "{text}");
    }
}

#[test]
fn what_only_looks_like_one_stays() {
    for text in [
        "4111111111111112",
        "123456789012345678901234",
        "0000000000000000",
        // Luhn holds for all of these: a timestamp, an IMEI, an identifier, the fraction of a number.
        "1763600000006",
        "490154203237518",
        "123456789012345674",
        "0.4111111111111111",
        "order 2026-11-20 12:00",
        "a@b",
        "user at example.com",
        "@handle and user@localhost",
        "user@10.0.0.1",
        "000-12-3456",
        "078-00-1120",
        "1078-05-1120",
        "DE00370400440532013000",
        "ADE89370400440532013000",
        "550e8400-e29b-41d4-a716-446655440000",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "internationalization/ServiceConfiguratio",
        "AKIA",
        "eyJ.a.b",
        "-----BEGIN PUBLIC KEY-----\nMIIE\n-----END PUBLIC KEY-----",
        "192.168.100.1000",
        "2026-11-20",
        "1 + 2 = 3",
        "x+12345678",
    ] {
        assert_eq!(masked(text), text);
    }
}

#[test]
fn of_two_that_overlap_nothing_stays() {
    let both = patterns([
        (Pattern::Pem, MaskKind::Redact),
        (Pattern::Email, MaskKind::Email),
    ]);
    let text = b"-----BEGIN PRIVATE KEY-----\nada@example.com\n-----END PRIVATE KEY-----";
    assert_eq!(both.apply(text).unwrap(), b"[redacted]");
}

#[test]
fn a_null_takes_the_secret_out() {
    let null = patterns([(Pattern::Email, MaskKind::Null)]);
    assert_eq!(null.apply(b"to ada@example.com!").unwrap(), b"to !");
    assert_eq!(null.apply(b"4111111111111111"), None);
}

const SECRETS: [&str; 12] = [
    "ada@example.com",
    "4111111111111111",
    "4111 1111 1111 1111",
    "5500-0055-5555-5559",
    "378282246310005",
    "DE89370400440532013000",
    "GB82 WEST 1234 5698 7654 32",
    "078-05-1120",
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "+49 30 12345678",
];

proptest! {
    #[test]
    fn a_secret_never_survives_what_is_around_it(
        before in "([ ,;:\"(){}\\[\\]a-z0-9é]{0,20}[ ,;:\"(){}\\[\\]])?",
        after in "([ ,;:\"(){}\\[\\]][ ,;:\"(){}\\[\\]a-z0-9é]{0,20})?",
        secret in prop::sample::select(SECRETS.to_vec()),
    ) {
        // Digits on both sides of a space may be one number or two.
        prop_assume!(!secret.contains(' ') || !before.ends_with(' ') && !after.starts_with(' '));
        let text = format!("{before}{secret}{after}");
        prop_assert!(!masked(&text).contains(secret), "{}", masked(&text));
    }

    #[test]
    fn every_secret_of_a_text_is_found(
        chosen in prop::collection::vec(prop::sample::select(SECRETS.to_vec()), 1..6),
        between in prop::sample::select(vec![", ", "\n", "\"", "\t", ";", ")(", "|"]),
    ) {
        let out = redacting().apply(chosen.join(between).as_bytes()).unwrap();
        let out = String::from_utf8(out).unwrap();
        for secret in &chosen {
            prop_assert!(!out.contains(secret), "{out}");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = all().apply(&text);
    }

    #[test]
    fn what_resembles_secrets_never_panics(text in "[-0-9A-Za-z@.+ (){}/_=\\\\é]{0,200}") {
        if let Some(masked) = all().apply(text.as_bytes()) {
            prop_assert!(String::from_utf8(masked).is_ok(), "half a character");
        }
    }
}
