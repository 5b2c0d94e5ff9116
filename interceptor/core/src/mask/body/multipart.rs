//! Bodies of several parts (RFC 2046, section 5.1), each masked by what its own head says it is.

use std::{collections::BTreeSet, sync::Arc};

use bytes::BytesMut;

use super::{BodyHead, BodyMasker, BodyPlan, Unmaskable, note};
use crate::mask::MaskKind;

/// Longest head of a part, and longest line of a delimiter, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Largest part that is masked as a whole because of its name, in bytes.
const NAMED_BYTES_MAX: usize = 1 << 20;

/// Characters that a boundary may have (section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// A body of several parts.
#[derive(Debug)]
pub(super) struct Multipart {
    /// `--` and the boundary.
    dashed: Vec<u8>,
    /// What came and isn't understood yet; begins with a line where `at_line` says so.
    kept: Vec<u8>,
    at_line: bool,
    state: State,
    depth: usize,
}

#[derive(Debug)]
enum State {
    /// Before the first part. Nobody reads it, and it doesn't go on.
    Preamble,
    /// In the head of a part; or in the second one, of an answer within the part.
    Head { of_answer: bool },
    /// In a part.
    Part(Box<BodyMasker>),
    /// In a part that is masked for its name.
    Named { with: MaskKind, content: Vec<u8> },
    /// Behind the last one; neither goes on.
    Epilogue,
}

