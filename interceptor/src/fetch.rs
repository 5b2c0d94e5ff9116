//! What is asked of others on the network by HTTP: TLS, a bound on time and size, no redirects.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::time::timeout;

/// How long an answer may take, whole.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest answer, in bytes: the keys of an identity provider are some KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Asks.
#[derive(Debug, Clone)]
pub(crate) struct Fetch(Client<HttpsConnector<HttpConnector>, Body>);

/// What is sent.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// `bytes`, to be sent.
pub(crate) fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

impl Fetch {
    /// Believes the system's authorities and those of `roots`, as PEM.
    ///
    /// # Errors
    /// Where one of those can't be read.
    pub(crate) fn new(roots: &[String]) -> io::Result<Self> {
        let tls = tls(roots)?;
        // Plain HTTP only where the configuration says so, which it may of this host alone.
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// The answer to `request`, whole.
    ///
    /// # Errors
    /// Where there is none in time, or it is too large.
    pub(crate) async fn ask(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> Result<http::Response<Vec<u8>>, Failed> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let failed = |what: String| Failed(format!("{host}: {what}"));
        let asked = async {
            let (head, body) = self.begin(request.map(body)).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| failed(error.to_string()))?;
            Ok(http::Response::from_parts(head, body.to_bytes().to_vec()))
        };
        timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err(failed(format!("no answer within {} s", PATIENCE.as_secs()))))
    }

    /// The head of the answer to `request`, with its body to come. For what is too large for memory; how long it may
    /// take is for who asks to say.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) async fn begin(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, Failed> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let response = self.0.request(request).await;
        response.map_err(|error| Failed(format!("{host}: {}", chain(&error))))
    }
}

impl<'c> openidconnect::AsyncHttpClient<'c> for Fetch {
    type Error = Failed;
    type Future = BoxFuture<'static, Result<http::Response<Vec<u8>>, Failed>>;

    fn call(&'c self, request: http::Request<Vec<u8>>) -> Self::Future {
        let fetch = self.clone();
        Box::pin(async move { fetch.ask(request).await })
    }
}

/// TLS as a client that shows no certificate, and believes the system's authorities and those of `roots`, as PEM.
///
/// # Errors
/// Where one of those can't be read.
pub(crate) fn tls(roots: &[String]) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = builder.with_root_certificates(authorities(roots)?);
    Ok(builder.with_no_client_auth())
}

/// The system's authorities and those of `roots`, as PEM.
///
/// # Errors
/// Where one of those can't be read.
pub(crate) fn authorities(roots: &[String]) -> io::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    for pem in roots {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(io::Error::other)?;
            store.add(certificate).map_err(io::Error::other)?;
        }
    }
    Ok(store)
}

/// An error with what is behind it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
