//! Microsoft Teams.

use super::{super::teams::message, *};

#[tokio::test]
async fn a_card_is_posted_to_the_workflow() {
    let mut server = Server::answering(&[202]).await;
    let url = format!("http://{}/workflows/x?sig=s3cret", server.address);
    let yaml = "- {name: channel, teams: {url: {env: T}}}\n";
    let mut bench = Bench::new(yaml, means(&[("T", &url)]));
    bench.tell(requested(1)).await;
    let got = server.got().await;
    assert_eq!(got.path, "/workflows/x?sig=s3cret");
    let body = got.json();
    assert_eq!(body["type"], "message");
    let attachment = &body["attachments"][0];
    assert_eq!(
        attachment["contentType"],
        "application/vnd.microsoft.card.adaptive"
    );
    let card = &attachment["content"];
    assert_eq!(card["type"], "AdaptiveCard");
    let action = &card["actions"][0];
    assert_eq!(action["type"], "Action.OpenUrl");
    assert_eq!(
        action["url"],
        "https://console.example.com/x/approvals/0000000000000001"
    );
    assert!(card.to_string().contains("DROP TABLE t"));
    assert!(matches!(
        bench.report().await.outcome,
        Outcome::Delivered { .. }
    ));
    bench.tell(approved(1)).await;
    let card = server.got().await.json();
    assert!(card.to_string().contains("approved by alice: agreed"));
    assert_eq!(
        card["attachments"][0]["content"]["actions"][0]["title"],
        "Open"
    );
}

#[test]
fn what_agents_write_stands_in_text_runs_and_in_one_heading_without_meaning() {
    fn walk(value: &Value, seen: &mut Vec<(String, String)>) {
        if let (Some(kind), Some(text)) = (value["type"].as_str(), value["text"].as_str()) {
            seen.push((kind.to_owned(), text.to_owned()));
        }
        match value {
            Value::Array(list) => list.iter().for_each(|value| walk(value, seen)),
            Value::Object(members) => members.values().for_each(|value| walk(value, seen)),
            _ => {}
        }
    }
    for deception in DECEPTIONS {
        let body = message(&facts(&deceptive(deception)));
        let mut seen = Vec::new();
        walk(&body, &mut seen);
        let blocks: Vec<_> = seen
            .iter()
            .filter(|(kind, _)| kind == "TextBlock")
            .collect();
        assert_eq!(blocks.len(), 1);
        // Each character that means something stands behind a backslash.
        let mut characters = blocks[0].1.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => assert!(characters.next().unwrap().is_ascii_punctuation()),
                other => assert!(!other.is_ascii_punctuation(), "{}", blocks[0].1),
            }
        }
        for (kind, text) in &seen {
            assert!(matches!(&**kind, "TextBlock" | "TextRun"), "{kind}");
            assert!(
                !text.replace('\n', "").contains(crate::inert::acts_or_hides),
                "{text:?}"
            );
        }
        let actions = &body["attachments"][0]["content"]["actions"];
        assert_eq!(actions.as_array().unwrap().len(), 1);
        assert!(body.to_string().len() < 28 << 10);
    }
}

#[test]
fn a_card_stays_within_what_teams_takes() {
    let body = message(&facts(&deceptive(&"\u{202e}".repeat(100_000)))).to_string();
    assert!(body.len() < 28 << 10, "{}", body.len());
    assert!(body.contains("more bytes, open the link"));
}

#[test]
fn without_a_console_it_says_which_command() {
    let facts = Facts::new(&requested(1), None, "db1");
    let body = message(&facts).to_string();
    assert!(body.contains("See `interceptor approvals show 0000000000000001` on db1"));
    assert!(!body.contains("Action.OpenUrl"));
}
