//! The server that everybody asks: one nginx with one worker.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use interceptor_tests::{
    certificates::{Certificates, Files},
    cluster::free_port,
    scratch,
};

use crate::bench::proxy::Proxy;

/// Which of a server's or a proxy's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Connections stay, on both sides of a proxy.
    Kept,
    /// A connection a request, on both sides of a proxy, and no session is resumed.
    Fresh,
    /// A proxy lets TLS through as it is.
    Through,
}

/// A port for each door.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    kept: u16,
    fresh: u16,
    through: u16,
}

/// The server, its files and the certificates of everybody.
#[derive(Debug)]
pub(super) struct Site {
    /// Where it listens.
    pub(super) ports: Ports,
    /// PEM of the authority that signed its certificate and those of proxies.
    pub(super) authority: PathBuf,
    /// What a reverse proxy presents.
    pub(super) proxy: Files,
    _server: Proxy,
}

/// About 1 KiB of JSON with something to mask.
pub(super) const ANSWER: &str = "/answer.json";

/// 256 MiB that no mask looks into.
pub(super) const OCTETS: &str = "/octets.bin";

/// 256 MiB of JSON, with something to mask in every object.
pub(super) const JSON: &str = "/large.json";

/// Says what was negotiated with the server itself.
pub(super) const NEGOTIATED: &str = "/negotiated";

/// A value of [`ANSWER`] that doesn't get past the masks.
pub(super) const SECRET: &str = "correct horse battery staple";

const LARGE_BYTES: usize = 256 << 20;

impl Ports {
    /// Free ones.
    pub(super) fn free() -> Result<Self> {
        Ok(Self {
            kept: free_port()?,
            fresh: free_port()?,
            through: free_port()?,
        })
    }

    /// The one of `door`.
    pub(super) const fn of(self, door: Door) -> u16 {
        match door {
            Door::Kept => self.kept,
            Door::Fresh => self.fresh,
            Door::Through => self.through,
        }
    }
}

impl Site {
    /// Starts it.
    ///
    /// # Errors
    /// Where nginx isn't installed or doesn't start.
    pub(super) fn start() -> Result<Self> {
        let folder = scratch::folder("site")?;
        let mut certificates = Certificates::new(&folder)?;
        let names = ["localhost", "127.0.0.1"];
        let own = certificates.issue("site", &names)?;
        let proxy = certificates.issue("proxy", &names)?;
        write_files(&folder.join("www"))?;
        let ports = Ports::free()?;
        let tls = format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;",
            own.certificate.display(),
            own.key.display()
        );
        let common = format!(
            "root {0}/www; location {NEGOTIATED} {{ return 200 \"$ssl_protocol $ssl_cipher\\n\"; }}",
            folder.display()
        );
        let configuration = nginx(
            &folder,
            &format!(
                "types {{ application/json json; }} default_type application/octet-stream;\n\
                 server {{ listen 127.0.0.1:{} ssl http2; {tls} {common} }}\n\
                 server {{ listen 127.0.0.1:{} ssl http2; {tls} {common} }}\n\
                 server {{ listen 127.0.0.1:{} ssl; {tls} {common}\n\
                 keepalive_timeout 0; ssl_session_cache off; ssl_session_tickets off; }}\n",
                ports.kept, ports.through, ports.fresh
            ),
        )?;
        let server = Proxy::start(
            "nginx, the server",
            ports.kept,
            Command::new("/usr/sbin/nginx").arg("-c").arg(configuration),
            &folder,
        )?;
        Ok(Self {
            ports,
            authority: certificates.authority(),
            proxy,
            _server: server,
        })
    }
}

/// Writes an nginx configuration with `servers` into `folder`: one process, nothing logged, connections stay.
pub(super) fn nginx(folder: &Path, servers: &str) -> Result<PathBuf> {
    let mut text = format!(
        "daemon off; master_process off; worker_processes 1; user root; pid {0}/pid; error_log {0}/errors;\n\
         events {{ worker_connections 4096; }} worker_rlimit_nofile 8192;\n\
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;\n",
        folder.display()
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "{kind}_temp_path {}/{kind};", folder.display())?;
    }
    writeln!(text, "{servers}}}")?;
    let file = folder.join("nginx.conf");
    fs::write(&file, text).context("the configuration of nginx can't be written")?;
    Ok(file)
}

fn write_files(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let item = |number: usize| {
        format!(
            "{{\"id\":{number},\"name\":\"customer {number}\",\"email\":\"customer{number}@example.com\",\"password\":\"{SECRET}\",\"balance\":{}.25,\"tags\":[\"a\",\"b\"]}}",
            number * 37
        )
    };
    let items = |bytes: usize| {
        let mut text = "{\"items\":[".to_owned();
        for number in 1.. {
            text.push_str(&item(number));
            if text.len() + 150 >= bytes {
                break;
            }
            text.push(',');
        }
        text.push_str("]}");
        text
    };
    let write =
        |path: &str, bytes: &[u8]| fs::write(folder.join(path.trim_start_matches('/')), bytes);
    write(ANSWER, items(1 << 10).as_bytes())?;
    write(JSON, items(LARGE_BYTES).as_bytes())?;
    // Compressible or not makes no difference to anybody; all zeros might to a disk.
    let octets: Vec<u8> = (0_u8..=250).cycle().take(LARGE_BYTES).collect();
    write(OCTETS, &octets)?;
    Ok(())
}
