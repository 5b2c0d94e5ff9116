//! What changes in a request on its way: what a rule rewrites, and the credential that it gets.

use aws_lc_rs::constant_time;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::refuse::Problem;
use crate::{
    login::{Authorization, Place, Secret},
    mask::body::BodyPlan,
    operation::http::{HttpRequest, Rewrite, percent_decoded, percent_encode},
    record::Event,
};

/// Fields that ask for a part of the answer.
const RANGE: [&[u8]; 2] = [b"range", b"if-range"];

/// The changes to one request.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    rewrite: Option<&'a Rewrite>,
    credential: Option<Injected>,
    /// The answer has to be whole: a part of it couldn't be masked.
    whole: bool,
}

/// A credential as it stands in a request.
#[derive(Debug)]
struct Injected {
    place: Injection,
    value: Secret,
}

#[derive(Debug)]
enum Injection {
    Header(Box<str>),
    Query(Box<str>),
}

/// Why a request that a credential is for doesn't get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The agent presented something other than the placeholder.
    Foreign,
    /// The secret has characters that can't stand where it has to.
    Unfit,
}

impl Mismatch {
    /// What the agent is told.
    #[must_use]
    pub fn problem(self, credential: usize) -> Problem {
        match self {
            Self::Foreign => Problem::foreign_credential(credential),
            Self::Unfit => Problem::upstream(&format!(
                "credential {credential} of interceptor's configuration can't stand in a request"
            )),
        }
    }

    /// What goes on record of operation `number`.
    #[must_use]
    pub fn event(self, number: u64, credential: usize) -> Event {
        let error = match self {
            Self::Foreign => "the agent presented something other than the placeholder",
            Self::Unfit => "the secret has characters that no header field can have",
        };
        let detail = [
            ("operation", number.to_string()),
            ("credential", credential.to_string()),
            ("error", error.to_owned()),
        ];
        Event::notice("http_credential", detail)
    }
}

impl<'a> Changes<'a> {
    /// What `rewrite` and `authorization` change in `request`; whether the credential is used, which it isn't
    /// where the agent doesn't present the placeholder that it has to.
    ///
    /// # Errors
    /// Where the request may not go on.
    pub fn new(
        request: &HttpRequest,
        rewrite: Option<&'a Rewrite>,
        authorization: Option<&Authorization>,
    ) -> Result<Self, Mismatch> {
        let credential = match authorization {
            Some(authorization) => injected(authorization, request)?,
            None => None,
        };
        Ok(Self {
            rewrite,
            credential,
            whole: false,
        })
    }

    /// As well, whether `masks` need the whole answer.
    ///
    /// A server may answer a Range with everything (RFC 9110, section 14.2), so that the client gets on as well.
    #[must_use]
    pub fn masked_by(mut self, masks: &BodyPlan) -> Self {
        self.whole = !masks.is_empty() && masks.needs_whole();
        self
    }

