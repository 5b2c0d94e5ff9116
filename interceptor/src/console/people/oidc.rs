//! Sign-in by OpenID Connect: authorization code with PKCE.
//!
//! `openidconnect` holds ID tokens to issuer, audience, nonce, time, algorithm and signature. What is ours: a callback
//! counts once, in the browser that set out, for the provider that it set out to; keys are fetched for each sign-in, so
//! that rotated ones are known; and whom a token names is no name that somebody on this host has.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};

use openidconnect::{
    AdditionalClaims, AuthenticationFlow, AuthorizationCode, Client, ClientId, ClientSecret,
    CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, IdTokenFields,
    IssuerUrl, LogoutRequest, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier,
    PostLogoutRedirectUrl, ProviderMetadataWithLogout, RedirectUrl, Scope, StandardErrorResponse,
    StandardTokenResponse, TokenResponse as _, UserInfoClaims,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreErrorResponseType, CoreGenderClaim, CoreIdToken,
        CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
        CoreResponseType, CoreRevocableToken, CoreRevocationErrorResponse,
        CoreTokenIntrospectionResponse, CoreTokenType,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{hashed, secret};
use crate::{
    approval::Voter,
    console::setup::Provider,
    control::{Identity, Way},
    fetch::{Fetch, chain},
    inert::acts_or_hides,
    sync::lock,
};

/// How long somebody may take at the provider.
const FLOW_MAX: Duration = Duration::from_secs(10 * 60);

/// Sign-ins that may be under way at once; the oldest gives way.
const FLOWS_MAX: usize = 1_000;

/// Groups of one person that are looked at.
const GROUPS_MAX: usize = 1_000;

/// Algorithms by which only the provider can sign: with a shared secret the console could.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// All claims that aren't standard ones.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Claims(Map<String, Value>);

impl AdditionalClaims for Claims {}

type Tokens = StandardTokenResponse<
    IdTokenFields<
        Claims,
        EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;

type Peer = Client<
    Claims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Tokens,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// The provider, and who is on the way to it.
pub(in crate::console) struct Oidc {
    provider: Provider,
    origin: Box<str>,
    fetch: Fetch,
    flows: Mutex<HashMap<[u8; 32], Flow>>,
}

/// Somebody who is at the provider.
struct Flow {
    /// What the browser that set out has in a cookie.
    browser: [u8; 32],
    nonce: Nonce,
    verifier: PkceCodeVerifier,
    /// Where they wanted to.
    next: String,
    begun: Instant,
}

/// What the provider sends a browser back with.
#[derive(Debug, Default, Deserialize)]
pub(in crate::console) struct Callback {
    #[serde(default)]
    code: String,
    #[serde(default)]
    state: String,
    /// RFC 9207.
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Somebody whom the provider knows.
pub(in crate::console) struct Known {
    pub(in crate::console) identity: Identity,
    pub(in crate::console) id_token: Box<str>,
    pub(in crate::console) next: String,
}

impl Oidc {
    pub(in crate::console) fn new(provider: Provider, origin: Box<str>, fetch: Fetch) -> Self {
        Self {
            provider,
            origin,
            fetch,
            flows: Mutex::default(),
        }
    }

    /// The provider's host, for people.
    pub(in crate::console) fn host(&self) -> String {
        let uri = self.provider.issuer.parse::<http::Uri>();
        uri.ok()
            .and_then(|uri| uri.host().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Where to send a browser that wants to `next`, and what it keeps in a cookie meanwhile.
    ///
    /// # Errors
    /// Where the provider can't be asked.
    pub(in crate::console) async fn begin(&self, next: String) -> Result<(String, String), String> {
        let (peer, _) = self.peer().await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let mut request = peer.authorize_url(
            AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
            CsrfToken::new_random,
            Nonce::new_random,
        );
        for scope in &self.provider.scopes {
            request = request.add_scope(Scope::new(scope.to_string()));
        }
        let (url, state, nonce) = request.set_pkce_challenge(challenge).url();
        let browser = secret()?;
        let flow = Flow {
            browser: hashed(&browser),
            nonce,
            verifier,
            next,
            begun: Instant::now(),
        };
        let mut flows = lock(&self.flows);
        flows.retain(|_, flow| flow.begun.elapsed() < FLOW_MAX);
        if flows.len() >= FLOWS_MAX
            && let Some(oldest) = flows
                .iter()
                .min_by_key(|(_, flow)| flow.begun)
                .map(|(state, _)| *state)
        {
            flows.remove(&oldest);
        }
        flows.insert(hashed(state.secret()), flow);
        Ok((url.to_string(), browser))
    }

    /// Who comes back, in a browser whose cookie is `browser`.
    ///
    /// # Errors
    /// Why nobody does; for people.
    pub(in crate::console) async fn finish(
        &self,
        callback: Callback,
        browser: Option<&str>,
    ) -> Result<Known, String> {
        // It is used up, whatever comes of it.
        let flow = lock(&self.flows).remove(&hashed(&callback.state));
        let flow = flow
            .filter(|flow| flow.begun.elapsed() < FLOW_MAX)
            .ok_or("nobody set out with this, or too long ago, or it has been used")?;
        if browser.map(hashed) != Some(flow.browser) {
            return Err("another browser set out with this".to_owned());
        }
        if callback
            .iss
            .is_some_and(|issuer| issuer != self.provider.issuer)
        {
            return Err("another provider answers than was asked".to_owned());
        }
        if let Some(error) = callback.error {
            let why = callback.error_description.unwrap_or_default();
            return Err(format!("the provider refuses: {error} {why}"));
        }
        let (peer, _) = self.peer().await?;
        let tokens = peer
            .exchange_code(AuthorizationCode::new(callback.code))
            .map_err(|error| error.to_string())?
            .set_pkce_verifier(flow.verifier)
            .request_async(&self.fetch)
            .await
            .map_err(|error| format!("the provider gives no tokens: {error}"))?;
        let id_token = tokens.id_token().ok_or("the provider gives no ID token")?;
        let verifier = peer.id_token_verifier().set_allowed_algs(ALGORITHMS);
        let claims = id_token
            .claims(&verifier, &flow.nonce)
            .map_err(|error| format!("the provider's ID token doesn't hold: {error}"))?;
        let mut all = object(claims)?;
        let wanted = [&self.provider.name_claim, &self.provider.groups_claim];
        if wanted.iter().any(|claim| !all.contains_key(&***claim))
            && let Ok(request) = peer.user_info(
                tokens.access_token().clone(),
                Some(claims.subject().clone()),
            )
        {
            // It is held to the same subject; what it lacks is missing below.
            let more: Result<UserInfoClaims<Claims, CoreGenderClaim>, _> =
                request.request_async(&self.fetch).await;
            let more =
                more.map_err(|error| format!("the provider says nothing of who that is: {error}"))?;
            for (name, value) in object(&more)? {
                all.entry(name).or_insert(value);
            }
        }
        let voter = self.voter(&all)?;
        Ok(Known {
            identity: Identity {
                voter,
                way: Way::Oidc,
                at_most: None,
            },
            id_token: id_token.to_string().into(),
            next: flow.next,
        })
    }

    /// Where a browser is sent to be signed out at the provider as well, if that has such a place.
    pub(in crate::console) async fn sign_out(&self, id_token: &str) -> Option<String> {
        let (_, metadata) = self.peer().await.ok()?;
        let endpoint = metadata
            .additional_metadata()
            .end_session_endpoint
            .clone()?;
        let token: CoreIdToken = id_token.parse().ok()?;
        let request = LogoutRequest::from(endpoint)
            .set_id_token_hint(&token)
            .set_client_id(ClientId::new(self.provider.client_id.to_string()));
        let back = PostLogoutRedirectUrl::new(format!("{}/sign-in", self.origin)).ok()?;
        Some(
            request
                .set_post_logout_redirect_uri(back)
                .http_get_url()
                .to_string(),
        )
    }

    /// The provider as it says that it is now, with its keys of now.
    async fn peer(&self) -> Result<(Peer, ProviderMetadataWithLogout), String> {
        let issuer =
            IssuerUrl::new(self.provider.issuer.clone()).map_err(|error| error.to_string())?;
        let metadata = ProviderMetadataWithLogout::discover_async(issuer, &self.fetch)
            .await
            .map_err(|error| format!("the identity provider can't be asked: {}", chain(&error)))?;
        let redirect = RedirectUrl::new(format!("{}/sign-in/callback", self.origin))
            .map_err(|error| error.to_string())?;
        let secret = self.provider.client_secret.clone().map(ClientSecret::new);
        let id = ClientId::new(self.provider.client_id.to_string());
        let client = Client::from_provider_metadata(metadata.clone(), id, secret);
        Ok((client.set_redirect_uri(redirect), metadata))
    }

    /// Whom `claims` name.
    fn voter(&self, claims: &Map<String, Value>) -> Result<Voter, String> {
        let Provider {
            name_claim,
            groups_claim,
            aliases,
            ..
        } = &self.provider;
        let name = claims.get(&**name_claim).and_then(Value::as_str).ok_or_else(|| {
            format!("the provider doesn't say who that is: claim `{name_claim}` (`console: {{oidc: {{name_claim: …}}}}`) is missing")
        })?;
        if &**name_claim == "email" && claims.get("email_verified") != Some(&Value::Bool(true)) {
            return Err("the provider doesn't say that this e-mail address is verified (`email_verified`); name another claim as `console: {oidc: {name_claim: …}}`".to_owned());
        }
        let fits = (1..=256).contains(&name.len())
            && !name.contains(|c: char| acts_or_hides(c) || c.is_whitespace());
        if !fits {
            return Err(format!("claim `{name_claim}` is no name"));
        }
        let groups = match claims.get(&**groups_claim) {
            Some(Value::Array(groups)) => groups
                .iter()
                .filter_map(Value::as_str)
                .take(GROUPS_MAX)
                .map(Into::into)
                .collect(),
            Some(Value::String(group)) => [group.as_str().into()].into(),
            _ => Box::default(),
        };
        Ok(Voter {
            name: called(name, aliases),
            uid: None,
            groups,
        })
    }
}

/// What somebody is called here whom the provider calls `name`. Names without an `@` are marked, so that nobody becomes
/// a user of this host by being called so elsewhere.
fn called(name: &str, aliases: &BTreeMap<Box<str>, Box<str>>) -> Box<str> {
    if let Some(alias) = aliases.get(name) {
        return alias.clone();
    }
    if name.contains('@') {
        name.to_lowercase().into()
    } else {
        format!("oidc:{name}").into()
    }
}

fn object(claims: &impl Serialize) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err("the provider's claims are none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_becomes_a_user_of_this_host_by_a_name() {
        let aliases = BTreeMap::from([("carol@example.com".into(), "carol".into())]);
        for (name, expected) in [
            ("carol@example.com", "carol"),
            ("Alice@Example.com", "alice@example.com"),
            ("root", "oidc:root"),
            ("carol", "oidc:carol"),
        ] {
            assert_eq!(&*called(name, &aliases), expected);
        }
    }
}
