//! The state machine between scripts of both sides, with another implementation (hickory) as the oracle of what
//! is on the wire.

use std::{net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{
            A, AAAA, CNAME, HTTPS, MX, NULL, SOA, SVCB, TXT,
            opt::{EdnsCode, EdnsOption},
            svcb::{Alpn, EchConfigList, IpHint, Mandatory, SvcParamKey, SvcParamValue},
        },
    },
};
use proptest::prelude::*;

use super::{Dns, Transcript, describe, is_query, wire};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Resolved, Step},
    operation::{Effects, Operation},
    record::{Event, ResponseRecord, ResponseStatus, Timestamp},
    ruling::{Cause, Permit, Refusal, Ruling},
};

const NOW: Timestamp = Timestamp(1);

/// What came of a script.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    proposed: Vec<Operation>,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
    events: Vec<Event>,
    resolved: Vec<Resolved>,
    finished: Vec<Peer>,
    closing: Option<Closing>,
}

impl Outcome {
    /// The messages that reached the client.
    fn answers(&self) -> Vec<Message> {
        frames(&self.to_client)
            .iter()
            .map(|message| Message::from_vec(message).unwrap())
            .collect()
    }

    fn notices(&self) -> Vec<&str> {
        let notices = self.events.iter().filter_map(|event| match event {
            Event::Event(notice) => Some(&*notice.name),
            _ => None,
        });
        notices.collect()
    }

    fn responses(&self) -> Vec<&ResponseRecord> {
        let responses = self.events.iter().filter_map(|event| match event {
            Event::Response(response) => Some(response),
            _ => None,
        });
        responses.collect()
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        found.push(bytes[2..2 + length].to_vec());
        bytes = &bytes[2 + length..];
    }
    found
}

fn refusal(cause: Cause) -> Refusal {
    Refusal {
        cause,
        rule: "no-tunnels".into(),
        reason: "names aren't for data".into(),
        approval: None,
    }
}

/// Denies what asks for something in `denied.example`.
fn ruling(operation: &Operation) -> Ruling {
    if String::from_utf8_lossy(&operation.content)
        .to_ascii_lowercase()
        .contains("denied.example.")
    {
        return Ruling::Refuse(refusal(Cause::Denied));
    }
    Ruling::Permit(Permit::unjudged(Arc::default()))
}

fn take(decoder: &mut Dns, outcome: &mut Outcome) {
    for _ in 0..100_000 {
        match decoder.poll() {
            Step::Wait => return,
            Step::Propose(operation) => {
                let ruling = ruling(&operation);
                outcome.proposed.push(operation);
                decoder.rule(ruling, NOW);
            }
            Step::Send(Peer::Client, bytes) => outcome.to_client.extend_from_slice(&bytes),
            Step::Send(Peer::Upstream, bytes) => outcome.to_upstream.extend_from_slice(&bytes),
            Step::Record(event) => outcome.events.push(event),
            Step::Resolved(resolved) => outcome.resolved.push(resolved),
            Step::Finish(peer) => outcome.finished.push(peer),
            Step::Close(closing) => {
                assert_eq!(outcome.closing.replace(closing), None);
            }
            step => panic!("{step:?}"),
        }
    }
    panic!("the decoder is spinning");
}

/// Plays `script` in pieces of `piece` bytes.
fn play(script: &[(Peer, Vec<u8>)], piece: usize) -> Outcome {
    let (mut decoder, mut outcome) = (Dns::default(), Outcome::default());
    for (peer, bytes) in script {
        for part in bytes.chunks(piece) {
            decoder.receive(*peer, &mut BytesMut::from(part), NOW);
            take(&mut decoder, &mut outcome);
        }
    }
    outcome
}

/// Plays `script` whole, and split at every byte: it's the same.
fn converse(script: &[(Peer, Vec<u8>)]) -> Outcome {
    let whole = play(script, usize::MAX);
    assert_eq!(whole, play(script, 1), "byte by byte");
    whole
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(id: u16, text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), kind));
    message
}

fn with_edns(mut message: Message) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    message.set_edns(edns);
    message
}

fn answer(to: &Message, records: Vec<Record>) -> Message {
    let mut message = Message::response(to.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_queries(to.queries.iter().cloned());
    message.add_answers(records);
    message
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 300, data)
}

