//! WebSocket (RFC 6455) behind a 101: frames are read on both sides, messages recorded one by one, and those of
//! the server masked.
//!
//! Extensions are declined before, so a frame holds what it seems to.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{head::Malformed, recorder::Recorder};
use crate::{
    decoder::{Peer, Step},
    mask::body::{BodyHead, BodyMasker, BodyPlan, Unmaskable},
    record::{Event, ResponseStatus, Speaker, Timestamp},
};

/// Masked content of a message that goes on in one frame, in bytes; more is cut into several.
const FRAGMENT_BYTES: usize = 16 << 10;

/// Bytes that the content of a control frame may have (section 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const fn read(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    /// What a message of it is called on record; pings aren't recorded.
    const fn name(self) -> Option<&'static str> {
        match self {
            Self::Text => Some("text"),
            Self::Binary => Some("binary"),
            Self::Close => Some("close"),
            Self::Continuation | Self::Ping | Self::Pong => None,
        }
    }
}

/// The frames of one side.
#[derive(Debug)]
struct Frames {
    /// The agent's are masked with a key, the server's aren't (section 5.1).
    keyed: bool,
    /// The message that has begun.
    message: Option<Opcode>,
    frame: Option<Frame>,
}

/// A frame of which the head was read.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    last: bool,
    left: u64,
    key: [u8; 4],
    /// Bytes of content that were read, which tells the place in the key.
    at: usize,
}

/// A part of a frame.
#[derive(Debug)]
struct Part {
    /// As it came.
    raw: Bytes,
    /// What it says.
    content: Bytes,
    /// The message that it is of.
    opcode: Opcode,
    /// The message is over.
    message_ends: bool,
}

impl Frames {
    const fn new(keyed: bool) -> Self {
        Self {
            keyed,
            message: None,
            frame: None,
        }
    }

    /// Takes the next part off `buffer`; control frames whole.
    fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Part>, Malformed> {
        let (mut frame, head) = match self.frame {
            Some(frame) => (frame, 0),
            None => match self.head(buffer)? {
                Some(begun) => begun,
                None => return Ok(None),
            },
        };
        let there = buffer.len() - head;
        let take = usize::try_from(frame.left).unwrap_or(usize::MAX).min(there);
        let waits = frame.opcode.is_control() && (take as u64) < frame.left;
        if waits || (take == 0 && frame.left > 0 && head == 0) {
            return Ok(None);
        }
        let raw = buffer.split_to(head + take).freeze();
        let mut content = raw.slice(head..);
        if self.keyed {
            content = unkeyed(&content, frame.key, frame.at);
        }
        frame.left -= take as u64;
        frame.at = (frame.at + take) % 4;
        let frame_ends = frame.left == 0;
        let opcode = match frame.opcode {
            Opcode::Continuation => self.message.unwrap_or(Opcode::Binary),
            opcode => opcode,
        };
        if !opcode.is_control() {
            self.message = Some(opcode);
        }
        let message_ends = frame_ends && frame.last;
        if message_ends && !opcode.is_control() {
            self.message = None;
        }
        self.frame = (!frame_ends).then_some(frame);
        Ok(Some(Part {
            raw,
            content,
            opcode,
            message_ends,
        }))
    }

    /// The head of a frame (section 5.2), and its length.
    fn head(&self, buffer: &[u8]) -> Result<Option<(Frame, usize)>, Malformed> {
        let [first, second, rest @ ..] = buffer else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(Malformed::new("a WebSocket frame with reserved bits"));
        }
        let opcode = Opcode::read(first & 0x0F)
            .ok_or_else(|| Malformed::new("a WebSocket frame of no known kind"))?;
        let last = first & 0x80 != 0;
        let keyed = second & 0x80 != 0;
        if keyed != self.keyed {
            return Err(Malformed::new(
                "a WebSocket frame that is masked where it must not be, or isn't where it must",
            ));
        }
        let (length, used) = match second & 0x7F {
            126 => match rest {
                [a, b, ..] => (u64::from(u16::from_be_bytes([*a, *b])), 2),
                _ => return Ok(None),
            },
            127 => match rest {
                [a, b, c, d, e, f, g, h, ..] => {
                    (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8)
                }
                _ => return Ok(None),
            },
            short => (u64::from(short), 0),
        };
        let is_shortest = match used {
            0 => true,
            2 => length > 125,
            _ => length > u64::from(u16::MAX) && length <= u64::MAX >> 1,
        };
        if !is_shortest {
            return Err(Malformed::new(
                "a WebSocket frame whose length isn't written in the shortest way",
            ));
        }
        match (opcode, self.message) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _)
                if !last || length > CONTROL_BYTES_MAX =>
            {
                return Err(Malformed::new(
                    "a WebSocket control frame in parts, or of more than 125 bytes",
                ));
            }
            (Opcode::Continuation, None) => {
                return Err(Malformed::new("a WebSocket frame that continues nothing"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Malformed::new("a WebSocket message within another"));
            }
            _ => {}
        }
        let mut head = 2 + used;
        let mut key = [0; 4];
        if keyed {
            let Some(bytes) = buffer.get(head..head + 4) else {
                return Ok(None);
            };
            key.copy_from_slice(bytes);
            head += 4;
        }
        let frame = Frame {
            opcode,
            last,
            left: length,
            key,
            at: 0,
        };
        Ok(Some((frame, head)))
    }
}

