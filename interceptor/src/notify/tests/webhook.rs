//! Webhooks.

use std::process::Command;

use super::*;
use crate::notify::webhook::sign;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn hook(address: SocketAddr) -> String {
    format!(
        "- {{name: hook, webhook: {{url: 'http://{address}/in?token=t0ken', secret: {{env: S}}}}}}\n"
    )
}

#[test]
fn a_signature_is_the_one_of_the_specification() {
    // The example of the Standard Webhooks libraries' own tests.
    let secret = Secret::new(SECRET.into());
    let signed = sign(
        &secret,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        br#"{"test": 2432232314}"#,
    );
    assert_eq!(
        signed.unwrap(),
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    );
    for wrong in [
        "s3cret",
        "whsec_",
        "whsec_c2hvcnQ=",
        "whsec_not base64, is it?",
    ] {
        let error = sign(&Secret::new(wrong.into()), "msg", 0, b"").unwrap_err();
        assert!(
            error.starts_with("its signing secret isn't `whsec_` and base64 of 24 to 64 bytes")
        );
        assert!(!error.contains(wrong) || wrong == "whsec_", "{error}");
    }
}

/// HMAC-SHA-256 by openssl, which knows nothing of us.
fn openssl(key: &[u8], message: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("message");
    std::fs::write(&path, message).unwrap();
    // Whoever is started stays in the cgroup that this process is in, which other tests remove.
    let _turn = crate::kernel::tests::turn();
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-mac", "HMAC", "-macopt"])
        .arg(format!("hexkey:{}", hex::encode(key)))
        .arg("-binary")
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    base64(&output.stdout)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn a_request_is_signed_and_says_all_there_is() {
    let mut server = Server::answering(&[204]).await;
    let mut bench = Bench::new(&hook(server.address), means(&[("S", SECRET)]));
    bench.tell(requested(1)).await;
    let got = server.got().await;
    assert_eq!(got.path, "/in?token=t0ken");
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["host"], server.address.to_string());
    let (id, time) = (
        &got.headers["webhook-id"],
        &got.headers["webhook-timestamp"],
    );
    assert_eq!(time, "1795316400");
    let key = {
        use base64::Engine as _;
        let encoded = SECRET.strip_prefix("whsec_").unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .unwrap()
    };
    let message = [format!("{id}.{time}.").as_bytes(), &got.body].concat();
    assert_eq!(
        got.headers["webhook-signature"],
        format!("v1,{}", openssl(&key, &message))
    );

    let body = got.json();
    assert_eq!(body["type"], "approval.requested");
    let data = &body["data"];
    for (name, value) in [
        ("approval", "0000000000000001"),
        ("agent", "deployer"),
        ("labels", "team=red"),
        ("action", "DROP TABLE"),
        ("does", "Drops the table t with all its rows."),
        ("warnings", ""),
        ("destination", "192.0.2.1:5432"),
        ("resources", "public.t"),
        ("command", "psql -c 'drop table t'"),
        ("content", "DROP TABLE t"),
        ("rule", "schema-changes"),
        ("groups", "dba"),
        ("state", "pending"),
        ("host", "db1"),
        (
            "link",
            "https://console.example.com/x/approvals/0000000000000001",
        ),
        (
            "digest",
            "sha256:0707070707070707070707070707070707070707070707070707070707070707",
        ),
    ] {
        assert_eq!(data[name], value, "{name}");
    }
    let report = bench.report().await;
    assert_eq!(&*report.id, id);
    assert_eq!(
        report.outcome,
        Outcome::Delivered {
            reference: None,
            note: None
        }
    );
    assert_eq!(
        (&*report.notifier, report.event, report.attempt),
        ("hook", Event::Requested, 1)
    );
}

#[tokio::test]
async fn what_fails_is_tried_again_under_the_same_id_with_the_same_body() {
    let mut server = Server::answering(&[500, 404, 200]).await;
    let mut bench = Bench::new(&hook(server.address), means(&[("S", SECRET)]));
    bench.tell(requested(1)).await;
    let first = server.got().await;
    for _ in 0..2 {
        let again = server.got().await;
        assert_eq!(again.headers["webhook-id"], first.headers["webhook-id"]);
        assert_eq!(again.body, first.body);
    }
    let mut whys = Vec::new();
    loop {
        match bench.report().await.outcome {
            Outcome::Failed { why, .. } => whys.push(why),
            other => {
                assert_eq!(
                    other,
                    Outcome::Delivered {
                        reference: None,
                        note: None
                    }
                );
                break;
            }
        }
    }
    // Nothing of the answer's body, and nothing of the URL.
    let expected = [
        "127.0.0.1 answers 500 Internal Server Error",
        "127.0.0.1 answers 404 Not Found",
    ];
    assert_eq!(
        whys.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        expected
    );
}

