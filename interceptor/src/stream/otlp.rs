//! Records as OpenTelemetry's logs: OTLP over HTTP, in JSON, as
//! <https://opentelemetry.io/docs/specs/otlp/#otlphttp> has it.

use std::time::Duration;

use aws_lc_rs::digest;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use interceptor_core::record::Timestamp;
use nix::unistd::gethostname;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    config::Otlp,
    line::{Line, Severity, ascii},
};
use crate::{fetch::Fetch, inert::inert, secret::Source};

/// Largest line in a record, in bytes; collectors take requests of some megabytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Longest time that a collector may say to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What of an error is shown, in characters.
const ERROR_SHOWN_MAX: usize = 300;

/// A collector.
#[derive(Debug)]
pub(super) struct Receiver {
    config: Otlp,
    fetch: Fetch,
    /// What is before the records of a request, and behind them.
    frame: (String, String),
    /// Tells journals apart.
    journal: String,
}

/// Why records weren't taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// They are too many at once.
    TooLarge,
    /// For people; and from when on they may be sent again.
    Failed(String, Option<Duration>),
}

impl Receiver {
    /// `config`'s, of the journal whose public key is `key`.
    pub(super) fn new(config: Otlp, fetch: Fetch, key: &[u8]) -> Self {
        let host = gethostname().unwrap_or_default();
        let attribute = |key: &str, text: &str| json!({"key": key, "value": {"stringValue": text}});
        let resource = json!({"attributes": [
            attribute("service.name", "interceptor"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("host.name", &host.to_string_lossy()),
        ]});
        let scope = json!({"name": "interceptor.journal", "version": env!("CARGO_PKG_VERSION")});
        let frame = (
            format!(
                "{{\"resourceLogs\":[{{\"resource\":{},\"scopeLogs\":[{{\"scope\":{},\"logRecords\":[",
                ascii(&resource),
                ascii(&scope)
            ),
            "]}]}]}".to_owned(),
        );
        let hash = digest::digest(&digest::SHA256, key);
        Self {
            config,
            fetch,
            frame,
            journal: hex::encode(hash.as_ref().get(..8).unwrap_or_default()),
        }
    }

    /// `line` as a record, observed at `now`.
    pub(super) fn record(&self, line: &Line, now: Timestamp) -> Vec<u8> {
        let (number, text) = match line.severity {
            Severity::Warning => (13, "WARN"),
            Severity::Notice => (10, "INFO2"),
            Severity::Informational => (9, "INFO"),
        };
        let text_attribute =
            |key: String, text: &str| json!({"key": key, "value": {"stringValue": text}});
        let mut attributes: Vec<Value> = line
            .facts
            .iter()
            .map(|(name, text)| text_attribute(format!("interceptor.{name}"), text))
            .collect();
        // What comes twice is known by it.
        let uid = format!("{}-{}", self.journal, line.seq);
        attributes.push(text_attribute("log.record.uid".to_owned(), &uid));
        // In JSON 64 bits are a string.
        attributes.push(json!({
            "key": "interceptor.seq",
            "value": {"intValue": line.seq.to_string()},
        }));
        let record = json!({
            "timeUnixNano": line.time_ns.to_string(),
            "observedTimeUnixNano": now.0.to_string(),
            "severityNumber": number,
            "severityText": text,
            "body": {"stringValue": line.text(LINE_BYTES_MAX)},
            "attributes": attributes,
        });
        ascii(&record).into_bytes()
    }

    /// Has the collector take `records`.
    pub(super) async fn post<'a>(
        &self,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Refused> {
        let mut body = self.frame.0.clone().into_bytes();
        for (place, record) in records.enumerate() {
            if place > 0 {
                body.push(b',');
            }
            body.extend_from_slice(record);
        }
        body.extend_from_slice(self.frame.1.as_bytes());
        let failed = |what: String| Refused::Failed(what, None);
        let mut request =
            Request::post(&*self.config.url).header(header::CONTENT_TYPE, "application/json");
        if let Some(source) = &self.config.bearer {
            let value = secret(source, "Bearer ").await.map_err(failed)?;
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, source) in &self.config.headers {
            let name: HeaderName = name
                .parse()
                .map_err(|_| failed(format!("`{name}` is no header")))?;
            request = request.header(name, secret(source, "").await.map_err(failed)?);
        }
        let request = request
            .body(body)
            .map_err(|error| failed(error.to_string()))?;
        let answer = self.fetch.ask(request).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        let after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        match answer.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Err(Refused::TooLarge),
            status if status.is_success() => taken(answer.body()).map_err(failed),
            status => {
                let said = String::from_utf8_lossy(answer.body());
                let said: String = said.chars().take(ERROR_SHOWN_MAX).collect();
                let what = format!("it answers {status}: {}", inert(&said));
                Err(Refused::Failed(what, after))
            }
        }
    }
}