fn address(owner: &str, text: &str) -> Record {
    let data = match IpAddr::from_str(text).unwrap() {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    record(owner, data)
}

fn alias(owner: &str, target: &str) -> Record {
    record(owner, RData::CNAME(CNAME(name(target))))
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

fn says(peer: Peer, messages: &[Vec<u8>]) -> (Peer, Vec<u8>) {
    let framed = messages
        .iter()
        .map(|message| wire::framed(message).unwrap());
    (peer, framed.flatten().collect())
}

fn asks(messages: &[&Message]) -> (Peer, Vec<u8>) {
    let messages: Vec<_> = messages.iter().map(|message| bytes(message)).collect();
    says(Peer::Client, &messages)
}

fn answers(messages: &[&Message]) -> (Peer, Vec<u8>) {
    let messages: Vec<_> = messages.iter().map(|message| bytes(message)).collect();
    says(Peer::Upstream, &messages)
}

#[test]
fn a_question_goes_on_as_it_came_and_its_answer_is_learned_from() {
    let asked = with_edns(question(7, "WwW.Example.com.", RecordType::A));
    let said = answer(
        &asked,
        vec![
            alias("www.example.com.", "cdn.Example.net."),
            alias("cdn.example.net.", "edge.example.org."),
            address("edge.example.org.", "192.0.2.1"),
            address("EDGE.example.org.", "192.0.2.2"),
            address("other.example.org.", "198.51.100.1"),
        ],
    );
    let script = [asks(&[&asked]), answers(&[&said])];
    let outcome = converse(&script);
    assert_eq!(outcome.to_upstream, script[0].1);
    assert_eq!(outcome.to_client, script[1].1);
    let [operation] = outcome.proposed.as_slice() else {
        panic!("{:?}", outcome.proposed);
    };
    assert_eq!(operation.content, "A WwW.Example.com.");
    assert_eq!(operation.description.effects, Effects::READ);
    assert_eq!(*operation.description.actions, [Box::from("A")]);
    assert_eq!(&*operation.description.resources[0].name, "www.example.com");
    assert_eq!(
        operation.options,
        [
            ("flags".into(), "recursion desired".into()),
            ("edns".into(), "answers of 1232 bytes".into()),
        ]
    );
    assert_eq!(
        outcome.resolved,
        [Resolved {
            name: "www.example.com".into(),
            aliases: vec!["cdn.example.net".into(), "edge.example.org".into()],
            addresses: vec![
                (IpAddr::from([192, 0, 2, 1]), Duration::from_secs(300)),
                (IpAddr::from([192, 0, 2, 2]), Duration::from_secs(300)),
            ],
        }]
    );
    let [response] = outcome.responses()[..] else {
        panic!("{:?}", outcome.events);
    };
    assert_eq!(response.status, ResponseStatus::Complete("NOERROR".into()));
    assert_eq!((response.number, response.rows), (1, 5));
    let transcript = Transcript::read(&response.data[0]);
    assert_eq!(
        transcript.answers[0],
        "www.example.com. 300 CNAME cdn.Example.net."
    );
    assert_eq!(transcript.answers[2], "edge.example.org. 300 A 192.0.2.1");
}

#[test]
fn answers_may_come_in_any_order_and_find_their_question() {
    let one = question(1, "one.example.", RecordType::A);
    let two = question(1, "two.example.", RecordType::A);
    let three = question(3, "one.example.", RecordType::AAAA);
    let said = [
        answer(&three, vec![address("one.example.", "2001:db8::1")]),
        answer(&two, vec![]),
        answer(&one, vec![address("one.example.", "192.0.2.1")]),
    ];
    let outcome = converse(&[asks(&[&one, &two, &three]), answers(&said.each_ref())]);
    let numbers: Vec<_> = outcome
        .responses()
        .iter()
        .map(|response| response.number)
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(outcome.to_client, answers(&said.each_ref()).1);
    assert_eq!(outcome.resolved.len(), 2);
}

#[test]
fn what_answers_nothing_is_dropped_and_on_record() {
    let asked = question(7, "ExAmple.com.", RecordType::A);
    let real = answer(&asked, vec![address("example.com.", "192.0.2.1")]);
    let mut other_id = real.clone();
    other_id.metadata.id = 8;
    let mut other_name = real.clone();
    other_name.queries = vec![Question::query(name("example.net."), RecordType::A)];
    let mut other_case = real.clone();
    other_case.queries = vec![Question::query(name("example.com."), RecordType::A)];
    let mut other_type = real.clone();
    other_type.queries = vec![Question::query(name("ExAmple.com."), RecordType::AAAA)];
    let mut no_answer = real.clone();
    no_answer.metadata.message_type = MessageType::Query;
    let mut no_question = real.clone();
    no_question.queries.clear();
    let forged = [
        other_id,
        other_name,
        other_case,
        other_type,
        no_answer,
        no_question,
    ];
    let outcome = converse(&[
        asks(&[&asked]),
        answers(&forged.each_ref()),
        says(Peer::Upstream, &[vec![0; 3]]),
        answers(&[&real, &real]),
    ]);
    assert_eq!(outcome.to_client, answers(&[&real]).1);
    assert_eq!(outcome.notices(), ["dns_dropped"; 8]);
}

#[test]
fn case_counts_only_where_the_client_mixes_it() {
    let asked = question(7, "example.com.", RecordType::A);
    let mut said = answer(&asked, vec![]);
    said.queries = vec![Question::query(name("EXAMPLE.com."), RecordType::A)];
    let outcome = converse(&[asks(&[&asked]), answers(&[&said])]);
    assert_eq!(outcome.answers().len(), 1);
}

#[test]
fn a_denied_name_does_not_exist_and_the_client_is_told_why() {
    let mut asked = with_edns(question(9, "Data.DENIED.example.", RecordType::TXT));
    asked.metadata.checking_disabled = true;
    let plain = question(10, "denied.example.", RecordType::A);
    let outcome = converse(&[asks(&[&asked, &plain])]);
    assert_eq!(outcome.to_upstream, b"");
    let [refused, without] = &outcome.answers()[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(refused.metadata.id, 9);
    assert_eq!(refused.metadata.response_code, ResponseCode::NXDomain);
    assert!(refused.metadata.recursion_desired && refused.metadata.recursion_available);
    assert!(refused.metadata.checking_disabled && !refused.metadata.authoritative);
    assert_eq!(refused.queries[0].name.to_ascii(), "Data.DENIED.example.");
    let edns = refused.edns.as_ref().unwrap();
    let Some(EdnsOption::Unknown(_, content)) = edns.option(EdnsCode::from(15)) else {
        panic!("{edns:?}");
    };
    assert_eq!(content[..2], [0, 15]);
    assert_eq!(
        String::from_utf8_lossy(&content[2..]),
        "interceptor: denied by rule \"no-tunnels\": names aren't for data"
    );
    assert!(without.edns.is_none());
    assert_eq!(without.metadata.response_code, ResponseCode::NXDomain);
    let statuses: Vec<_> = outcome
        .responses()
        .iter()
        .map(|r| r.status.clone())
        .collect();
    assert_eq!(statuses, [ResponseStatus::Refused, ResponseStatus::Refused]);
}

#[test]
fn a_denied_type_leaves_the_name_its_address() {
    for (kind, expected) in [
        (RecordType::A, ResponseCode::NXDomain),
        (RecordType::TXT, ResponseCode::NXDomain),
        (RecordType::AAAA, ResponseCode::NoError),
        (RecordType::HTTPS, ResponseCode::NoError),
    ] {
        let outcome = converse(&[asks(&[&question(7, "denied.example.", kind)])]);
        let [answer] = &outcome.answers()[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!(answer.metadata.response_code, expected, "{kind}");
        assert!(answer.answers.is_empty());
    }
    let mut update = question(7, "denied.example.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    let outcome = converse(&[asks(&[&update])]);
    assert_eq!(
        outcome.answers()[0].metadata.response_code,
        ResponseCode::Refused
    );
}

#[test]
fn no_refusal_is_too_long_for_a_datagram() {
    let longest = format!("{0}.{0}.{0}.{1}.", "a".repeat(63), "b".repeat(61));
    let asked = bytes(&with_edns(question(1, &longest, RecordType::A)));
    let query = super::query::Query::read(&asked).unwrap();
    let refusal = Refusal {
        reason: "é".repeat(4_000).into(),
        ..refusal(Cause::Denied)
    };
    let answer = super::refuse::Asked::new(&query).refused(&refusal);
    assert!(answer.len() <= 512, "{}", answer.len());
    assert!(Message::from_vec(&answer).unwrap().edns.is_some());
}

#[test]
fn what_is_not_plainly_a_question_is_refused() {
    let plain = bytes(&question(5, "www.example.com.", RecordType::A));
    let edns = |data: &[u8], ttl: [u8; 4]| {
        let mut message = plain.clone();
        message[11] = 1;
        message.extend([0, 0, 41, 4, 208]);
        message.extend(ttl);
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
        message
    };
    let changed = |at: usize, byte: u8| {
        let mut message = plain.clone();
        message[at] = byte;
        message
    };
    let followed = |count: usize, more: &[u8]| {
        let mut message = changed(count, 1);
        message.extend(more);
        message
    };
    let a_record = [0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4];
    let pointing = [&plain[..12], &[1, b'a', 0xC0, 12, 0, 1, 0, 1]].concat();
    let twice = [&plain[..], &plain[12..]].concat();
    let mut two_questions = twice.clone();
    two_questions[5] = 2;
    let none = [0, 0, 0, 0];
    for (message, why) in [
        (two_questions, "exactly one question"),
        (changed(5, 0), "exactly one question"),
        (twice, "bytes follow its end"),
        ([&plain[..], b"x"].concat(), "bytes follow its end"),
        (
            followed(7, &a_record),
            "records that a question doesn't have",
        ),
        (
            followed(9, &a_record),
            "records that a question doesn't have",
        ),
        (
            followed(11, &a_record),
            "records that a question doesn't have",
        ),
        (plain[..plain.len() - 1].to_vec(), "question can't be read"),
        (pointing, "question can't be read"),
        (changed(3, 0x40), "bits of its header"),
        (changed(3, 0x05), "bits of its header"),
        (changed(3, 0x80), "bits of its header"),
        (changed(2, 0x04), "bits of its header"),
        (changed(2, 0x02), "bits of its header"),
        (edns(&[], [1, 0, 0, 0]), "EDNS record can't be read"),
        (edns(&[], [0, 1, 0, 0]), "EDNS record can't be read"),
        (edns(&[], [0, 0, 0x20, 0]), "flags that aren't understood"),
        (edns(&[0, 10, 0, 9], none), "options can't be read"),
        (edns(&[0, 10, 0], none), "options can't be read"),
        (
            edns(&[0, 10, 0, 3, 1, 2, 3], none),
            "holds what doesn't belong",
        ),
        (
            edns(&[0, 12, 0, 2, 0, 1], none),
            "holds what doesn't belong",
        ),
        (edns(&[0, 3, 0, 1, 0], none), "holds what doesn't belong"),
        (
            edns(&[0, 8, 0, 5, 0, 1, 7, 0, 0xFF], none),
            "holds what doesn't belong",
        ),
        (
            edns(&[0, 8, 0, 6, 0, 1, 8, 0, 1, 2], none),
            "holds what doesn't belong",
        ),
        (edns(&[0, 16, 0, 2, 1, 1], none), "isn't understood"),
        (edns(&[0xFD, 0xE9, 0, 1, 1], none), "isn't understood"),
        (edns(&[0, 12, 0, 0, 0, 12, 0, 0], none), "is there twice"),
    ] {
        let outcome = converse(&[says(Peer::Client, std::slice::from_ref(&message))]);
        assert_eq!(outcome.to_upstream, b"", "{why}");
        assert!(outcome.proposed.is_empty());
        let [refused] = &outcome.answers()[..] else {
            panic!("{why}: {outcome:?}");
        };
        assert_eq!(refused.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(refused.metadata.id, 5);
        let [Event::Event(notice)] = &outcome.events[..] else {
            panic!("{outcome:?}");
        };
        assert_eq!(&*notice.name, "dns_refused");
        assert!(notice.detail["reason"].contains(why), "{why}: {notice:?}");
    }
}

#[test]
fn what_resolvers_say_beside_their_question_is_understood() {
    let mut asked = bytes(&question(5, "www.example.com.", RecordType::HTTPS));
    asked[3] |= 0x30;
    asked[11] = 1;
    let options = [
        &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8][..],
        &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2],
        &[0, 8 + 3, 0, 0],
        &[0, 12, 0, 4, 0, 0, 0, 0],
    ]
    .concat();
    asked.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0]);
    asked.extend((options.len() as u16).to_be_bytes());
    asked.extend(options);
    let outcome = converse(&[says(Peer::Client, &[asked.clone()])]);
    assert_eq!(frames(&outcome.to_upstream), [asked]);
    let operation = &outcome.proposed[0];
    let options: Vec<_> = operation
        .options
        .iter()
        .map(|(a, b)| format!("{a}: {b}"))
        .collect();
    assert_eq!(
        options,
        [
            "flags: recursion desired, authentic data, checking disabled",
            "edns: answers of 1232 bytes, DNSSEC",
            "cookie: 0102030405060708",
            "client-subnet: 00011800c00002",
            "tcp-keepalive: ",
            "padding: 4 zeros",
        ]
    );
    let attributes = &operation.description.attributes;
    assert_eq!(
        &*attributes["dns.options"],
        "cookie,client-subnet,tcp-keepalive,padding"
    );
}

#[test]
fn questions_are_described_with_what_tells_data_from_names() {
    let operation = describe::example("txt a.MZXW6YTBOI4DGNBV.t.example.co.uk").unwrap();
    assert_eq!(operation.content, "TXT a.MZXW6YTBOI4DGNBV.t.example.co.uk.");
    let attributes: Vec<_> = operation
        .description
        .attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        attributes,
        [
            "dns.class=IN",
            "dns.domain=example.co.uk",
            "dns.entropy=3.95",
            "dns.label_bytes=16",
            "dns.labels=6",
            "dns.name=a.mzxw6ytboi4dgnbv.t.example.co.uk",
            "dns.name_bytes=34",
            "dns.type=TXT",
        ]
    );
    for (statement, action, effects, content) in [
        (
            "AXFR example.com",
            "AXFR",
            Effects::READ | Effects::EXPORT,
            "AXFR example.com.",
        ),
        ("ANY .", "ANY", Effects::READ, "ANY ."),
        (
            "TYPE65280 example.com.",
            "TYPE65280",
            Effects::READ,
            "TYPE65280 example.com.",
        ),
        (
            "TXT CH version.bind",
            "TXT",
            Effects::READ,
            "TXT CH version.bind.",
        ),
        (
            "A a\\046b\\000.example",
            "A",
            Effects::READ,
            "A a\\046b\\000.example.",
        ),
    ] {
        let operation = describe::example(statement).unwrap();
        assert_eq!(
            *operation.description.actions,
            [Box::from(action)],
            "{statement}"
        );
        assert_eq!(operation.description.effects, effects, "{statement}");
        assert_eq!(operation.content, content, "{statement}");
    }
    for statement in [
        "",
        "A",
        "FOO example.com",
        "A a..b",
        "A XX example.com",
        "A IN b c",
    ] {
        assert!(describe::example(statement).is_none(), "{statement}");
    }
}

#[test]
fn updates_write_and_what_else_there_is_is_unclassified() {
    let mut update = Message::new(3, MessageType::Query, OpCode::Update);
    update.add_query(Question::query(name("example.com."), RecordType::SOA));
    update.add_authority(address("new.example.com.", "192.0.2.1"));
    let mut notify = Message::new(4, MessageType::Query, OpCode::Notify);
    notify.metadata.authoritative = true;
    notify.add_query(Question::query(name("example.com."), RecordType::SOA));
    let mut status = notify.clone();
    status.metadata.op_code = OpCode::Status;
    let outcome = converse(&[asks(&[&update, &notify, &status])]);
    assert_eq!(outcome.to_upstream, asks(&[&update, &notify]).1);
    let [writes, tells] = &outcome.proposed[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(writes.description.effects, Effects::WRITE);
    assert_eq!(
        writes.content,
        "UPDATE SOA example.com.\nupdate new.example.com. 300 A 192.0.2.1"
    );
    assert_eq!(&*writes.options[1].0, "message");
    let names: Vec<_> = writes
        .description
        .resources
        .iter()
        .map(|r| &*r.name)
        .collect();
    assert_eq!(names, ["example.com", "new.example.com"]);
    assert_eq!(tells.description.effects, Effects::UNCLASSIFIED);
    assert_eq!(
        outcome.answers()[0].metadata.response_code,
        ResponseCode::NotImp
    );
}

/// Parameters with keys for Encrypted ClientHello among them.
fn service(target: &str) -> SVCB {
    SVCB::new(
        1,
        name(target),
        vec![
            (
                SvcParamKey::Mandatory,
                SvcParamValue::Mandatory(Mandatory(vec![
                    SvcParamKey::Alpn,
                    SvcParamKey::EchConfigList,
                ])),
            ),
            (
                SvcParamKey::Alpn,
                SvcParamValue::Alpn(Alpn(vec!["h2".into(), "h3".into()])),
            ),
            (
                SvcParamKey::Ipv4Hint,
                SvcParamValue::Ipv4Hint(IpHint(vec![A::new(192, 0, 2, 9)])),
            ),
            (
                SvcParamKey::EchConfigList,
                SvcParamValue::EchConfigList(EchConfigList(vec![0xFE; 71])),
            ),
            (
                SvcParamKey::Ipv6Hint,
                SvcParamValue::Ipv6Hint(IpHint(vec![AAAA::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 9)])),
            ),
        ],
    )
}

fn without_ech(mut service: SVCB) -> SVCB {
    service
        .svc_params
        .retain(|(key, _)| *key != SvcParamKey::EchConfigList);
    for (_, value) in &mut service.svc_params {
        if let SvcParamValue::Mandatory(Mandatory(keys)) = value {
            keys.retain(|key| *key != SvcParamKey::EchConfigList);
        }
    }
    service
}

#[test]
fn keys_for_encrypted_hellos_are_taken_out_and_nothing_else() {
    let asked = with_edns(question(7, "www.example.com.", RecordType::HTTPS));
    let mut said = with_edns(answer(
        &asked,
        vec![
            alias("www.example.com.", "svc.example.net."),
            record("svc.example.net.", RData::HTTPS(HTTPS(service(".")))),
            record(
                "svc.example.net.",
                RData::HTTPS(HTTPS(service("alt.example.net."))),
            ),
            record(
                "last.example.net.",
                RData::MX(MX::new(3, name("svc.example.net."))),
            ),
        ],
    ));
    said.add_authority(record(
        "example.net.",
        RData::TXT(TXT::new(vec!["x".into()])),
    ));
    said.add_additional(record("more.example.net.", RData::SVCB(service("."))));
    said.add_additional(address("alt.example.net.", "192.0.2.10"));
    said.add_additional(address("more.example.net.", "192.0.2.11"));
    let mut expected = said.clone();
    for place in [1, 2] {
        let RData::HTTPS(HTTPS(service)) = said.answers[place].data.clone() else {
            panic!();
        };
        expected.answers[place].data = RData::HTTPS(HTTPS(without_ech(service)));
    }
    expected.additionals[0].data = RData::SVCB(without_ech(service(".")));
    let outcome = converse(&[asks(&[&asked]), answers(&[&said])]);
    assert_eq!(outcome.answers(), [expected]);
    assert_eq!(
        outcome.to_client.len() + 3 * (4 + 71 + 2),
        answers(&[&said]).1.len(),
        "nothing but that"
    );
    assert_eq!(*outcome.responses()[0].masked, [Box::from("ech")]);
    let [resolved] = &outcome.resolved[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(resolved.aliases, ["svc.example.net".into()]);
    let addresses: Vec<_> = resolved
        .addresses
        .iter()
        .map(|(ip, _)| ip.to_string())
        .collect();
    assert_eq!(addresses, ["192.0.2.9", "2001:db8::9", "192.0.2.10"]);
    let shown = &Transcript::read(&outcome.responses()[0].data[0]).answers[1];
    assert_eq!(
        shown,
        "svc.example.net. 300 HTTPS 1 . mandatory=alpn alpn=h2,h3 ipv4hint=192.0.2.9 ipv6hint=2001:db8::9"
    );
}

#[test]
fn nobody_gives_his_address_to_a_name_of_others() {
    let victim = "victim.example.";
    let evil = "evil.example.";
    let target = || record(evil, RData::HTTPS(HTTPS(without_ech(service(victim)))));
    for (answers_given, additional, expected) in [
        // A hint, under another's name: it counts for who gives it.
        (
            vec![target()],
            vec![],
            Some(vec!["192.0.2.9", "2001:db8::9"]),
        ),
        // An alias and an address, or two aliases: nobody knows whose the address is.
        (
            vec![alias(evil, victim), address(evil, "192.0.2.66")],
            vec![],
            None,
        ),
        (
            vec![
                alias(evil, victim),
                alias(evil, "x.evil.example."),
                address("x.evil.example.", "192.0.2.66"),
            ],
            vec![],
            None,
        ),
        // In a circle.
        (
            vec![
                alias(evil, victim),
                alias(victim, evil),
                address(victim, "192.0.2.66"),
            ],
            vec![],
            None,
        ),
        // Beside the answer, without a service.
        (vec![], vec![address(evil, "192.0.2.66")], None),
        (
            vec![target()],
            vec![address(victim, "192.0.2.66")],
            Some(vec!["192.0.2.9", "2001:db8::9", "192.0.2.66"]),
        ),
    ] {
        let asked = question(7, evil, RecordType::HTTPS);
        let mut said = answer(&asked, answers_given);
        for record in additional {
            said.add_additional(record);
        }
        let outcome = converse(&[asks(&[&asked]), answers(&[&said])]);
        assert_eq!(outcome.to_client, answers(&[&said]).1);
        for resolved in &outcome.resolved {
            assert_eq!(&*resolved.name, "evil.example");
            assert!(resolved.aliases.is_empty(), "{resolved:?}");
        }
        let found = outcome.resolved.first().map(|resolved| {
            let addresses = resolved.addresses.iter();
            addresses.map(|(ip, _)| ip.to_string()).collect::<Vec<_>>()
        });
        let expected =
            expected.map(|ips: Vec<&str>| ips.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(found, expected, "{said:?}");
    }
}

#[test]
fn what_comes_with_an_error_is_not_learned() {
    let asked = question(7, "a.example.", RecordType::A);
    let mut said = answer(&asked, vec![address("a.example.", "192.0.2.1")]);
    said.metadata.response_code = ResponseCode::NXDomain;
    let outcome = converse(&[asks(&[&asked]), answers(&[&said])]);
    assert_eq!(outcome.resolved, []);
    assert_eq!(outcome.to_client, answers(&[&said]).1);
}

#[test]
fn a_few_addresses_of_very_many_are_learned() {
    let asked = question(7, "a.example.", RecordType::A);
    let records = (0..2_000_u32).map(|number| {
        let text = IpAddr::from(number.to_be_bytes()).to_string();
        address("a.example.", &text)
    });
    let said = answer(&asked, records.collect());
    let outcome = converse(&[asks(&[&asked]), answers(&[&said])]);
    assert_eq!(
        outcome.resolved[0].addresses.len(),
        crate::limits::DNS_ADDRESSES_MAX
    );
    assert_eq!(outcome.to_client, answers(&[&said]).1);
}

#[test]
fn nobody_is_sent_through_thousands_of_pointers() {
    // A ladder of pointers, each to the one before it, and a name at its foot.
    let ladder = |pointers: u16| {
        let mut message = b"\x01a\0".to_vec();
        let mut target = 0_u16;
        for _ in 0..pointers {
            let place = message.len();
            message.extend((0xC000 | target).to_be_bytes());
            target = u16::try_from(place).unwrap();
        }
        let mut name = wire::Reader::starting(&message, usize::from(target));
        name.name().map(std::borrow::Cow::into_owned)
    };
    assert_eq!(ladder(127), Some(b"\x01a\0".to_vec()));
    assert_eq!(ladder(128), None);
    assert_eq!(ladder(8_000), None);
}

#[test]
fn an_answer_without_such_keys_is_not_touched() {
    let asked = question(7, "www.example.com.", RecordType::HTTPS);
    let said = answer(
        &asked,
        vec![record(
            "www.example.com.",
            RData::HTTPS(HTTPS(without_ech(service(".")))),
        )],
    );
    let script = [asks(&[&asked]), answers(&[&said])];
    let outcome = converse(&script);
    assert_eq!(outcome.to_client, script[1].1);
    assert!(outcome.responses()[0].masked.is_empty());
}

#[test]
fn negative_truncated_and_failed_answers_go_through() {
    let asked = question(7, "no.example.", RecordType::A);
    for (code, truncated, status) in [
        (
            ResponseCode::NXDomain,
            false,
            ResponseStatus::Complete("NXDOMAIN".into()),
        ),
        (
            ResponseCode::NoError,
            true,
            ResponseStatus::Complete("NOERROR".into()),
        ),
        (
            ResponseCode::ServFail,
            false,
            ResponseStatus::Error {
                code: "SERVFAIL".into(),
                message: "".into(),
            },
        ),
    ] {
        let mut said = answer(&asked, vec![]);
        said.metadata.response_code = code;
        said.metadata.truncation = truncated;
        said.add_authority(record(
            "example.",
            RData::SOA(SOA::new(
                name("ns.example."),
                name("mail.example."),
                1,
                2,
                3,
                4,
                5,
            )),
        ));
        let script = [asks(&[&asked]), answers(&[&said])];
        let outcome = converse(&script);
        assert_eq!(outcome.to_client, script[1].1);
        assert_eq!(outcome.responses()[0].status, status);
        assert!(outcome.resolved.is_empty());
    }
}

#[test]
fn an_answer_that_was_cut_in_the_middle_still_says_so() {
    let asked = question(7, "www.example.", RecordType::A);
    let mut said = answer(&asked, vec![address("www.example.", "192.0.2.1")]);
    said.metadata.truncation = true;
    let mut cut = bytes(&said);
    cut.truncate(cut.len() - 3);
    let outcome = converse(&[asks(&[&asked]), says(Peer::Upstream, &[cut])]);
    let [answer] = &outcome.answers()[..] else {
        panic!("{outcome:?}");
    };
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    assert_eq!(answer.queries, asked.queries);
}

#[test]
fn an_answer_that_cannot_be_read_becomes_a_failure() {
    let asked = with_edns(question(7, "www.example.", RecordType::HTTPS));
    let broken = |data: Vec<u8>| {
        let data = RData::Unknown {
            code: RecordType::HTTPS,
            rdata: NULL::with(data),
        };
        bytes(&answer(&asked, vec![record("www.example.", data)]))
    };
    let mut cut = bytes(&answer(&asked, vec![address("www.example.", "192.0.2.1")]));
    cut.pop();
    let pointer = vec![0, 1, 0xC0, 12, 0, 5, 0, 1, 7];
    for message in [cut, broken(vec![0, 1, 0, 0, 5, 0, 9, 1]), broken(pointer)] {
        let outcome = converse(&[asks(&[&asked]), says(Peer::Upstream, &[message])]);
        assert_eq!(
            outcome.answers()[0].metadata.response_code,
            ResponseCode::ServFail
        );
        assert_eq!(outcome.notices(), ["dns_unreadable"]);
        assert!(outcome.resolved.is_empty());
    }
}

#[test]
fn a_transfer_takes_as_many_messages_as_it_needs() {
    let version = |serial| {
        let soa = SOA::new(
            name("ns.example."),
            name("mail.example."),
            serial,
            2,
            3,
            4,
            5,
        );
        record("example.", RData::SOA(soa))
    };
    let host = |n: u8| record("a.example.", RData::A(A::new(192, 0, 2, n)));
    for (kind, messages) in [
        (
            RecordType::AXFR,
            vec![vec![version(9)], vec![host(1)], vec![host(2), version(9)]],
        ),
        (RecordType::IXFR, vec![vec![version(9)]]),
        (
            RecordType::IXFR,
            vec![vec![version(9), host(1)], vec![version(9)]],
        ),
        (
            RecordType::IXFR,
            vec![
                vec![version(9), version(8), host(1)],
                vec![version(9)],
                vec![host(2), version(9)],
            ],
        ),
    ] {
        let asked = question(7, "example.", kind);
        let mut said: Vec<Message> = messages
            .into_iter()
            .map(|records| answer(&asked, records))
            .collect();
        for message in said.iter_mut().skip(1) {
            message.queries.clear();
        }
        let late = answer(&asked, vec![host(3)]);
        let count = said.len();
        let all: Vec<&Message> = said.iter().chain([&late]).collect();
        let outcome = converse(&[asks(&[&asked]), answers(&all)]);
        assert_eq!(outcome.answers().len(), count, "{kind}");
        assert_eq!(outcome.notices(), ["dns_dropped"]);
        let statuses: Vec<_> = outcome
            .responses()
            .iter()
            .map(|r| r.status.clone())
            .collect();
        let (last, before) = statuses.split_last().unwrap();
        assert_eq!(*last, ResponseStatus::Complete("NOERROR".into()));
        assert!(
            before
                .iter()
                .all(|status| *status == ResponseStatus::Continues)
        );
    }
}

#[test]
fn whoever_cannot_be_served_is_told_so() {
    for (failure, text) in [
        (
            Failure::Unreachable("no route".into()),
            "interceptor: unreachable: no route",
        ),
        (
            Failure::Unrecorded,
            "interceptor: the journal takes no records",
        ),
    ] {
        let (mut decoder, mut outcome) = (Dns::default(), Outcome::default());
        let asked = with_edns(question(7, "www.example.", RecordType::A));
        decoder.receive(Peer::Client, &mut BytesMut::from(&*asks(&[&asked]).1), NOW);
        assert!(matches!(decoder.poll(), Step::Propose(_)));
        decoder.fail(&failure);
        take(&mut decoder, &mut outcome);
        let answer = &outcome.answers()[0];
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        let edns = answer.edns.as_ref().unwrap();
        let Some(EdnsOption::Unknown(_, content)) = edns.option(EdnsCode::from(15)) else {
            panic!("{edns:?}");
        };
        assert_eq!(String::from_utf8_lossy(&content[2..]), text);
        assert!(matches!(outcome.closing, Some(Closing::Refused(_))));
    }
}

#[test]
fn both_ends_are_passed_on() {
    let asked = question(7, "www.example.", RecordType::A);
    let said = answer(&asked, vec![]);
    let (mut decoder, mut outcome) = (Dns::default(), Outcome::default());
    let mut turn = |decoder: &mut Dns, peer, bytes: Option<Vec<u8>>| {
        match bytes {
            Some(bytes) => decoder.receive(peer, &mut BytesMut::from(&*bytes), NOW),
            None => decoder.finish(peer),
        }
        take(decoder, &mut outcome);
        (outcome.finished.clone(), outcome.closing.clone())
    };
    turn(&mut decoder, Peer::Client, Some(asks(&[&asked, &asked]).1));
    assert_eq!(
        turn(&mut decoder, Peer::Client, None),
        (vec![Peer::Upstream], None)
    );
    turn(&mut decoder, Peer::Upstream, Some(answers(&[&said]).1));
    let (_, closing) = turn(&mut decoder, Peer::Upstream, None);
    assert_eq!(closing, Some(Closing::Finished));
    let statuses: Vec<_> = outcome
        .responses()
        .iter()
        .map(|r| r.status.clone())
        .collect();
    assert_eq!(
        statuses,
        [
            ResponseStatus::Complete("NOERROR".into()),
            ResponseStatus::Interrupted
        ]
    );
}

#[test]
fn questions_over_tcp_are_known_by_their_first_bytes() {
    for text in [".", "example.com.", "WWW.example.com."] {
        let framed = asks(&[&with_edns(question(7, text, RecordType::A))]).1;
        let first = (0..=framed.len())
            .find_map(|end| is_query(&framed[..end]))
            .unwrap();
        assert!(first, "{text}");
        for end in 0..framed.len() {
            assert_ne!(
                is_query(&framed[..end]),
                Some(false),
                "{end} bytes of {text}"
            );
        }
    }
    let long = asks(&[&question(7, &"a.".repeat(126), RecordType::A)]).1;
    assert_eq!(is_query(&long), Some(true));
    for bytes in [
        // SOCKS 5 and 4, an answer, two questions, a question of no bytes.
        &b"\x05\x01\0"[..],
        b"\x04\x01\0P",
        b"\0\x20\0\x07\x81\0\0\x01\0\0\0\0\0\0\x03",
        b"\0\x20\0\x07\x01\0\0\x02",
        b"\0\x10\0\x07\x01\0\0\x01\0\0\0\0\0\0\0",
        b"\0\x20\0\x07\x01\0\0\x01\0\0\0\0\0\0\xC0",
    ] {
        assert_eq!(is_query(bytes), Some(false), "{bytes:?}");
    }
}

/// A message that is one, as the server or the client of some other implementation writes it.
fn some_message() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::sample::select(vec!["a.example.", "B.example.", "denied.example.", "."]);
    let kind = prop::sample::select(vec![
        RecordType::A,
        RecordType::HTTPS,
        RecordType::AXFR,
        RecordType::TXT,
    ]);
    (0..3_u16, text, kind, any::<bool>(), any::<bool>()).prop_map(|(id, text, kind, edns, said)| {
        let mut message = question(id, text, kind);
        if edns {
            message = with_edns(message);
        }
        if said {
            message = answer(
                &message,
                vec![
                    record(text, RData::HTTPS(HTTPS(service("b.example.")))),
                    alias(text, "c.example."),
                    address("c.example.", "192.0.2.1"),
                ],
            );
        }
        bytes(&message)
    })
}

/// Records of an answer whose names are compressed against each other, some with keys for encrypted hellos.
fn some_record() -> impl Strategy<Value = Record> {
    let text = || {
        prop::sample::select(vec![
            "a.example.",
            "b.a.example.",
            "c.b.a.example.",
            "example.",
            "other.test.",
            ".",
        ])
    };
    (text(), text(), 0..10_u8).prop_map(|(owner, target, kind)| {
        let data = match kind {
            0 => RData::HTTPS(HTTPS(service(target))),
            1 => RData::SVCB(service(target)),
            2 => RData::HTTPS(HTTPS(without_ech(service(target)))),
            3 => RData::CNAME(CNAME(name(target))),
            4 => RData::MX(MX::new(1, name(target))),
            5 => RData::SOA(SOA::new(name(target), name(owner), 1, 2, 3, 4, 5)),
            6 => RData::TXT(TXT::new(vec!["\u{c0}\u{c}x".into()])),
            7 => RData::NULL(NULL::with(vec![0xC0, 0x0C])),
            8 => RData::AAAA(AAAA::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 1)),
            _ => RData::A(A::new(192, 0, 2, 1)),
        };
        record(owner, data)
    })
}

/// The same with a few bytes changed, or nothing of the kind.
fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let changed =
        (some_message(), prop::collection::vec(change, 0..4)).prop_map(|(mut message, changes)| {
            for (at, byte) in changes {
                let at = at.index(message.len());
                message[at] = byte;
            }
            message
        });
    prop_oneof![3 => changed, 1 => prop::collection::vec(any::<u8>(), 0..80)]
}

