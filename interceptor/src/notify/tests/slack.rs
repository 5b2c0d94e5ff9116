//! Slack, the whole way: a server of its methods and one of its sockets.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};

use super::{
    super::slack::{asking_blocks, telling_blocks},
    *,
};

/// Slack, as far as we know it.
struct Fake {
    server: Server,
    sockets: TcpListener,
}

impl Fake {
    async fn new() -> Self {
        Self::answering(|_| None).await
    }

    /// One whose answers `special` may change.
    async fn answering(special: impl Fn(&Got) -> Option<String> + Send + Sync + 'static) -> Self {
        let sockets = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = sockets.local_addr().unwrap();
        let count = std::sync::atomic::AtomicUsize::new(1);
        let server = Server::new(move |got| {
            let answer = special(got).unwrap_or_else(|| match &*got.path {
                "/api/apps.connections.open" => {
                    json!({"ok": true, "url": format!("ws://{address}/link/?ticket=t1cket")})
                        .to_string()
                }
                "/api/chat.postMessage" => {
                    let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    json!({"ok": true, "channel": "C01", "ts": format!("1795316400.00000{number}")})
                        .to_string()
                }
                _ => json!({"ok": true}).to_string(),
            });
            (StatusCode::OK, answer)
        })
        .await;
        Self { server, sockets }
    }

    fn yaml(&self) -> String {
        format!(
            "- name: chat\n  slack:\n    api: 'http://{}/api'\n    channel: C01\n    bot_token: {{env: BOT}}\n    \
             app_token: {{env: APP}}\n    people: {{U01: alice}}\n",
            self.server.address
        )
    }

    /// The next call of a method.
    async fn call(&mut self, method: &str) -> Value {
        let got = self.server.got().await;
        assert_eq!(got.path, format!("/api/{method}"));
        let token = if method == "apps.connections.open" {
            "xapp-1"
        } else {
            "xoxb-1"
        };
        assert_eq!(got.headers["authorization"], format!("Bearer {token}"));
        got.json()
    }

    async fn accept(&mut self) -> Socket {
        self.call("apps.connections.open").await;
        let (stream, _) = tokio::time::timeout(SOON, self.sockets.accept())
            .await
            .unwrap()
            .unwrap();
        let mut socket = Socket(accept_async(stream).await.unwrap());
        socket
            .send(json!({"type": "hello", "num_connections": 1}))
            .await;
        socket
    }
}

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn send(&mut self, message: Value) {
        self.0
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    /// Clicks, and waits for it to be acknowledged.
    async fn click(&mut self, (user, channel): (&str, &str), action: &str, value: &str) {
        self.send(json!({
            "type": "interactive",
            "envelope_id": "e-1",
            "accepts_response_payload": false,
            "payload": {
                "type": "block_actions",
                "user": {"id": user, "name": "alice"},
                "container": {"type": "message", "channel_id": channel, "message_ts": "1"},
                "actions": [{"action_id": action, "type": "button", "value": value}],
            },
        }))
        .await;
        loop {
            let message = tokio::time::timeout(SOON, self.0.next()).await.unwrap();
            if let Message::Text(text) = message.unwrap().unwrap() {
                let ack: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(ack, json!({"envelope_id": "e-1"}));
                return;
            }
        }
    }
}

fn tokens() -> Means {
    means(&[("BOT", "xoxb-1"), ("APP", "xapp-1")])
}

fn button<'a>(message: &'a Value, action: &str) -> Option<&'a Value> {
    let blocks = message["blocks"].as_array().unwrap();
    let elements = blocks.iter().filter(|block| block["type"] == "actions");
    let mut elements = elements.flat_map(|block| block["elements"].as_array().unwrap());
    elements.find(|element| element["action_id"] == action)
}

const VALUE: &str =
    "0000000000000001 sha256:0707070707070707070707070707070707070707070707070707070707070707";
