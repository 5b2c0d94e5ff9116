//! The proxies that interceptor is compared with, each set up as its makers advise: one thread, connections to
//! the server are kept and shared where it can, its certificate is verified.
//!
//! What they don't do: decide, mask, record, and, except mitmproxy, intercept; and nginx asks its server over
//! HTTP/1.1, whatever it is asked over.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use interceptor_tests::scratch;
use serde_json::{Value, json};

use super::site::{self, Door, Ports, Site};
use crate::{bench::proxy::Proxy, setup};

/// A reverse proxy with TLS on both legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// nginx.
    Nginx,
    /// haproxy; TLS that it lets through it splices.
    Haproxy,
    /// envoy.
    Envoy,
    /// mitmproxy, as a reverse proxy.
    Mitmproxy,
}

impl Peer {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::Envoy, Self::Mitmproxy];

    /// Its name in the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Mitmproxy => "mitmproxy",
        }
    }

    /// Installs it, if it isn't.
    ///
    /// # Errors
    /// Where it can't be.
    pub(super) fn install(self) -> Result<()> {
        match self {
            // The server is the same program.
            Self::Nginx => Ok(()),
            Self::Haproxy => setup::haproxy(),
            Self::Envoy => setup::envoy().map(drop),
            Self::Mitmproxy => setup::mitmproxy().map(drop),
        }
    }

    /// Whether it can let TLS through as it is.
    pub(super) const fn lets_through(self) -> bool {
        matches!(self, Self::Haproxy | Self::Envoy)
    }

    /// How to ask for its version.
    ///
    /// # Errors
    /// Where it isn't there.
    pub(super) fn version(self) -> Result<Command> {
        let (program, argument) = match self {
            Self::Nginx => ("/usr/sbin/nginx".into(), "-v"),
            Self::Haproxy => ("/usr/sbin/haproxy".into(), "-v"),
            Self::Envoy => (setup::envoy()?, "--version"),
            Self::Mitmproxy => (setup::mitmproxy()?, "--version"),
        };
        let mut command = Command::new(program);
        command.arg(argument);
        Ok(command)
    }

    /// Starts it in front of `site`.
    ///
    /// # Errors
    /// Where it isn't installed or doesn't start; with what it said.
    pub(super) fn start(self, site: &Site) -> Result<(Proxy, Ports)> {
        let folder = scratch::folder(self.name())?;
        let ports = Ports::free()?;
        let mut command = match self {
            Self::Nginx => nginx(site, ports, &folder),
            Self::Haproxy => haproxy(site, ports, &folder),
            Self::Envoy => envoy(site, ports, &folder),
            Self::Mitmproxy => mitmproxy(site, ports, &folder),
        }?;
        let proxy = Proxy::start(self.name(), ports.of(Door::Kept), &mut command, &folder)?;
        Ok((proxy, ports))
    }
}

fn nginx(site: &Site, ports: Ports, folder: &Path) -> Result<Command> {
    let tls = format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;",
        site.proxy.certificate.display(),
        site.proxy.key.display()
    );
    let verify = format!(
        "proxy_ssl_verify on; proxy_ssl_trusted_certificate {}; proxy_ssl_name localhost; \
         proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_max_temp_file_size 0;",
        site.authority.display()
    );
    let configuration = site::nginx(
        folder,
        &format!(
            "upstream kept {{ server 127.0.0.1:{}; keepalive 512; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{} ssl http2; {tls} {verify} location / {{ proxy_pass https://kept;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n\
             server {{ listen 127.0.0.1:{} ssl; {tls} {verify} proxy_ssl_session_reuse off;\n\
             location / {{ proxy_pass https://127.0.0.1:{}; }} }}\n",
            site.ports.of(Door::Kept),
            ports.of(Door::Kept),
            ports.of(Door::Fresh),
            site.ports.of(Door::Fresh),
        ),
    )?;
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(configuration);
    Ok(command)
}

