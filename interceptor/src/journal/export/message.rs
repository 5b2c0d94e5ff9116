//! HTTP messages as they are on record.

/// First line, fields and body of a message.
pub(super) fn parts(message: &[u8]) -> (String, Vec<(String, String)>, &[u8]) {
    let end = message.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = match end {
        Some(end) => (
            message.get(..end).unwrap_or_default(),
            message.get(end + 4..).unwrap_or_default(),
        ),
        None => (message, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let field = |line: &str| {
        // A pseudo-header begins with a colon.
        let colon = line.get(1..)?.find(':')? + 1;
        let (name, value) = line.split_at_checked(colon)?;
        Some((name.to_owned(), value.get(1..)?.trim().to_owned()))
    };
    (first, lines.filter_map(field).collect(), body)
}

/// The value of the field `name`, of any case.
pub(super) fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = fields
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}