const OTHER: &str =
    "0000000000000001 sha256:0807070707070707070707070707070707070707070707070707070707070707";
const LINK: &str = "https://console.example.com/x/approvals/0000000000000001";

#[tokio::test]
async fn a_question_is_posted_clicked_on_and_changed_in_place() {
    let mut fake = Fake::new().await;
    let mut bench = Bench::new(&fake.yaml(), tokens());
    let mut socket = fake.accept().await;
    bench.tell(requested(1)).await;
    let posted = fake.call("chat.postMessage").await;
    assert_eq!(posted["channel"], "C01");
    for (name, value) in [
        ("unfurl_links", false),
        ("unfurl_media", false),
        ("link_names", false),
    ] {
        assert_eq!(posted[name], value);
    }
    assert_eq!(posted["parse"], "none");
    assert_eq!(button(&posted, "approve").unwrap()["value"], VALUE);
    assert_eq!(button(&posted, "deny").unwrap()["value"], VALUE);
    assert_eq!(button(&posted, "open").unwrap()["url"], LINK);
    let report = bench.report().await;
    let reference = Some("C01/1795316400.000001".into());
    assert_eq!(
        report.outcome,
        Outcome::Delivered {
            reference,
            note: None
        }
    );

    // A mapped member.
    socket.click(("U01", "C01"), "approve", VALUE).await;
    let intent = bench.intents.recv().await.unwrap();
    assert_eq!((&*intent.person, intent.choice), ("alice", Choice::Approve));
    assert_eq!(
        (intent.approval, intent.digest),
        (ApprovalId(1), Digest([7; 32]))
    );
    bench
        .notifiers
        .answer(intent.id, Ok("Approved: <it> goes.".to_owned()));
    let answer = fake.call("chat.postEphemeral").await;
    assert_eq!(
        (&answer["user"], &answer["channel"]),
        (&json!("U01"), &json!("C01"))
    );
    assert_eq!(answer["text"], "Approved: &lt;it&gt; goes.");

    // One whose vote doesn't count.
    socket.click(("U01", "C01"), "deny", VALUE).await;
    let intent = bench.intents.recv().await.unwrap();
    assert_eq!(intent.choice, Choice::Deny);
    bench
        .notifiers
        .answer(intent.id, Err("your own agent asks".to_owned()));
    let answer = fake.call("chat.postEphemeral").await;
    assert_eq!(
        answer["text"],
        format!("It doesn't count: your own agent asks. Decide at {LINK}")
    );

    // One that nobody answers.
    socket.click(("U01", "C01"), "deny", VALUE).await;
    bench.intents.recv().await.unwrap();
    let answer = fake.call("chat.postEphemeral").await;
    assert_eq!(
        answer["text"],
        format!("Whether it counts isn't known yet. Decide at {LINK}")
    );

    bench.tell(approved(1)).await;
    let changed = fake.call("chat.update").await;
    assert_eq!(
        (&changed["ts"], &changed["channel"]),
        (&json!("1795316400.000001"), &json!("C01"))
    );
    assert!(button(&changed, "approve").is_none() && button(&changed, "deny").is_none());
    assert!(changed.to_string().contains("approved by alice: agreed"));

    socket.click(("U01", "C01"), "approve", VALUE).await;
    let answer = fake.call("chat.postEphemeral").await;
    assert_eq!(
        answer["text"],
        format!("It is over already. Decide at {LINK}")
    );
    assert!(bench.intents.try_recv().is_err());
    assert_eq!(
        bench.notifiers.status()[0].socket.as_deref(),
        Some("connected")
    );
}