    /// Whether there are any.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rewrite.is_none() && self.credential.is_none() && !self.whole
    }

    /// What goes on record of them: names only.
    pub fn events(
        &self,
        number: u64,
        authorization: Option<&Authorization>,
    ) -> impl Iterator<Item = Event> {
        let operation = move || ("operation", number.to_string());
        let rewritten = self.rewrite.map(|rewrite| {
            Event::notice(
                "http_rewritten",
                [operation(), ("changes", rewrite.summary())],
            )
        });
        let credited = authorization.filter(|_| self.credential.is_some());
        let credited = credited.map(|Authorization { credential, .. }| {
            let detail = [operation(), ("credential", credential.to_string())];
            Event::notice("http_credential", detail)
        });
        rewritten.into_iter().chain(credited)
    }

    /// Whether a header field of this name doesn't go on as it is.
    #[must_use]
    pub fn replace(&self, name: &[u8]) -> bool {
        if let Some(Injected {
            place: Injection::Header(known),
            ..
        }) = &self.credential
            && known.as_bytes().eq_ignore_ascii_case(name)
        {
            return true;
        }
        if self.whole && RANGE.iter().any(|range| name.eq_ignore_ascii_case(range)) {
            return true;
        }
        self.rewrite.is_some_and(|rewrite| {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            rewrite.headers.replaces(&name)
        })
    }

    /// The header fields that are added: names in lower case, values, and whether a value is secret.
    pub fn added(&self) -> impl Iterator<Item = (&str, &[u8], bool)> {
        let injected = match &self.credential {
            Some(Injected {
                place: Injection::Header(name),
                value,
            }) => Some((&**name, value.expose(), true)),
            _ => None,
        };
        let name = injected.map(|(name, ..)| name);
        let set = self.rewrite.map_or(&[][..], |rewrite| &rewrite.headers.set);
        set.iter()
            // The credential is what counts where a rule sets the same.
            .filter(move |(set, _)| name.is_none_or(|name| **set != *name))
            .map(|(name, value)| (&**name, value.as_bytes(), false))
            .chain(injected)
    }

    /// The target that takes the place of `target`, where it isn't the same.
    #[must_use]
    pub fn target(&self, target: &[u8]) -> Option<Bytes> {
        let injected = match &self.credential {
            Some(Injected {
                place: Injection::Query(name),
                value,
            }) => Some((name, value)),
            _ => None,
        };
        let query = self.rewrite.map(|rewrite| &rewrite.query);
        if injected.is_none() && query.is_none_or(|query| *query == Default::default()) {
            return None;
        }
        let replaced = |pair: &[u8]| {
            // Some servers part parameters at `;` as well: what one of them would find is found here.
            pair.split(|byte| *byte == b';').any(|part| {
                let name = part.split(|byte| *byte == b'=').next().unwrap_or_default();
                let name = String::from_utf8_lossy(&percent_decoded(name, true)).into_owned();
                query.is_some_and(|query| query.replaces(&name))
                    || injected.is_some_and(|(known, _)| **known == *name)
            })
        };
        let (path, before) = match memchr::memchr(b'?', target) {
            Some(at) => (target.get(..at), target.get(at + 1..)),
            None => (Some(target), None),
        };
        let mut out = path.unwrap_or_default().to_vec();
        let kept = before.unwrap_or_default().split(|byte| *byte == b'&');
        let kept = kept.filter(|pair| !pair.is_empty() && !replaced(pair));
        let mut between = b'?';
        for pair in kept {
            out.push(std::mem::replace(&mut between, b'&'));
            out.extend_from_slice(pair);
        }
        let set = query.map_or(&[][..], |query| &query.set);
        let set = set
            .iter()
            .filter(|(name, _)| injected.is_none_or(|(known, _)| known != name))
            .map(|(name, value)| (name, value.as_bytes()));
        let injected = injected.map(|(name, value)| (name, value.expose()));
        for (name, value) in set.chain(injected) {
            out.push(std::mem::replace(&mut between, b'&'));
            percent_encode(name.as_bytes(), &mut out);
            out.push(b'=');
            percent_encode(value, &mut out);
        }
        (out != target).then(|| out.into())
    }
}

/// How `authorization` stands in `request`; `None` where the agent asks for it with nothing.
fn injected(
    authorization: &Authorization,
    request: &HttpRequest,
) -> Result<Option<Injected>, Mismatch> {
    let Authorization {
        place,
        secret,
        placeholder,
        ..
    } = authorization;
    if let Some(placeholder) = placeholder {
        let presented = presented(place, request);
        match &*presented {
            [] => return Ok(None),
            [one] if constant_time::verify_slices_are_equal(one, placeholder.expose()).is_ok() => {}
            _ => return Err(Mismatch::Foreign),
        }
    }
    let secret = secret.expose();
    let authorization = || Injection::Header("authorization".into());
    let (place, value) = match place {
        Place::Bearer => (authorization(), [b"Bearer ", secret].concat()),
        Place::Basic(user) => {
            let pair = Secret::new([user.as_bytes(), b":", secret].concat());
            let encoded = STANDARD.encode(pair.expose());
            (authorization(), [b"Basic ", encoded.as_bytes()].concat())
        }
        Place::Header(name) => (Injection::Header(name.clone()), secret.to_vec()),
        Place::Query(name) => (Injection::Query(name.clone()), secret.to_vec()),
    };
    let value = Secret::new(value);
    let fits = match place {
        Injection::Header(_) => value
            .expose()
            .iter()
            .all(|byte| (b' '..=b'~').contains(byte)),
        Injection::Query(_) => true,
    };
    if !fits {
        return Err(Mismatch::Unfit);
    }
    Ok(Some(Injected { place, value }))
}

