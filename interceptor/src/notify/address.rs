//! Where notifiers send to: URLs, with what is wrong with one said in the configuration's words.

use std::{fmt, net::IpAddr};

use http::{Uri, uri::Scheme};

/// The URL of a service: `https`, or `http` on this host. It may hold a token, so nothing prints more than its host.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceUrl(Uri);

/// The schemes of a kind of URL: with TLS, and without.
pub(super) struct Schemes {
    secure: &'static str,
    clear: &'static str,
}

pub(super) const HTTP: Schemes = Schemes {
    secure: "https",
    clear: "http",
};
pub(super) const WEB_SOCKET: Schemes = Schemes {
    secure: "wss",
    clear: "ws",
};

impl ServiceUrl {
    /// The URL that `text` is. Errors say nothing of it but its host.
    ///
    /// # Errors
    /// Where it is none, or would be sent in the clear over a network.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::of(text, &HTTP)
    }

    pub(super) fn of(text: &str, schemes: &Schemes) -> Result<Self, String> {
        let secure = schemes.secure;
        let wrong = || format!("this is no URL: `{secure}://host.example/path` is");
        let uri: Uri = text.trim().parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        if authority.as_str().contains('@') {
            return Err(format!(
                "a URL holds no user or password; a header does: `headers: {{Authorization: …}}`, with {}",
                authority.host()
            ));
        }
        if authority.host().is_empty() {
            return Err(wrong());
        }
        if scheme == schemes.secure {
            return Ok(Self(uri));
        }
        if scheme != schemes.clear {
            return Err(wrong());
        }
        if !is_loopback(authority.host()) {
            return Err(format!(
                "`{}://{}` would send it in the clear: `{secure}://` does not; only loopback may do without",
                schemes.clear,
                authority.host()
            ));
        }
        Ok(Self(uri))
    }

    pub(super) fn is_secure(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS) || self.0.scheme_str() == Some(WEB_SOCKET.secure)
    }

    /// Without brackets, where it is an address.
    pub(super) fn host(&self) -> &str {
        bare(self.0.host().unwrap_or_default())
    }

    pub(super) fn port(&self) -> u16 {
        let default = if self.is_secure() { 443 } else { 80 };
        self.0.port_u16().unwrap_or(default)
    }

    /// Host and port as a request names them.
    pub(super) fn authority(&self) -> &str {
        self.0.authority().map_or("", http::uri::Authority::as_str)
    }

    /// Path and query.
    pub(super) fn path(&self) -> &str {
        self.0
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str)
    }

    /// Whole, with whatever it holds.
    pub(super) fn expose(&self) -> String {
        self.0.to_string()
    }

    /// With `path` behind it.
    pub(super) fn join(&self, path: &str) -> Option<Self> {
        let text = format!("{}/{path}", self.expose().trim_end_matches('/'));
        text.parse().ok().map(Self)
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}/…",
            self.0.scheme_str().unwrap_or_default(),
            self.authority()
        )
    }
}

/// Whether `host` is this host, whatever a resolver says.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || bare(host)
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// An IPv6 address stands in brackets in a URL.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_out_in_the_clear_stays_on_this_host() {
        for (text, expected) in [
            (
                "https://hooks.example.com/a?b=c",
                Ok(("hooks.example.com", 443, true)),
            ),
            ("https://[::1]:8443/", Ok(("::1", 8443, true))),
            ("http://127.0.0.1:9/x", Ok(("127.0.0.1", 9, false))),
            ("http://localhost/", Ok(("localhost", 80, false))),
            (
                "http://hooks.example.com/t0ken",
                Err(
                    "`http://hooks.example.com` would send it in the clear: `https://` does not; only loopback may do without",
                ),
            ),
            (
                "ftp://x/",
                Err("this is no URL: `https://host.example/path` is"),
            ),
            (
                "hooks",
                Err("this is no URL: `https://host.example/path` is"),
            ),
            (
                "https://u:p4ss@h/",
                Err(
                    "a URL holds no user or password; a header does: `headers: {Authorization: …}`, with h",
                ),
            ),
        ] {
            let got = ServiceUrl::parse(text);
            let got = got
                .as_ref()
                .map(|url| (url.host(), url.port(), url.is_secure()));
            assert_eq!(got.map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn a_token_in_a_url_is_not_printed() {
        let url = ServiceUrl::parse("https://hooks.example.com/services/t0ken?sig=s3cret").unwrap();
        assert_eq!(format!("{url:?}"), "https://hooks.example.com/…");
        assert_eq!(url.path(), "/services/t0ken?sig=s3cret");
    }
}