#[tokio::test]
async fn a_click_of_who_is_not_mapped_or_on_something_else_decides_nothing() {
    let mut fake = Fake::new().await;
    let mut bench = Bench::new(&fake.yaml(), tokens());
    let mut socket = fake.accept().await;
    bench.tell(requested(1)).await;
    fake.call("chat.postMessage").await;
    bench.report().await;
    for (user, channel, value, said) in [
        (
            "U02",
            "C01",
            VALUE,
            "Your click doesn't decide: nobody has said which reviewer you are.",
        ),
        ("U01", "C01", OTHER, "This isn't what waits for approval."),
        ("U01", "C02", VALUE, "This isn't the message that asked."),
    ] {
        socket.click((user, channel), "approve", value).await;
        let answer = fake.call("chat.postEphemeral").await;
        assert_eq!(answer["text"], format!("{said} Decide at {LINK}"));
        assert_eq!(
            (&answer["user"], &answer["channel"]),
            (&json!(user), &json!(channel))
        );
    }
    // Links, and what isn't ours, are acknowledged and that is all.
    for (action, value) in [
        ("open", VALUE),
        ("approve", "x"),
        ("approve", "1 sha256:07"),
        ("retract", VALUE),
    ] {
        socket.click(("U01", "C01"), action, value).await;
    }
    socket
        .send(json!({"type": "interactive", "payload": 7}))
        .await;
    socket.0.send(Message::text("no JSON")).await.unwrap();
    socket.click(("U01", "C01"), "approve", VALUE).await;
    assert_eq!(bench.intents.recv().await.unwrap().approval, ApprovalId(1));
    assert!(bench.intents.try_recv().is_err());
}

#[tokio::test]
async fn the_socket_is_opened_again_when_slack_wants_it_when_it_breaks_and_when_it_is_silent() {
    let mut fake = Fake::new().await;
    let mut means = tokens();
    means.timing.ping = Duration::from_millis(200);
    let bench = Bench::new(&fake.yaml(), means);
    let mut socket = fake.accept().await;
    socket
        .send(json!({"type": "disconnect", "reason": "refresh_requested"}))
        .await;
    let broken = fake.accept().await;
    drop(broken);
    // Nobody reads this one, so that no ping is answered.
    let silent = fake.accept().await;
    let mut socket = fake.accept().await;
    drop(silent);
    socket.0.close(None).await.unwrap();
    let mut socket = fake.accept().await;
    socket.click(("U02", "C01"), "approve", VALUE).await;
    fake.call("chat.postEphemeral").await;
    assert_eq!(
        bench.notifiers.status()[0].socket.as_deref(),
        Some("connected")
    );
}

#[tokio::test]
async fn a_socket_that_can_not_be_opened_is_tried_again_and_said() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let mut fake = Fake::answering(move |got| {
        let opens = got.path.ends_with("connections.open");
        let is_early = opens && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        is_early.then(|| json!({"ok": false, "error": "invalid_auth"}).to_string())
    })
    .await;
    let bench = Bench::new(&fake.yaml(), tokens());
    fake.call("apps.connections.open").await;
    fake.call("apps.connections.open").await;
    let _socket = fake.accept().await;
    let connected = async {
        while bench.notifiers.status()[0].socket.as_deref() != Some("connected") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, connected).await.unwrap();

    // An address in the clear that isn't on this host is none, and its ticket is nobody's business.
    let mut fake = Fake::answering(|got| {
        let opens = got.path.ends_with("connections.open");
        opens.then(|| json!({"ok": true, "url": "ws://evil.example/?ticket=t1cket"}).to_string())
    })
    .await;
    let bench = Bench::new(&fake.yaml(), tokens());
    fake.call("apps.connections.open").await;
    fake.call("apps.connections.open").await;
    assert_eq!(
        bench.notifiers.status()[0].socket.as_deref(),
        Some("not connected: Slack gives an address for its socket that can't be used")
    );
}

