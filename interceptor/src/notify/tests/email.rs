//! Mail, to a server that knows as much of SMTP as it has to.

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

use super::*;

/// A mail that a server got.
#[derive(Debug)]
struct Mail {
    from: String,
    to: Vec<String>,
    logins: Vec<String>,
    /// As it came, without what makes dots transparent.
    text: String,
}

impl Mail {
    /// The header fields, unfolded.
    fn headers(&self) -> Vec<String> {
        let (head, _) = self.text.split_once("\r\n\r\n").unwrap();
        let unfolded = head.replace("\r\n ", " ").replace("\r\n\t", " ");
        unfolded.split("\r\n").map(str::to_owned).collect()
    }

    fn header(&self, name: &str) -> String {
        let start = format!("{}: ", name.to_lowercase());
        let all = self.headers();
        let mut found = all
            .iter()
            .filter(|line| line.to_lowercase().starts_with(&start));
        let line = found
            .next()
            .unwrap_or_else(|| panic!("no {name} in {all:?}"));
        assert!(found.next().is_none(), "{name} twice in {all:?}");
        line[start.len()..].to_owned()
    }

    /// Its parts, decoded: text and HTML.
    fn parts(&self) -> (String, String) {
        let boundary = self.header("Content-Type");
        let boundary = boundary
            .split_once("boundary=\"")
            .unwrap()
            .1
            .split_once('"')
            .unwrap()
            .0
            .to_owned();
        let parts: Vec<&str> = self.text.split(&format!("--{boundary}")).collect();
        assert_eq!(parts.len(), 4, "{}", self.text);
        (decoded(parts[1]), decoded(parts[2]))
    }
}

fn decoded(part: &str) -> String {
    let (head, body) = part.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    if head.contains("quoted-printable") {
        let body = body.replace("=\r\n", "");
        let mut out = Vec::new();
        let mut bytes = body.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'=' {
                let pair = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&pair).unwrap(), 16).unwrap());
            } else {
                out.push(byte);
            }
        }
        String::from_utf8(out).unwrap()
    } else if head.contains("base64") {
        use base64::Engine as _;
        let body: String = body.split_whitespace().collect();
        String::from_utf8(
            base64::engine::general_purpose::STANDARD
                .decode(body)
                .unwrap(),
        )
        .unwrap()
    } else {
        body.to_owned()
    }
}

/// A server of mail on loopback: `answer` may change what it says to a line.
async fn server(
    answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<Mail>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mails) = mpsc::unbounded_channel();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (sender, answer) = (sender.clone(), answer.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                stream.write_all(b"220 fake ESMTP\r\n").await.unwrap();
                _ = converse(stream, &*answer, &sender).await;
            });
        }
    });
    (address, mails)
}

async fn converse(
    mut stream: impl AsyncBufRead + AsyncWrite + Unpin,
    answer: &(impl Fn(&str) -> Option<String> + ?Sized),
    mails: &mpsc::UnboundedSender<Mail>,
) -> std::io::Result<()> {
    let (mut from, mut to, mut logins) = (String::new(), Vec::new(), Vec::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        let said = answer(line);
        let is_fine = said.as_ref().is_none_or(|said| said.starts_with('2'));
        let upper = line.to_uppercase();
        let usual = if upper.starts_with("EHLO") {
            "250-fake\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME"
        } else if upper.starts_with("AUTH") {
            logins.push(line.to_owned());
            "235 in"
        } else if upper.starts_with("MAIL FROM:") {
            from = line.to_owned();
            "250 ok"
        } else if upper.starts_with("RCPT TO:") {
            if is_fine {
                to.push(line[9..].trim_matches(['<', '>']).to_owned());
            }
            "250 ok"
        } else if upper == "DATA" {
            "354 go on"
        } else if upper == "QUIT" {
            stream.write_all(b"221 bye\r\n").await?;
            return Ok(());
        } else {
            "502 what?"
        };
        let said = said.unwrap_or_else(|| usual.to_owned());
        stream.write_all(format!("{said}\r\n").as_bytes()).await?;
        if said.starts_with("354") {
            let mut text = String::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await?;
                if line == ".\r\n" {
                    break;
                }
                text.push_str(line.strip_prefix('.').unwrap_or(&line));
            }
            let (from, to) = (std::mem::take(&mut from), std::mem::take(&mut to));
            _ = mails.send(Mail {
                from,
                to,
                logins: logins.clone(),
                text,
            });
            stream.write_all(b"250 taken\r\n").await?;
        }
    }
}

fn yaml(address: SocketAddr) -> String {
    format!(
        "- name: mail\n  email:\n    server: 127.0.0.1\n    port: {}\n    security: none\n    \
         from: 'Interceptor <interceptor@example.com>'\n    to: [dba@example.com, 'Leads <leads@example.org>']\n",
        address.port()
    )
}