/// Whether all was taken: a collector may take a part, and say so in an answer that is a success.
fn taken(answer: &[u8]) -> Result<(), String> {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let partial = answer.get("partialSuccess");
    let rejected = partial.and_then(|partial| partial.get("rejectedLogRecords"));
    let rejected = rejected.map_or(0, |count| {
        let said = count.as_str().and_then(|count| count.parse().ok());
        said.or_else(|| count.as_u64()).unwrap_or(0)
    });
    if rejected == 0 {
        return Ok(());
    }
    let why = partial.and_then(|partial| partial.get("errorMessage")?.as_str());
    let why: String = why
        .unwrap_or("it doesn't say why")
        .chars()
        .take(ERROR_SHOWN_MAX)
        .collect();
    Err(format!("it rejects {rejected} records: {}", inert(&why)))
}

async fn secret(source: &Source, before: &str) -> Result<HeaderValue, String> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || source.read()).await;
    let secret = read
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let mut value = Zeroizing::new(before.as_bytes().to_vec());
    value.extend_from_slice(secret.expose());
    let mut value = HeaderValue::from_bytes(&value)
        .map_err(|_| "its secret can't stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::record::{Event, Record};

    use super::*;

    #[test]
    fn a_record_has_what_the_data_model_has() {
        let config = Otlp {
            url: "http://localhost/v1/logs".into(),
            shown: "".into(),
            bearer: None,
            headers: Default::default(),
        };
        let receiver = Receiver::new(config, Fetch::new(&[]).unwrap(), b"key");
        let record = Record {
            seq: 7,
            time: Timestamp(5),
            session: None,
            agent: Arc::from("a"),
            event: Event::notice("x", []),
        };
        let line = Line::new(
            &record,
            json!({"kind": "decision", "verdict": "deny", "agent": "a"}),
        );
        let record: Value = serde_json::from_slice(&receiver.record(&line, Timestamp(9))).unwrap();
        assert_eq!(record["timeUnixNano"], "5");
        assert_eq!(record["observedTimeUnixNano"], "9");
        assert_eq!(record["severityNumber"], 13);
        assert_eq!(
            record["attributes"],
            json!([
                {"key": "interceptor.agent", "value": {"stringValue": "a"}},
                {"key": "interceptor.kind", "value": {"stringValue": "decision"}},
                {"key": "interceptor.verdict", "value": {"stringValue": "deny"}},
                {"key": "log.record.uid", "value": {"stringValue": "2c70e12b7a0646f9-7"}},
                {"key": "interceptor.seq", "value": {"intValue": "7"}},
            ])
        );
        let whole = format!("{}{record}{}", receiver.frame.0, receiver.frame.1);
        let whole: Value = serde_json::from_str(&whole).unwrap();
        let logs = &whole["resourceLogs"][0];
        assert_eq!(logs["resource"]["attributes"][0]["key"], "service.name");
        assert_eq!(logs["scopeLogs"][0]["logRecords"][0], record);
    }

    #[test]
    fn a_success_may_be_none() {
        assert_eq!(taken(b""), Ok(()));
        assert_eq!(taken(b"{}"), Ok(()));
        assert_eq!(taken(br#"{"partialSuccess":{}}"#), Ok(()));
        assert_eq!(
            taken(br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"no\u001b"}}"#),
            Err("it rejects 3 records: no\\u{1b}".to_owned())
        );
    }
}