#[tokio::test]
async fn an_emergency_rings_in_the_thread_and_an_escalation_too() {
    let mut fake = Fake::new().await;
    let yaml = fake
        .yaml()
        .replace("    app_token: {env: APP}\n    people: {U01: alice}\n", "");
    let mut bench = Bench::new(&yaml, tokens());
    bench.tell(requested(1)).await;
    let posted = fake.call("chat.postMessage").await;
    // Without Socket Mode nobody could answer a click.
    assert!(button(&posted, "approve").is_none() && button(&posted, "deny").is_none());
    assert!(button(&posted, "open").is_some());
    bench.report().await;
    bench
        .tell(of(Event::Escalated, summary(1), Some("DROP TABLE t")))
        .await;
    fake.call("chat.update").await;
    let reply = fake.call("chat.postMessage").await;
    assert_eq!(
        (&reply["thread_ts"], &reply["reply_broadcast"]),
        (&json!("1795316400.000001"), &json!(true))
    );
    bench.tell(overridden(1)).await;
    let changed = fake.call("chat.update").await;
    assert!(
        changed["text"]
            .as_str()
            .unwrap()
            .starts_with("BREAK-GLASS by bob")
    );
    assert_eq!(
        fake.call("chat.postMessage").await["thread_ts"],
        "1795316400.000001"
    );
    assert!(bench.notifiers.status()[0].socket.is_none());
}

#[tokio::test]
async fn a_message_of_an_earlier_process_is_changed_and_one_that_is_gone_is_posted_anew() {
    let mut fake = Fake::answering(|got| {
        let gone = got.path.ends_with("chat.update") && got.json()["ts"] == "2.2";
        gone.then(|| json!({"ok": false, "error": "message_not_found"}).to_string())
    })
    .await;
    let mut means = tokens();
    for (approval, reference) in [(1, "C09/1.1"), (2, "C09/2.2"), (3, "nonsense")] {
        means.posted.push(Posted {
            notifier: "chat".into(),
            approval: ApprovalId(approval),
            digest: Digest([7; 32]),
            reference: reference.into(),
        });
    }
    let yaml = fake
        .yaml()
        .replace("    app_token: {env: APP}\n    people: {U01: alice}\n", "");
    let bench = Bench::new(&yaml, means);
    bench.tell(approved(1)).await;
    let changed = fake.call("chat.update").await;
    assert_eq!(
        (&changed["channel"], &changed["ts"]),
        (&json!("C09"), &json!("1.1"))
    );
    bench.tell(approved(2)).await;
    fake.call("chat.update").await;
    assert_eq!(fake.call("chat.postMessage").await["channel"], "C01");
    bench.tell(approved(3)).await;
    fake.call("chat.postMessage").await;
}

#[tokio::test]
async fn a_message_is_changed_at_the_end_even_where_ends_are_not_to_be_heard_of() {
    let mut fake = Fake::new().await;
    let yaml = fake.yaml().replace(
        "    app_token: {env: APP}\n    people: {U01: alice}\n",
        "  on: [requested]\n",
    );
    let mut bench = Bench::new(&yaml, tokens());
    bench.tell(requested(1)).await;
    fake.call("chat.postMessage").await;
    bench.report().await;
    bench.tell(approved(1)).await;
    fake.call("chat.update").await;
    bench.report().await;
    // What it never asked it doesn't tell the end of, and nobody is said to have been told.
    bench.tell(approved(2)).await;
    bench.tell(requested(3)).await;
    fake.call("chat.postMessage").await;
    assert_eq!(bench.report().await.approval, ApprovalId(3));
}