async fn mail(mails: &mut mpsc::UnboundedReceiver<Mail>) -> Mail {
    tokio::time::timeout(SOON, mails.recv())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_question_and_its_outcome_stand_in_one_thread() {
    let (address, mut mails) = server(|_| None).await;
    let mut bench = Bench::new(&yaml(address), means(&[]));
    bench.tell(requested(1)).await;
    let asked = mail(&mut mails).await;
    assert!(
        asked
            .from
            .starts_with("MAIL FROM:<interceptor@example.com>"),
        "{}",
        asked.from
    );
    assert_eq!(asked.to, ["dba@example.com", "leads@example.org"]);
    assert!(asked.logins.is_empty());
    let subject =
        "[interceptor 0000000000000001] Approval asked for: deployer -> 192.0.2.1:5432: DROP TABLE";
    assert_eq!(asked.header("Subject"), subject);
    assert_eq!(asked.header("Auto-Submitted"), "auto-generated");
    assert_eq!(asked.header("Date"), "Sun, 22 Nov 2026 03:00:00 +0000");
    let id = asked.header("Message-ID");
    assert_eq!(id, "<approval-0000000000000001.db1@example.com>");
    let (text, html) = asked.parts();
    let link = "https://console.example.com/x/approvals/0000000000000001";
    assert!(text.contains(&format!("Decide: {link}")), "{text}");
    assert!(text.contains("  | DROP TABLE t"), "{text}");
    assert!(
        html.contains(&format!("<a href=\"{link}\">Decide</a>")),
        "{html}"
    );
    assert!(html.contains("<pre>DROP TABLE t</pre>"), "{html}");
    assert!(matches!(
        bench.report().await.outcome,
        Outcome::Delivered { note: None, .. }
    ));

    bench.tell(approved(1)).await;
    let told = mail(&mut mails).await;
    assert_eq!(
        (told.header("In-Reply-To"), told.header("References")),
        (id.clone(), id.clone())
    );
    assert_ne!(told.header("Message-ID"), id);
    assert!(told.parts().0.contains("approved by alice: agreed"));
}

#[tokio::test]
async fn what_agents_write_adds_no_header_and_no_markup() {
    let (address, mut mails) = server(|_| None).await;
    let bench = Bench::new(&yaml(address), means(&[]));
    bench.tell(requested(1)).await;
    let names = |mail: &Mail| -> Vec<String> {
        let headers = mail.headers();
        headers
            .iter()
            .map(|line| line.split_once(':').unwrap().0.to_owned())
            .collect()
    };
    let plain = mail(&mut mails).await;
    let expected = names(&plain);
    let tags = |html: &str| html.matches('<').count();
    for (index, deception) in DECEPTIONS.into_iter().enumerate() {
        let mut notice = deceptive(deception);
        let Subject::Request { summary, .. } = &mut notice.subject else {
            panic!()
        };
        summary.id = ApprovalId(index as u64 + 10);
        bench.tell(notice).await;
        let mail = mail(&mut mails).await;
        assert_eq!(names(&mail), expected, "{deception:?}");
        assert_eq!(mail.to, plain.to);
        let (text, html) = mail.parts();
        assert_eq!(tags(&html), tags(&plain.parts().1), "{html}");
        for part in [&text, &html] {
            let shown = part.replace("\r\n", "").replace('\n', "");
            assert!(!shown.contains(crate::inert::acts_or_hides), "{shown:?}");
        }
        // No line of the content passes for one of ours.
        let content = text.split("Content:").last().unwrap();
        let mut lines = content.lines().filter(|line| !line.trim().is_empty());
        assert!(lines.all(|line| line.starts_with("  | ")), "{content}");
    }
}

#[tokio::test]
async fn who_will_not_have_it_keeps_it_from_nobody_and_is_tried_again_alone() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let (address, mut mails) = server(move |line| {
        let is_leads = line.contains("leads@");
        let first = is_leads && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        first.then(|| "450 later s3cret".to_owned())
    })
    .await;
    let mut bench = Bench::new(&yaml(address), means(&[]));
    bench.tell(requested(1)).await;
    assert_eq!(mail(&mut mails).await.to, ["dba@example.com"]);
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert_eq!(&*why, "127.0.0.1 won't have it for leads@example.org (450)");
    assert_eq!(mail(&mut mails).await.to, ["leads@example.org"]);
    assert!(matches!(
        bench.report().await.outcome,
        Outcome::Delivered { .. }
    ));

    let (address, mut mails) =
        server(|line| line.contains("leads@").then(|| "550 nobody".to_owned())).await;
    let mut bench = Bench::new(&yaml(address), means(&[]));
    bench.tell(requested(1)).await;
    assert_eq!(mail(&mut mails).await.to, ["dba@example.com"]);
    let note = "127.0.0.1 won't have it for leads@example.org (550); the others have theirs";
    let Outcome::Delivered {
        note: Some(got), ..
    } = bench.report().await.outcome
    else {
        panic!()
    };
    assert_eq!(&*got, note);
}

