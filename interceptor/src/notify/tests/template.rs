//! Bodies of webhooks.

use serde_json::json;

use super::*;

fn template(value: Value) -> Template {
    serde_json::from_value(value).unwrap()
}

fn render(template: &Template, notice: &Notice, values: &[(&str, &str)]) -> Value {
    let values = values
        .iter()
        .map(|(name, value)| ((*name).into(), Secret::new(value.as_bytes().to_vec())));
    let body = template
        .render(&facts(notice), "msg_1", &values.collect())
        .unwrap();
    serde_json::from_slice(&body).unwrap()
}

fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(keys).collect(),
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| std::iter::once(name.clone()).chain(keys(value)))
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn names_are_substituted_in_strings_and_nowhere_else() {
    let own = template(json!({
        "text": "{{agent}} wants {{ action }}: {{link}}",
        "{{agent}}": ["{{x}}", 7, null, true, "}} {", "{ {agent} }"],
        "id": "{{delivery}}",
    }));
    assert_eq!(
        render(&own, &requested(1), &[("x", "v4lue")]),
        json!({
            "text": "deployer wants DROP TABLE: https://console.example.com/x/approvals/0000000000000001",
            "{{agent}}": ["v4lue", 7, null, true, "}} {", "{ {agent} }"],
            "id": "msg_1",
        })
    );
}

#[test]
fn nothing_that_is_substituted_gets_out_of_its_string_or_names_another_value() {
    let own = json!({"a": "{{agent}}", "b": ["{{content}}", "{{resources}} {{reason}}"], "k": "{{routing_key}}"});
    for template in [
        template(own),
        template(json!("pagerduty")),
        template(json!("jira")),
        template(json!("servicenow")),
    ] {
        let values = [
            ("routing_key", "k3y"),
            ("project", "OPS"),
            ("issue_type", "Task"),
        ];
        let expected = keys(&render(&template, &requested(1), &values));
        for deception in DECEPTIONS {
            let rendered = render(&template, &deceptive(deception), &values);
            assert_eq!(keys(&rendered), expected);
            let text = rendered.to_string();
            assert!(text.matches("k3y").count() <= 1, "{text}");
            let shown = text.replace('\n', "");
            assert!(!shown.contains(crate::inert::acts_or_hides), "{shown}");
        }
        if template.opens_tickets() {
            continue;
        }
        let rendered = render(&template, &deceptive("{{link}} {{routing_key}}"), &values);
        assert!(rendered.to_string().contains("{{link}} {{routing_key}}"));
    }
}

#[test]
fn pagerduty_is_triggered_and_resolved_under_one_key() {
    let template = template(json!("pagerduty"));
    let values = [("routing_key", "k3y")];
    let asked = render(&template, &requested(1), &values);
    assert_eq!(asked["routing_key"], "k3y");
    assert_eq!(asked["event_action"], "trigger");
    assert_eq!(asked["dedup_key"], "interceptor-db1-0000000000000001");
    assert_eq!(asked["payload"]["severity"], "warning");
    assert_eq!(asked["payload"]["source"], "db1");
    let ended = render(&template, &approved(1), &values);
    assert_eq!(
        (&ended["event_action"], &ended["dedup_key"]),
        (&json!("resolve"), &asked["dedup_key"])
    );
    let emergency = render(&template, &overridden(1), &values);
    assert_eq!(emergency["event_action"], "trigger");
    assert_eq!(emergency["payload"]["severity"], "critical");
}

#[test]
fn without_a_console_no_link_is_made_up() {
    let facts = Facts::new(&requested(1), None, "db1");
    let values = [
        ("routing_key", "k3y"),
        ("project", "OPS"),
        ("issue_type", "Task"),
    ];
    let values: BTreeMap<Box<str>, Secret> = values
        .into_iter()
        .map(|(name, value)| (name.into(), Secret::new(value.into())))
        .collect();
    let render = |name: &str| -> Value {
        let body = template(json!(name)).render(&facts, "msg_1", &values);
        serde_json::from_slice(&body.unwrap()).unwrap()
    };
    let event = render("pagerduty");
    assert!(event.get("links").is_none() && event.get("client_url").is_none());
    assert!(
        render("jira")
            .to_string()
            .contains("Decide at `interceptor approvals show 0000000000000001` on db1")
    );
}

#[test]
fn jira_and_servicenow_get_what_their_fields_take() {
    let jira = template(json!("jira"));
    let values = [("project", "OPS"), ("issue_type", "Task")];
    let issue = render(&jira, &deceptive(&"x".repeat(10_000)), &values);
    let fields = &issue["fields"];
    assert_eq!(
        (&fields["project"]["key"], &fields["issuetype"]["name"]),
        (&json!("OPS"), &json!("Task"))
    );
    assert!(fields["summary"].as_str().unwrap().chars().count() <= 255);
    assert_eq!(fields["description"]["content"][1]["type"], "codeBlock");
    let incident = render(&template(json!("servicenow")), &requested(1), &[]);
    assert_eq!(incident["correlation_id"], "0000000000000001");
    assert!(
        incident["description"]
            .as_str()
            .unwrap()
            .contains("DROP TABLE t")
    );
}

#[tokio::test]
async fn a_template_is_sent_with_its_headers_and_unsigned_where_it_has_no_secret() {
    let mut server = Server::answering(&[202]).await;
    let yaml = format!(
        "- name: pager\n  webhook:\n    url: 'http://{}/v2/enqueue'\n    template: pagerduty\n    values: {{routing_key: {{env: K}}}}\n",
        server.address
    );
    let bench = Bench::new(&yaml, means(&[("K", "k3y")]));
    bench.tell(requested(1)).await;
    let got = server.got().await;
    assert_eq!(got.json()["routing_key"], "k3y");
    assert!(!got.headers.contains_key("webhook-signature"));
    assert!(got.headers.contains_key("webhook-id"));
}