impl Multipart {
    /// A body whose Content-Type is `content_type`, in as many others as `depth` says.
    pub(super) fn new(content_type: &str, depth: usize) -> Result<Self, Unmaskable> {
        let boundary = parameter(content_type, "boundary").filter(|boundary| {
            (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len())
                && boundary.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        });
        let boundary = boundary.ok_or_else(|| {
            Unmaskable("it is in several parts, and doesn't say what is between them".to_owned())
        })?;
        Ok(Self {
            dashed: [b"--", boundary.as_bytes()].concat(),
            kept: Vec::new(),
            at_line: true,
            state: State::Preamble,
            depth,
        })
    }

    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        plan: &Arc<BodyPlan>,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        self.kept.extend_from_slice(bytes);
        while self.step(plan, masked, out)? {}
        Ok(())
    }

    pub(super) fn finish(&self) -> Result<(), Unmaskable> {
        match self.state {
            State::Epilogue => Ok(()),
            _ => Err(Unmaskable(
                "it ends in the middle of one of its parts".to_owned(),
            )),
        }
    }

    /// Takes one thing off what is kept; whether there may be another.
    fn step(
        &mut self,
        plan: &Arc<BodyPlan>,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<bool, Unmaskable> {
        match &mut self.state {
            State::Epilogue => {
                self.kept.clear();
                Ok(false)
            }
            State::Head { of_answer } => {
                let of_answer = *of_answer;
                let Some(end) = head_end(&self.kept) else {
                    return match self.kept.len() > HEAD_BYTES_MAX {
                        true => Err(Unmaskable(
                            "a part with a head of more than 16 KiB".to_owned(),
                        )),
                        false => Ok(false),
                    };
                };
                let head: Vec<u8> = self.kept.drain(..end).collect();
                self.at_line = true;
                self.head(&head, of_answer, plan, masked, out)?;
                Ok(true)
            }
            State::Preamble | State::Part(_) | State::Named { .. } => {
                match find_line(&self.kept, &self.dashed, self.at_line) {
                    Some(at) => self.delimiter(at, masked, out),
                    None => {
                        // As much as can't be the beginning of a delimiter, with the line break before it.
                        let keep = self.dashed.len() + 2;
                        let pass = self.kept.len().saturating_sub(keep);
                        if pass > 0 {
                            let content: Vec<u8> = self.kept.drain(..pass).collect();
                            self.at_line = content.ends_with(b"\n");
                            self.content(&content, masked, out)?;
                        }
                        Ok(false)
                    }
                }
            }
        }
    }

    /// A line that begins with the boundary is at `at`: the end of a part, and the beginning of another.
    fn delimiter(
        &mut self,
        at: usize,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<bool, Unmaskable> {
        let behind = self.kept.get(at + self.dashed.len()..).unwrap_or_default();
        let Some(line) = memchr::memchr(b'\n', behind) else {
            let (ends, rest) = match behind.strip_prefix(b"--") {
                Some(rest) => (true, rest),
                None => (false, behind),
            };
            let blank = rest.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
            if behind.len() > HEAD_BYTES_MAX || !(blank || behind == b"-") {
                return Err(two_readings());
            }
            if ends {
                // Whatever follows: it is the last.
                self.close(at, masked, out)?;
                out.extend_from_slice(&self.dashed);
                out.extend_from_slice(b"--\r\n");
                self.state = State::Epilogue;
                return Ok(true);
            }
            return Ok(false);
        };
        let rest = behind.get(..line).unwrap_or_default();
        let ends = rest.starts_with(b"--");
        let blank = rest
            .strip_prefix(if ends { &b"--"[..] } else { b"" })
            .is_some_and(|rest| rest.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')));
        if !blank {
            // Some take this for a delimiter, others don't.
            return Err(two_readings());
        }
        let taken = self.dashed.len() + line + 1;
        self.close(at, masked, out)?;
        self.kept.drain(..taken);
        out.extend_from_slice(&self.dashed);
        out.extend_from_slice(if ends { b"--\r\n" } else { b"\r\n" });
        self.state = match ends {
            true => State::Epilogue,
            false => State::Head { of_answer: false },
        };
        Ok(true)
    }

    /// The part ends at `at`, but for the line break there, which belongs to the delimiter.
    fn close(
        &mut self,
        at: usize,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        let mut content: Vec<u8> = self.kept.drain(..at).collect();
        for end in [b'\n', b'\r'] {
            if content.last() == Some(&end) {
                content.pop();
            }
        }
        self.content(&content, masked, out)?;
        let is_part = match &mut self.state {
            State::Part(masker) => {
                masker.finish(out)?;
                masked.extend(masker.masked().iter().cloned());
                true
            }
            State::Named { with, content } => {
                let value = with.apply(&String::from_utf8_lossy(content));
                out.extend_from_slice(value.unwrap_or_default().as_bytes());
                true
            }
            _ => false,
        };
        if is_part {
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn content(
        &mut self,
        bytes: &[u8],
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        match &mut self.state {
            State::Part(masker) => {
                masker.push(bytes, out)?;
                masked.extend(masker.masked().iter().cloned());
            }
            State::Named { content, .. } => {
                content.extend_from_slice(bytes);
                if content.len() > NAMED_BYTES_MAX {
                    return Err(Unmaskable("a field of more than 1 MiB".to_owned()));
                }
            }
            State::Preamble | State::Head { .. } | State::Epilogue => {}
        }
        Ok(())
    }

    /// Reads the head of a part, and says what becomes of what follows.
    fn head(
        &mut self,
        head: &[u8],
        of_answer: bool,
        plan: &Arc<BodyPlan>,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        let text = String::from_utf8_lossy(head);
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in text.lines().skip(usize::from(of_answer)) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                let name = name.trim().to_ascii_lowercase();
                fields.push((name, value.trim().to_owned()));
            }
        }
        let field = |wanted: &str| {
            let mut found = fields.iter().filter(|(name, _)| name == wanted);
            let (_, value) = found.next()?;
            // Of two, one reader takes the first and another the last.
            Some(match found.next() {
                None => Ok(value.as_str()),
                Some(_) => Err(Unmaskable(format!("a part with two fields `{wanted}`"))),
            })
        };
        let field = |wanted: &str| field(wanted).transpose();
        // Masking makes these untrue.
        let stale = ["content-length:", "content-encoding:", "content-md5:"];
        let kept = text.split_inclusive('\n').filter(|line| {
            let line = line.to_ascii_lowercase();
            !stale.iter().any(|name| line.starts_with(name))
        });
        let kept: String = kept.collect();
        match plan.patterns.apply(kept.as_bytes()) {
            Some(changed) => {
                note(masked, "pattern");
                out.extend_from_slice(&changed);
            }
            None => out.extend_from_slice(kept.as_bytes()),
        }
        if let Some(encoding) = field("content-transfer-encoding")?
            && !["7bit", "8bit", "binary"]
                .iter()
                .any(|plain| encoding.eq_ignore_ascii_case(plain))
        {
            return Err(Unmaskable(format!(
                "a part in `{encoding}` isn't looked into"
            )));
        }
        let content_type = field("content-type")?;
        let is_answer = content_type
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/http"));
        if is_answer && !of_answer {
            self.state = State::Head { of_answer: true };
            return Ok(());
        }
        let disposition = field("content-disposition")?.unwrap_or_default();
        let name = parameter(disposition, "name");
        if let Some(name) = name
            && let Some(with) = plan.key(&name)
        {
            note(masked, &name);
            let content = Vec::new();
            self.state = State::Named { with, content };
            return Ok(());
        }
        let head = BodyHead {
            content_type,
            content_encoding: field("content-encoding")?,
            partial: field("content-range")?.is_some(),
        };
        let masker = BodyMasker::within(plan, &head, self.depth + 1)?;
        self.state = State::Part(Box::new(masker));
        Ok(())
    }
}

fn two_readings() -> Unmaskable {
    Unmaskable("a line that some take for the end of a part and others don't".to_owned())
}

/// Where the first line that begins with `start` begins.
fn find_line(text: &[u8], start: &[u8], at_line: bool) -> Option<usize> {
    memchr::memmem::find_iter(text, start).find(|at| match at.checked_sub(1) {
        None => at_line,
        Some(before) => text.get(before) == Some(&b'\n'),
    })
}

/// The end of a head: behind its empty line.
fn head_end(text: &[u8]) -> Option<usize> {
    let mut start = 0;
    for feed in memchr::memchr_iter(b'\n', text) {
        let line = text.get(start..feed).unwrap_or_default();
        start = feed + 1;
        if line.is_empty() || line == b"\r" {
            return Some(start);
        }
    }
    None
}

/// The parameter `name` of a field's value, without quotes.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (found, behind) = rest.split_once('=')?;
        let is_wanted = found.trim().eq_ignore_ascii_case(name);
        let (text, after) = match behind.trim_start().strip_prefix('"') {
            Some(quoted) => {
                let mut text = String::new();
                let mut characters = quoted.chars();
                loop {
                    match characters.next()? {
                        '"' => break,
                        '\\' => text.push(characters.next()?),
                        character => text.push(character),
                    }
                }
                (text, characters.as_str())
            }
            None => {
                let end = behind.find(';').unwrap_or(behind.len());
                let (text, after) = behind.split_at_checked(end)?;
                (text.trim().to_owned(), after)
            }
        };
        if is_wanted {
            return Some(text);
        }
        rest = after;
        if rest.is_empty() {
            return None;
        }
    }
}
