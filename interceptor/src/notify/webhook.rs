//! Webhooks, signed as Standard Webhooks says (standardwebhooks.com): HMAC-SHA-256 over id, time and body. Who receives
//! one verifies the signature, refuses times that are far off, and drops an id that they have seen.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use interceptor_core::login::Secret;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    address::ServiceUrl,
    config::WebhookConfig,
    facts::{Facts, VARIABLES},
    net::Net,
    queue::{Failure, Job, Told},
    secrets::{self, Secrets, text},
    worker::{Clock, Sink},
};

/// What the specification's secrets begin with.
const PREFIX: &str = "whsec_";

/// Bytes of a key, as the specification has them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Tells programs.
pub(super) struct Webhook {
    config: WebhookConfig,
    net: Net,
    secrets: Secrets,
    clock: Clock,
}

impl Webhook {
    pub(super) const fn new(
        config: WebhookConfig,
        net: Net,
        secrets: Secrets,
        clock: Clock,
    ) -> Self {
        Self {
            config,
            net,
            secrets,
            clock,
        }
    }

    async fn headers(&self, id: &str, body: &[u8]) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("interceptor"));
        for (name, value) in &self.config.headers {
            let secret = value.read(&self.secrets).await?;
            let what = format!("the value of `{name}`");
            headers.insert(name, secrets::header("", &secret, &what)?);
        }
        let seconds = (self.clock)().0 / 1_000_000_000;
        let of = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| Failure::last("its id can't stand in a header"))
        };
        headers.insert("webhook-id", of(id)?);
        headers.insert("webhook-timestamp", HeaderValue::from(seconds));
        if let Some(source) = &self.config.secret {
            let secret = secrets::read(source, &self.secrets).await?;
            let signature = sign(&secret, id, seconds, body).map_err(Failure::unwelcome)?;
            headers.insert("webhook-signature", of(&signature)?);
        }
        Ok(headers)
    }

    async fn body(&self, job: &Job) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let Some(template) = &self.config.template else {
            return Ok(Zeroizing::new(body(&job.facts).into_bytes()));
        };
        let mut values = BTreeMap::new();
        for (name, value) in &self.config.values {
            values.insert(name.clone(), value.read(&self.secrets).await?);
        }
        template.render(&job.facts, &job.id, &values)
    }
}

impl Sink for Webhook {
    async fn deliver(&mut self, job: &Job) -> Result<Told, Failure> {
        let url = url(&self.config.url.read(&self.secrets).await?)?;
        let body = self.body(job).await?;
        let headers = self.headers(&job.id, &body).await?;
        let body = Bytes::copy_from_slice(&body);
        let answer = self.net.post(&url, headers, body, false).await?;
        answer.check(url.host())?;
        Ok(Told::default())
    }
}

/// The URL that a secret is.
pub(super) fn url(secret: &Secret) -> Result<ServiceUrl, Failure> {
    ServiceUrl::parse(text(secret, "its URL")?)
        .map_err(|why| Failure::unwelcome(format!("its URL can't be used: {why}")))
}

/// The signature of `body`, sent as `id` at `seconds`; else what is wrong with the secret.
pub(super) fn sign(secret: &Secret, id: &str, seconds: u64, body: &[u8]) -> Result<String, String> {
    let key = key(secret)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{id}.{seconds}.").as_bytes());
    context.update(body);
    Ok(format!("v1,{}", STANDARD.encode(context.sign().as_ref())))
}

fn key(secret: &Secret) -> Result<Zeroizing<Vec<u8>>, String> {
    let wrong = || {
        format!(
            "its signing secret isn't `{PREFIX}` and base64 of {} to {} bytes; `echo {PREFIX}$(openssl rand -base64 32)` makes one",
            KEY_BYTES.start(),
            KEY_BYTES.end()
        )
    };
    let encoded = secret
        .expose()
        .strip_prefix(PREFIX.as_bytes())
        .ok_or_else(wrong)?;
    let key = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| wrong())?);
    if KEY_BYTES.contains(&key.len()) {
        Ok(key)
    } else {
        Err(wrong())
    }
}

/// The body where there is no template: what templates can name, under the same names. It is the same at every
/// attempt.
fn body(facts: &Facts) -> String {
    let skipped = [
        "delivery", "event", "severity", "summary", "time", "trigger",
    ];
    let names = VARIABLES.into_iter().filter(|name| !skipped.contains(name));
    let data: serde_json::Map<String, serde_json::Value> = names
        .filter_map(|name| Some((name.to_owned(), facts.variable(name, "")?.into())))
        .collect();
    json!({
        "type": format!("approval.{}", facts.event),
        "timestamp": facts.time.to_string(),
        "data": data,
    })
    .to_string()
}