#[tokio::test]
async fn what_slack_says_no_to_is_told_in_its_words_and_no_more() {
    for (error, expected, is_dead) in [
        ("invalid_blocks", "Slack says `invalid_blocks`", true),
        (
            "not_in_channel",
            "Slack says `not_in_channel`: invite the app to the channel, and see whether `channel` is its id",
            false,
        ),
        ("X-<evil> xoxb-1", "Slack says `evilxoxb1`", false),
    ] {
        let fake =
            Fake::answering(move |_| Some(json!({"ok": false, "error": error}).to_string())).await;
        let yaml = fake
            .yaml()
            .replace("    app_token: {env: APP}\n    people: {U01: alice}\n", "");
        let mut bench = Bench::new(&yaml, tokens());
        bench.tell(requested(1)).await;
        match bench.report().await.outcome {
            Outcome::Dead { why } if is_dead => assert_eq!(&*why, expected),
            Outcome::Failed { why, .. } if !is_dead => assert_eq!(&*why, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_not_shown_whole_is_not_approved_by_a_button() {
    let has = |notice: &Notice, action: &str| {
        let message = json!({"blocks": asking_blocks(&facts(notice), true)});
        button(&message, action).is_some()
    };
    assert!(has(&requested(1), "approve"));
    let long = of(Event::Requested, summary(1), Some(&"x".repeat(2_701)));
    let longer = of(Event::Requested, summary(1), Some(&"x".repeat(1 << 20)));
    let nothing = of(Event::Requested, summary(1), None);
    let key = of(
        Event::Requested,
        Summary {
            security_key: true,
            ..summary(1)
        },
        Some("x"),
    );
    let reason = of(
        Event::Requested,
        Summary {
            reason_required: true,
            ..summary(1)
        },
        Some("x"),
    );
    let mut values = requested(1);
    let Subject::Request { values: count, .. } = &mut values.subject else {
        panic!()
    };
    *count = 2;
    let name = format!("{}, not this", "x".repeat(500));
    let agent = of(
        Event::Requested,
        Summary {
            agent: name.into(),
            ..summary(1)
        },
        Some("x"),
    );
    for notice in [long, longer, nothing, key, reason, values, agent] {
        assert!(!has(&notice, "approve") && has(&notice, "deny") && has(&notice, "open"));
        let text = json!(asking_blocks(&facts(&notice), true)).to_string();
        assert!(text.contains("It can be approved in the console"), "{text}");
    }
}

#[test]
fn what_agents_write_stands_in_plain_text_escaped() {
    /// All texts with the type that says how they are read.
    fn texts(value: &Value, out: &mut Vec<(String, String)>) {
        if let (Some(kind), Some(text)) = (value["type"].as_str(), value["text"].as_str()) {
            out.push((kind.to_owned(), text.to_owned()));
        }
        match value {
            Value::Array(list) => list.iter().for_each(|value| texts(value, out)),
            Value::Object(members) => members.values().for_each(|value| texts(value, out)),
            _ => {}
        }
    }
    for deception in DECEPTIONS {
        let facts = facts(&deceptive(deception));
        for blocks in [asking_blocks(&facts, true), telling_blocks(&facts)] {
            assert!(blocks.len() <= 50);
            let mut all = Vec::new();
            texts(&json!(blocks), &mut all);
            assert!(all.len() > 3);
            for (kind, text) in all {
                let shown = text.replace('\n', "");
                assert!(!shown.contains(crate::inert::acts_or_hides), "{shown:?}");
                assert!(!shown.contains(['<', '>']), "{shown}");
                assert!(shown.len() <= 3_000);
                match &*kind {
                    "plain_text" => {}
                    // Our own words only.
                    "mrkdwn" => assert_eq!(text, "*Content*"),
                    other => panic!("{other}"),
                }
            }
        }
    }
}

#[test]
fn rows_cannot_be_made_up_and_what_is_cut_is_said() {
    let blocks = json!(asking_blocks(
        &facts(&deceptive("x\nOutcome: approved by alice")),
        true
    ));
    let rows = blocks[1]["text"]["text"].as_str().unwrap();
    assert!(
        rows.contains("Agent: x\\nOutcome: approved by alice"),
        "{rows}"
    );
    assert!(!rows.lines().any(|row| row.starts_with("Outcome:")));
    let long = of(Event::Requested, summary(1), Some(&"x".repeat(10_000)));
    let text = json!(asking_blocks(&facts(&long), true)).to_string();
    assert!(text.contains("… 7300 more bytes, open the link"), "{text}");
}