/// `content` without its key, of which `at` bytes were used.
fn unkeyed(content: &[u8], key: [u8; 4], at: usize) -> Bytes {
    let key = key.iter().cycle().skip(at % 4);
    content
        .iter()
        .zip(key)
        .map(|(byte, key)| byte ^ key)
        .collect()
}

/// A connection of WebSocket.
#[derive(Debug)]
pub(super) struct WebSocket {
    number: u64,
    recorded_bytes_max: u64,
    masks: Arc<BodyPlan>,
    /// The agent's side, then the server's.
    sides: [Side; 2],
    /// The answer that opened it.
    opened: Recorder,
    passed_on: [bool; 2],
}

#[derive(Debug)]
struct Side {
    frames: Frames,
    recorder: Option<Recorder>,
    masking: Option<Masking>,
}

/// A message that is being masked.
#[derive(Debug)]
struct Masking {
    masker: BodyMasker,
    /// What may go on and hasn't.
    out: BytesMut,
    /// A frame of it has gone on.
    begun: bool,
}

impl WebSocket {
    /// Behind the 101 to operation `number`, of which `opened` is the record.
    pub(super) fn new(
        number: u64,
        recorded_bytes_max: u64,
        masks: Arc<BodyPlan>,
        opened: Recorder,
    ) -> Self {
        let side = |keyed| Side {
            frames: Frames::new(keyed),
            recorder: None,
            masking: None,
        };
        Self {
            number,
            recorded_bytes_max,
            masks,
            sides: [side(true), side(false)],
            opened,
            passed_on: [false; 2],
        }
    }

    /// Takes what is there of one side; `None` where nothing is.
    ///
    /// # Errors
    /// Where it isn't WebSocket, or has to be masked and can't be.
    pub(super) fn read(
        &mut self,
        from: Peer,
        buffer: &mut BytesMut,
        now: Timestamp,
    ) -> Result<Option<Vec<Step>>, Broken> {
        let [client, upstream] = &mut self.sides;
        let (side, of, to) = match from {
            Peer::Client => (client, Speaker::Client, Peer::Upstream),
            Peer::Upstream => (upstream, Speaker::Upstream, Peer::Client),
        };
        let Some(part) = side.frames.next(buffer)? else {
            return Ok(None);
        };
        let is_masked = of == Speaker::Upstream && !self.masks.is_empty();
        let mut steps = Vec::new();
        let Some(name) = part.opcode.name() else {
            steps.push(Step::Send(to, part.raw));
            return Ok(Some(steps));
        };
        if part.opcode == Opcode::Close {
            // Among the frames of a message, maybe: a record of its own.
            let limit = self.recorded_bytes_max;
            let mut recorder = Recorder::message(self.number, of, name, limit);
            recorder.content(part.content);
            steps.push(Step::Send(to, part.raw));
            let ended = recorder.end(ResponseStatus::Continues, now);
            steps.extend(ended.into_iter().flatten().map(Step::Record));
            return Ok(Some(steps));
        }
        let recorder = side.recorder.get_or_insert_with(|| {
            Recorder::message(self.number, of, name, self.recorded_bytes_max)
        });
        if is_masked {
            let masking = match &mut side.masking {
                Some(masking) => masking,
                None => side.masking.insert(Masking {
                    masker: BodyMasker::new(&self.masks, &BodyHead::default())?,
                    out: BytesMut::new(),
                    begun: false,
                }),
            };
            masking.masker.push(&part.content, &mut masking.out)?;
            if part.message_ends {
                masking.masker.finish(&mut masking.out)?;
                recorder.masked(masking.masker.masked().iter().cloned());
            }
            if part.message_ends || masking.out.len() >= FRAGMENT_BYTES {
                let content = std::mem::take(&mut masking.out).freeze();
                recorder.content(content.clone());
                let opcode = match masking.begun {
                    true => Opcode::Continuation,
                    false => part.opcode,
                };
                masking.begun = true;
                steps.push(Step::Send(
                    to,
                    frame_head(opcode, part.message_ends, content.len()),
                ));
                if !content.is_empty() {
                    steps.push(Step::Send(to, content));
                }
            }
        } else {
            recorder.content(part.content);
            steps.push(Step::Send(to, part.raw));
        }
        if part.message_ends {
            side.masking = None;
            let ended = side
                .recorder
                .take()
                .map(|mut recorder| recorder.end(ResponseStatus::Continues, now));
            steps.extend(ended.into_iter().flatten().flatten().map(Step::Record));
        } else {
            steps.extend(recorder.part(now).map(Step::Record));
        }
        Ok(Some(steps))
    }