fn peer() -> impl Strategy<Value = Peer> {
    prop::sample::select(vec![Peer::Client, Peer::Upstream])
}

proptest! {
    #[test]
    fn nothing_panics_and_no_border_of_pieces_matters(
        script in prop::collection::vec((peer(), some_bytes()), 1..8),
    ) {
        let script: Vec<_> = script.into_iter().map(|(peer, bytes)| says(peer, &[bytes])).collect();
        converse(&script);
    }

    #[test]
    fn what_goes_on_is_what_was_asked_and_what_comes_back_can_be_read(
        script in prop::collection::vec((peer(), some_bytes()), 1..8),
    ) {
        let framed: Vec<_> = script.iter().map(|(peer, bytes)| says(*peer, std::slice::from_ref(bytes))).collect();
        let outcome = play(&framed, usize::MAX);
        let said: Vec<_> = script.iter().filter(|(peer, _)| *peer == Peer::Client).collect();
        for sent in frames(&outcome.to_upstream) {
            prop_assert!(said.iter().any(|(_, bytes)| *bytes == sent));
        }
        for answer in frames(&outcome.to_client) {
            let header = wire::Header::read(&answer).unwrap();
            prop_assert!(header.has(wire::flag::RESPONSE));
            // Neither is there anything left that a client could take for such keys.
            if let Ok(message) = Message::from_vec(&answer) {
                for record in message.all_sections() {
                    let (RData::HTTPS(HTTPS(service)) | RData::SVCB(service)) = &record.data else {
                        continue;
                    };
                    prop_assert!(service.svc_params.iter().all(|(key, _)| *key != SvcParamKey::EchConfigList));
                }
            }
        }
    }

    #[test]
    fn whatever_stands_beside_such_keys_is_the_same_without_them(
        sections in prop::array::uniform3(prop::collection::vec(some_record(), 0..8)),
    ) {
        let asked = with_edns(question(7, "a.example.", RecordType::HTTPS));
        let [answered, authority, additional] = sections;
        let mut said = with_edns(answer(&asked, answered));
        said.add_authorities(authority);
        said.add_additionals(additional);
        let mut expected = said.clone();
        let records = expected
            .answers
            .iter_mut()
            .chain(&mut expected.authorities)
            .chain(&mut expected.additionals);
        for record in records {
            match &mut record.data {
                RData::HTTPS(HTTPS(service)) | RData::SVCB(service) => {
                    *service = without_ech(service.clone());
                }
                _ => {}
            }
        }
        let outcome = play(&[asks(&[&asked]), answers(&[&said])], usize::MAX);
        prop_assert_eq!(outcome.answers(), [expected.clone()]);
        // Byte for byte, where there was nothing to take out.
        if expected == said {
            prop_assert_eq!(outcome.to_client, answers(&[&said]).1);
        }
    }

    #[test]
    fn names_are_written_in_one_way_each(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6)) {
        let mut name = Vec::new();
        for label in &labels {
            name.push(u8::try_from(label.len()).unwrap());
            name.extend(label);
        }
        name.push(0);
        prop_assert_eq!(wire::encoded(&wire::text(&name)), Some(name.clone()));
        let dots = wire::text(&name).matches('.').count();
        prop_assert_eq!(dots, labels.len().max(1));
    }
}

#[test]
fn bytes_of_a_message_are_shared_not_copied() {
    let asked = question(7, "www.example.", RecordType::A);
    let framed = Bytes::from(asks(&[&asked]).1);
    let mut buffer = BytesMut::from(&*framed);
    let place = buffer.as_ptr();
    let mut decoder = Dns::default();
    decoder.receive(Peer::Client, &mut buffer, NOW);
    assert!(matches!(decoder.poll(), Step::Propose(_)));
    decoder.rule(Ruling::Permit(Permit::unjudged(Arc::default())), NOW);
    let Step::Send(Peer::Upstream, sent) = decoder.poll() else {
        panic!();
    };
    assert_eq!(sent.as_ptr(), place);
}