fn haproxy(site: &Site, ports: Ports, folder: &Path) -> Result<Command> {
    let pair = pair(site, folder)?;
    let listen = |door| format!("bind 127.0.0.1:{}", ports.of(door));
    let server = |door| format!("server site 127.0.0.1:{}", site.ports.of(door));
    let verify = format!(
        "ssl verify required ca-file {} sni str(localhost)",
        site.authority.display()
    );
    let file = folder.join("haproxy.cfg");
    fs::write(
        &file,
        format!(
            "global\n nbthread 1\n maxconn 4000\n\
             defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
             frontend kept\n {} ssl crt {pair} alpn h2,http/1.1\n use_backend two if {{ ssl_fc_alpn h2 }}\n default_backend one\n\
             backend one\n http-reuse always\n {} {verify} alpn http/1.1\n\
             backend two\n http-reuse always\n {} {verify} alpn h2\n\
             frontend fresh\n {} ssl crt {pair} alpn http/1.1 no-tls-tickets\n default_backend fresh\n\
             backend fresh\n http-reuse never\n option httpclose\n {} {verify} alpn http/1.1 no-ssl-reuse\n\
             frontend through\n mode tcp\n option splice-auto\n {}\n default_backend through\n\
             backend through\n mode tcp\n option splice-auto\n {}\n",
            listen(Door::Kept),
            server(Door::Kept),
            server(Door::Kept),
            listen(Door::Fresh),
            server(Door::Fresh),
            listen(Door::Through),
            server(Door::Through),
            pair = pair.display(),
        ),
    )?;
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

fn envoy(site: &Site, ports: Ports, folder: &Path) -> Result<Command> {
    // What is `null` is as if it weren't there.
    let listener = |door: Door, filter: Value, tls: Option<Value>| {
        json!({
            "name": format!("{door:?}"),
            "address": address(ports.of(door)),
            "filter_chains": [{"filters": [filter], "transport_socket": tls}],
        })
    };
    let cluster = |door: Door, tls: Option<Value>, options: Option<Value>| {
        let name = format!("{door:?}");
        let endpoint = json!({"endpoint": {"address": address(site.ports.of(door))}});
        json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            "transport_socket": tls,
            "typed_extension_protocol_options":
                options.map(|options| json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})),
        })
    };
    let accept = |alpn: &[&str]| {
        json!({"name": "tls", "typed_config": {
            "@type": format!("{ENVOY}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "common_tls_context": {
                "alpn_protocols": alpn,
                "tls_certificates": [{
                    "certificate_chain": {"filename": site.proxy.certificate},
                    "private_key": {"filename": site.proxy.key},
                }],
            },
        }})
    };
    let connect = |door: Door| {
        json!({"name": "tls", "typed_config": {
            "@type": format!("{ENVOY}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": "localhost",
            "max_session_keys": u32::from(door == Door::Kept),
            "common_tls_context": {"validation_context": {"trusted_ca": {"filename": site.authority}}},
        }})
    };
    let options = |door: Door| {
        json!({
            "@type": format!("{ENVOY}.upstreams.http.v3.HttpProtocolOptions"),
            "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
            "common_http_protocol_options":
                (door == Door::Fresh).then(|| json!({"max_requests_per_connection": 1})),
        })
    };
    let through = json!({"name": "through", "typed_config": {
        "@type": format!("{ENVOY}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "through",
        "cluster": format!("{:?}", Door::Through),
    }});
    let (kept, fresh) = (Door::Kept, Door::Fresh);
    let configuration = json!({"static_resources": {
        "listeners": [
            listener(kept, envoy_http(kept), Some(accept(&["h2", "http/1.1"]))),
            listener(fresh, envoy_http(fresh), Some(accept(&["http/1.1"]))),
            listener(Door::Through, through, None),
        ],
        "clusters": [
            cluster(kept, Some(connect(kept)), Some(options(kept))),
            cluster(fresh, Some(connect(fresh)), Some(options(fresh))),
            cluster(Door::Through, None, None),
        ],
    }});
    let file = folder.join("envoy.json");
    fs::write(&file, serde_json::to_string(&configuration)?)?;
    let mut command = Command::new(setup::envoy()?);
    command
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warn",
            "-c",
        ])
        .arg(file);
    Ok(command)
}

/// Where envoy's types of extensions are.
const ENVOY: &str = "type.googleapis.com/envoy.extensions";

/// Sends all requests at `door` to the cluster of its name, without a time limit.
fn envoy_http(door: Door) -> Value {
    let name = format!("{door:?}");
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
    json!({"name": "http", "typed_config": {
        "@type": format!("{ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": format!("{ENVOY}.filters.http.router.v3.Router")},
        }],
    }})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn mitmproxy(site: &Site, ports: Ports, folder: &Path) -> Result<Command> {
    let pair = pair(site, folder)?;
    let mut command = Command::new(setup::mitmproxy()?);
    for door in [Door::Kept, Door::Fresh] {
        let (from, to) = (ports.of(door), site.ports.of(door));
        command.args([
            "--mode",
            &format!("reverse:https://127.0.0.1:{to}@127.0.0.1:{from}"),
        ]);
    }
    command
        .arg("--quiet")
        .args(["--set", &format!("confdir={}", folder.display())])
        .args([
            "--set",
            &format!(
                "ssl_verify_upstream_trusted_ca={}",
                site.authority.display()
            ),
        ])
        .args(["--set", "stream_large_bodies=1m"])
        .args(["--certs", &format!("*={}", pair.display())]);
    Ok(command)
}

/// Key and certificate in one file.
fn pair(site: &Site, folder: &Path) -> Result<std::path::PathBuf> {
    let file = folder.join("pair.pem");
    let parts = [&site.proxy.key, &site.proxy.certificate].map(fs::read_to_string);
    let text = parts.into_iter().collect::<Result<String, _>>()?;
    fs::write(&file, text).context("the certificate of a proxy can't be written")?;
    Ok(file)
}