#[tokio::test]
async fn logging_in_and_failing_to_says_nothing_of_the_password() {
    let yaml = |address| {
        yaml(address).replace(
            "    from:",
            "    user: bot\n    password: {env: P}\n    from:",
        )
    };
    let (address, mut mails) = server(|_| None).await;
    let bench = Bench::new(&yaml(address), means(&[("P", "s3cret")]));
    bench.tell(requested(1)).await;
    // NUL, user, NUL, password.
    assert_eq!(
        mail(&mut mails).await.logins,
        ["AUTH PLAIN AGJvdABzM2NyZXQ="]
    );

    let (address, _mails) = server(|line| {
        line.starts_with("AUTH")
            .then(|| "535 not AGJvdABzM2NyZXQ= s3cret".to_owned())
    })
    .await;
    let mut bench = Bench::new(&yaml(address), means(&[("P", "s3cret")]));
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert_eq!(&*why, "127.0.0.1 doesn't let `bot` in: it answers 535");
}

#[tokio::test]
async fn without_tls_nothing_is_said() {
    // A server that has no STARTTLS.
    let (address, mut mails) = server(|_| None).await;
    let starttls = yaml(address).replace("security: none", "security: starttls");
    let mut bench = Bench::new(&starttls, means(&[]));
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert_eq!(
        &*why,
        "127.0.0.1 begins no TLS: it lacks what is needed for that"
    );

    // One that says it has, and sends along what TLS should have protected.
    let (address, _) = server(|line| {
        let upper = line.to_uppercase();
        if upper.starts_with("EHLO") {
            Some("250-fake\r\n250 STARTTLS".to_owned())
        } else if upper == "STARTTLS" {
            Some("220 go\r\n250-fake\r\n250 AUTH PLAIN".to_owned())
        } else {
            None
        }
    })
    .await;
    let starttls = yaml(address).replace("security: none", "security: starttls");
    let mut bench = Bench::new(&starttls, means(&[]));
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert!(why.starts_with("127.0.0.1 begins no TLS"), "{why}");

    let smtps = yaml(address).replace("security: none", "security: smtps");
    let mut bench = Bench::new(&smtps, means(&[]));
    bench.tell(requested(1)).await;
    let Outcome::Failed { why, .. } = bench.report().await.outcome else {
        panic!()
    };
    assert!(why.starts_with("no TLS with 127.0.0.1"), "{why}");
    assert!(mails.try_recv().is_err());
}

#[tokio::test]
async fn mail_goes_by_tls_from_the_first_byte_or_after_the_first_words() {
    for security in ["smtps", "starttls"] {
        let (acceptor, certificate) = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mut mails) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if security == "starttls" {
                    let mut stream = BufReader::new(&mut stream);
                    stream.write_all(b"220 fake ESMTP\r\n").await.unwrap();
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    let hello = b"250-fake\r\n250 STARTTLS\r\n";
                    stream.write_all(hello).await.unwrap();
                    stream.read_line(&mut line).await.unwrap();
                    assert_eq!(line, "EHLO example.com\r\nSTARTTLS\r\n");
                    stream.write_all(b"220 go\r\n").await.unwrap();
                }
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut stream = BufReader::new(stream);
                if security == "smtps" {
                    stream.write_all(b"220 fake ESMTP\r\n").await.unwrap();
                }
                _ = converse(stream, &|_: &str| None, &sender).await;
            }
        });
        let yaml = yaml(address)
            .replace("server: 127.0.0.1", "server: localhost")
            .replace(
                "security: none",
                &format!("security: {security}\n    user: bot\n    password: {{env: P}}"),
            );
        let mut means = means(&[("P", "s3cret")]);
        means.resolve = Arc::new(move |_, _| Box::pin(std::future::ready(Ok(vec![address]))));
        // Nobody vouches for it.
        let mut bench = Bench::new(&yaml, means.clone());
        bench.tell(requested(1)).await;
        let Outcome::Failed { why, .. } = bench.report().await.outcome else {
            panic!()
        };
        assert!(why.contains("no TLS"), "{why}");
        drop(bench);
        assert!(mails.try_recv().is_err());

        means.roots = vec![certificate];
        let bench = Bench::new(&yaml, means);
        bench.tell(requested(1)).await;
        let mail = mail(&mut mails).await;
        assert_eq!(mail.to.len(), 2);
        assert_eq!(mail.logins, ["AUTH PLAIN AGJvdABzM2NyZXQ="]);
    }
}