/// What the agent says in `place`, each time that it does.
fn presented(place: &Place, request: &HttpRequest) -> Vec<Vec<u8>> {
    let authorization = |scheme: &str| -> Vec<Vec<u8>> {
        let values = request.fields.all("authorization");
        let values = values.map(|value| match value.split_at_checked(scheme.len()) {
            Some((first, rest)) if first.eq_ignore_ascii_case(scheme.as_bytes()) => {
                rest.trim_ascii().to_vec()
            }
            // Of another scheme: never a placeholder, which has no spaces.
            _ => [b" ", value].concat(),
        });
        values.collect()
    };
    match place {
        Place::Bearer => authorization("Bearer "),
        Place::Basic(_) => {
            let passwords = authorization("Basic ").into_iter().map(|encoded| {
                let pair = STANDARD.decode(&encoded).unwrap_or_default();
                match memchr::memchr(b':', &pair) {
                    Some(at) => pair.get(at + 1..).unwrap_or_default().to_vec(),
                    None => b" ".to_vec(),
                }
            });
            passwords.collect()
        }
        Place::Header(name) => request.fields.all(name).map(<[u8]>::to_vec).collect(),
        Place::Query(name) => {
            let values = request.query_values(name).into_iter();
            values.map(String::into_bytes).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        glob::Glob,
        operation::http::{Change, Fields},
    };

    fn request(fields: &[(&str, &str)], query: &str) -> HttpRequest {
        let mut raw = Vec::new();
        let mut places = Vec::new();
        for (name, value) in fields {
            let start = raw.len();
            raw.extend_from_slice(name.as_bytes());
            let name = start..raw.len();
            raw.extend_from_slice(value.as_bytes());
            places.push((name.clone(), name.end..raw.len()));
        }
        HttpRequest {
            fields: Fields::new(raw.into(), places),
            query: Some(Bytes::copy_from_slice(query.as_bytes())),
            ..HttpRequest::default()
        }
    }

    fn authorization(place: Place, placeholder: Option<&str>) -> Authorization {
        Authorization {
            credential: 1,
            place,
            secret: Secret::new(b"s3 cret".to_vec()),
            placeholder: placeholder.map(|text| Secret::new(text.as_bytes().to_vec())),
        }
    }

    #[test]
    fn a_credential_stands_where_the_agent_presents_its_placeholder() {
        let header = |name: &str| Place::Header(name.into());
        let basic = Place::Basic("alice".into());
        let encoded = |text: &str| format!("basic {}", STANDARD.encode(text));
        let (right, wrong) = (encoded("me:stand-in"), encoded("me:other"));
        let authorization_is = |value: &'static str| Ok(Some(("authorization", value)));
        for (place, fields, expected) in [
            (
                Place::Bearer,
                vec![("Authorization", "bearer stand-in")],
                authorization_is("Bearer s3 cret"),
            ),
            (Place::Bearer, vec![], Ok(None)),
            (
                Place::Bearer,
                vec![("Authorization", "Bearer mine")],
                Err(Mismatch::Foreign),
            ),
            (
                Place::Bearer,
                vec![("Authorization", "stand-in")],
                Err(Mismatch::Foreign),
            ),
            (
                Place::Bearer,
                vec![("Authorization", "Basic stand-in")],
                Err(Mismatch::Foreign),
            ),
            (
                Place::Bearer,
                vec![
                    ("authorization", "Bearer stand-in"),
                    ("Authorization", "Bearer mine"),
                ],
                Err(Mismatch::Foreign),
            ),
            (
                basic.clone(),
                vec![("Authorization", &*right)],
                authorization_is("Basic YWxpY2U6czMgY3JldA=="),
            ),
            (
                basic.clone(),
                vec![("Authorization", &*wrong)],
                Err(Mismatch::Foreign),
            ),
            (
                basic,
                vec![("Authorization", "Basic stand-in")],
                Err(Mismatch::Foreign),
            ),
            (
                header("x-api-key"),
                vec![("X-API-Key", "stand-in")],
                Ok(Some(("x-api-key", "s3 cret"))),
            ),
            (
                header("x-api-key"),
                vec![("X-API-Key", "mine")],
                Err(Mismatch::Foreign),
            ),
        ] {
            let authorization = authorization(place.clone(), Some("stand-in"));
            let changes = Changes::new(&request(&fields, ""), None, Some(&authorization));
            let found = changes.map(|changes| {
                let added = changes.added().next();
                added.map(|(name, value, secret)| {
                    assert!(secret && changes.replace(name.to_ascii_uppercase().as_bytes()));
                    (name.to_owned(), String::from_utf8(value.to_vec()).unwrap())
                })
            });
            let expected =
                expected.map(|some| some.map(|(name, value)| (name.to_owned(), value.to_owned())));
            assert_eq!(found, expected, "{place:?} {fields:?}");
        }
    }

    #[test]
    fn without_a_placeholder_whatever_the_agent_says_is_replaced() {
        for fields in [&[][..], &[("Authorization", "Basic bWU6bWU=")]] {
            let request = request(fields, "");
            let authorization = authorization(Place::Bearer, None);
            let changes = Changes::new(&request, None, Some(&authorization)).unwrap();
            assert!(changes.credential.is_some() && changes.replace(b"Authorization"));
        }
        let mut authorization = authorization(Place::Bearer, None);
        authorization.secret = Secret::new(b"a\r\nX: y".to_vec());
        let changes = Changes::new(&request(&[], ""), None, Some(&authorization));
        assert_eq!(changes.unwrap_err(), Mismatch::Unfit);
    }

    #[test]
    fn parameters_are_set_left_out_and_kept_as_they_are() {
        let rewrite = Rewrite {
            query: Change {
                set: vec![("set".into(), "a b&".into())],
                remove: vec![Glob::new("utm_*")],
            },
            ..Rewrite::default()
        };
        let key = authorization(Place::Query("key".into()), None);
        for (target, rewrite, key, expected) in [
            ("/a?b=%41+c&&d", None, None, None),
            (
                "/a?b=%41+c&d",
                Some(&rewrite),
                None,
                Some("/a?b=%41+c&d&set=a%20b%26"),
            ),
            (
                "/a?set=1&%73et=2&utm_x=3&keep",
                Some(&rewrite),
                None,
                Some("/a?keep&set=a%20b%26"),
            ),
            (
                "/a?keep=1;utm_y=2",
                Some(&rewrite),
                None,
                Some("/a?set=a%20b%26"),
            ),
            ("/a", None, Some(&key), Some("/a?key=s3%20cret")),
            (
                "/a?key=mine&x=1",
                None,
                Some(&key),
                Some("/a?x=1&key=s3%20cret"),
            ),
            (
                "http://h/a?set=1",
                Some(&rewrite),
                Some(&key),
                Some("http://h/a?set=a%20b%26&key=s3%20cret"),
            ),
        ] {
            let query = target.split_once('?').unwrap_or_default().1;
            let changes = Changes::new(&request(&[], query), rewrite, key).unwrap();
            let found = changes.target(target.as_bytes());
            let found = found
                .as_deref()
                .map(|target| std::str::from_utf8(target).unwrap());
            assert_eq!(found, expected, "{target}");
        }
    }
}
