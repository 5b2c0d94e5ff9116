//! Where notifiers' secrets come from. The process that they run in can read no files, so it is given a way to ask.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use http::HeaderValue;
use interceptor_core::login::Secret;
use serde::{Deserialize, Deserializer, de};

use super::queue::Failure;
use crate::secret::Source;

/// Gives the secret that stands at a source now, or says for people why there is none. Asked at every attempt, so that
/// a secret can be changed without a restart.
pub type Secrets = Arc<dyn Fn(Source) -> BoxFuture<'static, Result<Secret, String>> + Send + Sync>;

/// Secrets that were read before.
#[must_use]
pub fn given(secrets: Vec<(Source, Secret)>) -> Secrets {
    Arc::new(move |source| {
        let found = secrets.iter().find(|(known, _)| *known == source);
        let found = found.map(|(_, secret)| secret.clone());
        let found = found.ok_or_else(|| format!("{source} was not read"));
        Box::pin(std::future::ready(found))
    })
}

/// Secrets read from where they stand, each time.
#[must_use]
pub fn read_each_time() -> Secrets {
    Arc::new(|source| {
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || {
                source.read().map_err(|error| error.to_string())
            });
            read.await.unwrap_or_else(|error| Err(error.to_string()))
        })
    })
}

/// A text that may be a secret: written out, or where it stands.
#[derive(Clone, PartialEq, Eq)]
pub enum Text {
    /// Written out in the configuration. Not printed all the same: it may be one that somebody forgot to take out.
    Plain(Box<str>),
    /// A secret.
    Secret(Source),
}

impl Text {
    /// Where it stands, if it is a secret.
    #[must_use]
    pub const fn source(&self) -> Option<&Source> {
        match self {
            Self::Plain(_) => None,
            Self::Secret(source) => Some(source),
        }
    }

    /// It, as a secret.
    pub(super) async fn read(&self, secrets: &Secrets) -> Result<Secret, Failure> {
        match self {
            Self::Plain(text) => Ok(Secret::new(text.as_bytes().to_vec())),
            Self::Secret(source) => read(source, secrets).await,
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => f.write_str("Plain(…)"),
            Self::Secret(source) => f.debug_tuple("Secret").field(source).finish(),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or where a secret stands: `{file: /path}`, `{env: NAME}` or `{command: [/path, …]}`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text::Plain(text.into()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Text, E> {
                Ok(Text::Plain(number.to_string().into()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
                Source::deserialize(de::value::MapAccessDeserializer::new(map)).map(Text::Secret)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// The secret at `source`, at an attempt: it may be mended before the next.
pub(super) async fn read(source: &Source, secrets: &Secrets) -> Result<Secret, Failure> {
    secrets(source.clone())
        .await
        .map_err(|error| Failure::unwelcome(format!("its secret is missing: {error}")))
}

/// `secret` as text, where it is any.
pub(super) fn text<'a>(secret: &'a Secret, what: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(secret.expose())
        .map_err(|_| Failure::unwelcome(format!("{what} is no text")))
}

/// The header value `prefix` and `secret`, which nothing prints.
pub(super) fn header(prefix: &str, secret: &Secret, what: &str) -> Result<HeaderValue, Failure> {
    let bytes = zeroize::Zeroizing::new([prefix.as_bytes(), secret.expose()].concat());
    let mut value = HeaderValue::from_bytes(&bytes).map_err(|_| {
        Failure::unwelcome(format!(
            "{what} can't stand in a header: it has control characters"
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}