    /// Which sides get nothing more, now that these have finished.
    pub(super) fn finished(&mut self, ended: [bool; 2]) -> Vec<Peer> {
        let mut over = Vec::new();
        for ((passed_on, ended), to) in self
            .passed_on
            .iter_mut()
            .zip(ended)
            .zip([Peer::Upstream, Peer::Client])
        {
            if ended && !*passed_on {
                *passed_on = true;
                over.push(to);
            }
        }
        over
    }

    /// What is left to be recorded.
    pub(super) fn end(&mut self, now: Timestamp) -> Vec<Event> {
        let status = ResponseStatus::Complete("101".into());
        let mut events = Vec::new();
        for side in &mut self.sides {
            if let Some(mut recorder) = side.recorder.take() {
                events.extend(recorder.end(ResponseStatus::Interrupted, now));
            }
        }
        events.extend(self.opened.end(status, now));
        events.into_iter().flatten().collect()
    }

    /// Tells the agent that it is over, and why, as far as that can be said: in the middle of a frame it can't.
    pub(super) fn farewell(&self, broken: &Broken) -> Option<Bytes> {
        let [_, upstream] = &self.sides;
        let between = upstream.frames.frame.is_none() || !self.masks.is_empty();
        let (status, why): (u16, _) = match broken {
            Broken::Malformed(malformed) => (1002, &malformed.reason),
            Broken::Unmaskable(Unmaskable(why)) => (1008, why),
        };
        let why = format!("interceptor: {why}");
        let mut end = why.len().min(CONTROL_BYTES_MAX as usize - 2);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let why = why.get(..end).unwrap_or_default();
        let mut out = BytesMut::from(&*frame_head(Opcode::Close, true, why.len() + 2));
        out.put_u16(status);
        out.extend_from_slice(why.as_bytes());
        between.then(|| out.freeze())
    }
}

/// Why a connection of WebSocket can't go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// One side doesn't speak it.
    Malformed(Malformed),
    /// A message has to be masked and can't be.
    Unmaskable(Unmaskable),
}

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<Unmaskable> for Broken {
    fn from(unmaskable: Unmaskable) -> Self {
        Self::Unmaskable(unmaskable)
    }
}