#[tokio::test]
async fn who_is_gone_gets_no_more_and_what_is_dead_can_be_sent_again() {
    let mut server = Server::answering(&[410, 200]).await;
    let mut bench = Bench::new(&hook(server.address), means(&[("S", SECRET)]));
    bench.tell(requested(1)).await;
    let report = bench.report().await;
    assert_eq!(
        report.outcome,
        Outcome::Dead {
            why: "127.0.0.1 answers 410 Gone".into()
        }
    );
    let first = server.got().await;
    let status = &bench.notifiers.status()[0];
    assert_eq!(status.dead[0].id, report.id);
    let json = serde_json::to_value(status).unwrap();
    assert_eq!(json["state"], "failing");
    let read: NotifierStatus = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(read, *status);
    assert_eq!(json["failing_since"], "2026-11-22T03:00:00.000000000Z");
    assert_eq!(json["dead"][0]["event"], "requested");
    bench.notifiers.redeliver(&report.id).unwrap();
    assert_eq!(
        server.got().await.headers["webhook-id"],
        first.headers["webhook-id"]
    );
    bench.settled().await;
    assert_eq!(bench.notifiers.status()[0].state, NotifierState::Idle);
    assert!(bench.notifiers.redeliver(&report.id).is_err());
}

#[tokio::test]
async fn redirects_are_not_followed_and_said() {
    let mut server = Server::answering(&[307, 200]).await;
    let mut bench = Bench::new(&hook(server.address), means(&[("S", SECRET)]));
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert_eq!(
        &*why,
        "127.0.0.1 answers 307 Temporary Redirect; redirects aren't followed, so configure the address that it leads to"
    );
    server.got().await;
    // To the configured place again, and not to that of the answer.
    assert_eq!(server.got().await.path, "/in?token=t0ken");
}

#[tokio::test]
async fn a_dead_letter_after_the_configured_time_and_a_withdrawal_where_it_has_ended() {
    let server = Server::answering(&[503]).await;
    let address = server.address;
    let mut configs = configs(&hook(address));
    for config in &mut configs {
        // Less than what can be configured, so that nobody has to wait for it.
        config.retry_for = Duration::from_secs(1);
    }
    let mut bench = Bench::of(configs, means(&[("S", SECRET)]));
    bench.tell(requested(1)).await;
    bench.tell(requested(2)).await;
    bench.tell(timed_out(2)).await;
    let mut settled = Vec::new();
    while settled.len() < 3 {
        let report = bench.settled().await;
        settled.push((report.approval.0, report.event, report.outcome));
    }
    settled.sort_by_key(|(approval, event, _)| (*approval, *event));
    let why: Box<str> = "127.0.0.1 answers 503 Service Unavailable".into();
    let expected = [
        (1, Event::Requested, Outcome::Dead { why: why.clone() }),
        (
            2,
            Event::Requested,
            Outcome::Withdrawn {
                why: "its approval has ended, and it couldn't be told before".into(),
            },
        ),
        (2, Event::Ended, Outcome::Dead { why }),
    ];
    assert_eq!(settled, expected);
}

#[tokio::test]
async fn no_secret_gets_into_output() {
    let server = Server::answering(&[401]).await;
    let address = server.address;
    let yaml = "- name: hook\n  webhook:\n    url: {env: URL}\n    secret: {env: S}\n    headers: {Authorization: {env: H}, X-Plain: pl4in}\n\
         - {name: gone, webhook: {url: {env: NOWHERE}, secret: {env: S}}}\n\
         - {name: bad, webhook: {url: {env: BAD}, secret: {env: S}}}\n";
    let url = format!("http://{address}/s3cret-path?sig=s3cret-query");
    let secrets = [
        ("URL", url.as_str()),
        ("S", SECRET),
        ("H", "Bearer s3cret-header"),
        ("BAD", "http://hooks.example.com/s3cret-path"),
    ];
    let mut bench = Bench::new(yaml, means(&secrets));
    bench.tell(requested(1)).await;
    let mut said = String::new();
    for _ in 0..6 {
        said.push_str(&format!("{:?}\n", bench.report().await));
    }
    said.push_str(&serde_json::to_string(&bench.notifiers.status()).unwrap());
    said.push_str(&format!("{:?}", configs(yaml)));
    for secret in ["s3cret", "pl4in", "MfKQ9r8"] {
        assert!(!said.contains(secret), "{said}");
    }
    assert!(
        said.contains("its secret is missing: the environment variable `NOWHERE` was not read")
    );
    assert!(said.contains("would send it in the clear"));
}