/// The head of a frame of the server's.
fn frame_head(opcode: Opcode, last: bool, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(10);
    out.put_u8(opcode.bits() | if last { 0x80 } else { 0 });
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => out.put_u8(short),
        (_, Ok(length)) => {
            out.put_u8(126);
            out.put_u16(length);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{MaskKind, body::KeyMask};

    const NOW: Timestamp = Timestamp(1);

    fn plan(strict: bool) -> Arc<BodyPlan> {
        Arc::new(BodyPlan {
            keys: vec![KeyMask {
                name: crate::glob::Glob::new("token"),
                with: MaskKind::Redact,
            }],
            strict,
            ..BodyPlan::default()
        })
    }

    fn websocket(masks: Arc<BodyPlan>) -> WebSocket {
        let opened = Recorder::new(1, Speaker::Upstream, NOW, 1 << 20);
        WebSocket::new(1, 1 << 20, masks, opened)
    }

    fn frame(opcode: Opcode, last: bool, content: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
        let mut out = frame_head(opcode, last, content.len()).to_vec();
        if let Some(key) = key {
            out[1] |= 0x80;
            out.extend_from_slice(&key);
            out.extend_from_slice(&unkeyed(content, key, 0));
        } else {
            out.extend_from_slice(content);
        }
        out
    }

    /// What went on, and the messages on record.
    type Passed = (Vec<u8>, Vec<(String, Vec<u8>)>);

    /// What goes on of `bytes` in pieces of `size`, and what is recorded.
    fn pass(
        websocket: &mut WebSocket,
        from: Peer,
        bytes: &[u8],
        size: usize,
    ) -> Result<Passed, Broken> {
        let (mut out, mut records, mut open) = (Vec::new(), Vec::new(), Vec::new());
        let mut buffer = BytesMut::new();
        for piece in bytes.chunks(size) {
            buffer.extend_from_slice(piece);
            while let Some(steps) = websocket.read(from, &mut buffer, NOW)? {
                for step in steps {
                    match step {
                        Step::Send(_, bytes) => out.extend_from_slice(&bytes),
                        Step::Record(Event::Content(content)) => {
                            open.extend_from_slice(&content.data.concat());
                            let message = content.message.unwrap();
                            if message.ends {
                                records.push((message.kind.to_string(), std::mem::take(&mut open)));
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        Ok((out, records))
    }

    #[test]
    fn messages_pass_byte_for_byte_and_are_recorded_one_by_one() {
        let key = Some([0x37, 0xFA, 0x21, 0x3D]);
        let large = vec![b'x'; 70_000];
        for (from, key) in [(Peer::Client, key), (Peer::Upstream, None)] {
            let frames = [
                frame(Opcode::Text, true, b"Hello", key),
                frame(Opcode::Text, false, b"Hel", key),
                frame(Opcode::Ping, true, b"are you there", key),
                frame(Opcode::Continuation, false, b"", key),
                frame(Opcode::Continuation, true, b"lo", key),
                frame(Opcode::Binary, true, &large, key),
                frame(Opcode::Text, true, b"", key),
                frame(Opcode::Close, true, b"\x03\xE8bye", key),
            ]
            .concat();
            for size in [1, 2, 3, 7, 1_000, 1 << 20] {
                let (out, records) =
                    pass(&mut websocket(Arc::default()), from, &frames, size).unwrap();
                assert_eq!(out, frames, "{size}");
                let expected = [
                    ("text", &b"Hello"[..]),
                    ("text", b"Hello"),
                    ("binary", &large),
                    ("text", b""),
                    ("close", b"\x03\xE8bye"),
                ];
                let expected = expected.map(|(kind, content)| (kind.to_owned(), content.to_vec()));
                assert_eq!(records, expected, "{size}");
            }
        }
    }

    #[test]
    fn what_the_server_says_is_masked_message_by_message() {
        let secret = br#"{"a": {"token": "hunter2"}}"#;
        let masked = br#"{"a": {"token": "[redacted]"}}"#;
        let (first, second) = secret.split_at(19);
        let frames = [
            frame(Opcode::Text, true, secret, None),
            frame(Opcode::Text, false, first, None),
            frame(Opcode::Ping, true, b"", None),
            frame(Opcode::Continuation, true, second, None),
        ]
        .concat();
        for size in [1, 5, 1_000] {
            let mut websocket = websocket(plan(false));
            let (out, records) = pass(&mut websocket, Peer::Upstream, &frames, size).unwrap();
            let expected = [
                frame(Opcode::Text, true, masked, None),
                frame(Opcode::Ping, true, b"", None),
                frame(Opcode::Text, true, masked, None),
            ];
            assert_eq!(out, expected.concat(), "{size}");
            assert_eq!(
                records,
                [
                    ("text".to_owned(), masked.to_vec()),
                    ("text".to_owned(), masked.to_vec())
                ]
            );
        }
        // A large one goes on in parts, none of which is one of the server's.
        let large = format!(
            r#"{{"pad": "{}", "token": "hunter2"}}"#,
            "x".repeat(100_000)
        );
        let frames = frame(Opcode::Text, true, large.as_bytes(), None);
        let (out, records) =
            pass(&mut websocket(plan(false)), Peer::Upstream, &frames, 10_000).unwrap();
        assert!(!out.windows(7).any(|window| window == b"hunter2"));
        let (again, seen) =
            pass(&mut websocket(Arc::default()), Peer::Upstream, &out, 999).unwrap();
        assert_eq!((again, seen), (out, records));
        let secret = frame(Opcode::Binary, true, b"\x00\x01\x02", None);
        let refused = pass(&mut websocket(plan(true)), Peer::Upstream, &secret, 9);
        assert!(matches!(refused, Err(Broken::Unmaskable(_))));
    }

    #[test]
    fn what_is_no_websocket_is_refused() {
        let key = Some([1, 2, 3, 4]);
        for (frames, from) in [
            (vec![0xC1, 0x80, 1, 2, 3, 4], Peer::Client),
            (vec![0x83, 0x80, 1, 2, 3, 4], Peer::Client),
            (frame(Opcode::Text, true, b"x", None), Peer::Client),
            (frame(Opcode::Text, true, b"x", key), Peer::Upstream),
            (frame(Opcode::Continuation, true, b"x", key), Peer::Client),
            (
                [
                    frame(Opcode::Text, false, b"x", key),
                    frame(Opcode::Text, true, b"x", key),
                ]
                .concat(),
                Peer::Client,
            ),
            (frame(Opcode::Ping, false, b"x", key), Peer::Client),
            (frame(Opcode::Ping, true, &[0; 126], key), Peer::Client),
            (vec![0x81, 126, 0, 125], Peer::Upstream),
            (
                vec![0x81, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
                Peer::Upstream,
            ),
            (vec![0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], Peer::Upstream),
        ] {
            for size in [1, 100] {
                let refused = pass(&mut websocket(Arc::default()), from, &frames, size);
                assert!(matches!(refused, Err(Broken::Malformed(_))), "{frames:?}");
            }
        }
    }
}