#[tokio::test]
async fn headers_are_sent_and_secrets_are_read_anew_at_every_attempt() {
    let mut server = Server::answering(&[401, 200]).await;
    let yaml = format!(
        "- {{name: hook, webhook: {{url: 'http://{}/', secret: {{env: S}}, headers: {{Authorization: {{env: H}}, x-team: red}}}}}}\n",
        server.address
    );
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut means = means(&[]);
    means.secrets = Arc::new(move |source| {
        let secret = match &source {
            Source::Environment(name) if &**name == "S" => SECRET.to_owned(),
            _ => format!(
                "Bearer {}",
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
            ),
        };
        Box::pin(std::future::ready(Ok(Secret::new(secret.into_bytes()))))
    });
    let bench = Bench::new(&yaml, means);
    bench.tell(requested(1)).await;
    let first = server.got().await;
    assert_eq!(
        (&*first.headers["authorization"], &*first.headers["x-team"]),
        ("Bearer 0", "red")
    );
    assert_eq!(server.got().await.headers["authorization"], "Bearer 1");
}

/// A server of HTTPS on loopback, and its certificate.
async fn secure() -> (
    SocketAddr,
    CertificateDer<'static>,
    mpsc::UnboundedReceiver<Got>,
) {
    let (acceptor, certificate) = acceptor();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (app, requests) = app(Arc::new(|_| (StatusCode::OK, String::new())));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper_util::service::TowerToHyperService::new(app);
                let stream = hyper_util::rt::TokioIo::new(stream);
                _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(stream, service)
                    .await;
            });
        }
    });
    (address, certificate, requests)
}

#[tokio::test]
async fn a_server_has_to_be_vouched_for() {
    let (address, certificate, mut requests) = secure().await;
    let yaml = format!(
        "- {{name: hook, webhook: {{url: 'https://localhost:{}/', secret: {{env: S}}}}}}\n",
        address.port()
    );
    let mut means = means(&[("S", SECRET)]);
    means.resolve = Arc::new(move |_, _| Box::pin(std::future::ready(Ok(vec![address]))));
    let mut bench = Bench::new(&yaml, means.clone());
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert!(
        why.starts_with("no TLS with localhost") && why.contains("UnknownIssuer"),
        "{why}"
    );
    assert!(requests.try_recv().is_err());

    means.roots = vec![certificate];
    let mut bench = Bench::new(&yaml, means.clone());
    bench.tell(requested(1)).await;
    assert!(matches!(
        bench.report().await.outcome,
        Outcome::Delivered { .. }
    ));
    requests.recv().await.unwrap();

    // Somebody else's certificate, however much it is believed.
    let mut bench = Bench::new(&yaml.replace("localhost", "hooks.example.com"), means);
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert!(
        why.contains("not valid for name") || why.contains("NotValidForName"),
        "{why}"
    );
}

#[tokio::test]
async fn nothing_goes_in_the_clear_to_where_localhost_leads() {
    let mut means = means(&[("S", SECRET)]);
    means.resolve =
        Arc::new(|_, port| Box::pin(std::future::ready(Ok(vec![([192, 0, 2, 1], port).into()]))));
    let yaml = "- {name: hook, webhook: {url: 'http://localhost:9/', secret: {env: S}}}\n";
    let mut bench = Bench::new(yaml, means);
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert_eq!(
        &*why,
        "localhost is 192.0.2.1, not this host: nothing is sent there in the clear"
    );
}

#[tokio::test]
async fn who_takes_it_has_taken_it_whatever_becomes_of_the_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            use tokio::io::AsyncWriteExt as _;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\nx")
                .await
                .unwrap();
            kept.push(stream);
        }
    });
    let mut bench = Bench::new(&hook(address), means(&[("S", SECRET)]));
    bench.tell(requested(1)).await;
    assert_eq!(
        bench.report().await.outcome,
        Outcome::Delivered {
            reference: None,
            note: None
        }
    );
}
