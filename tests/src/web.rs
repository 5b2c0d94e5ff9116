//! A throw-away nginx with every TLS set-up that clients meet.

use std::{
    fmt::Write as _,
    fs,
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    certificates::{Certificates, Files},
    cluster::free_port,
    keeper::{Farewell, Keeper},
    run, scratch,
};

/// A running nginx, stopped and removed when dropped. All servers are on 127.0.0.1.
#[derive(Debug)]
pub struct Web {
    folder: PathBuf,
    /// In the clear.
    pub plain: u16,
    /// HTTP/2 in the clear.
    pub plain_h2: u16,
    /// A good certificate for `localhost` and `web.test`; HTTP/2 and HTTP/1.1.
    pub good: u16,
    /// The same, TLS 1.2 only.
    pub tls12: u16,
    /// An expired certificate.
    pub expired: u16,
    /// A certificate for `other.test`.
    pub misnamed: u16,
    /// A certificate that nobody signed.
    pub self_signed: u16,
    /// A certificate that is on [`Web::revoked`].
    pub withdrawn: u16,
    /// Wants a client certificate and refuses without one.
    pub mutual: u16,
    /// The certificate of [`Web::good`].
    pub certificate: Files,
    /// A client certificate that it takes.
    pub client: Files,
    /// The revocation list.
    pub revoked: PathBuf,
    _keeper: Keeper,
}

impl Web {
    /// Starts it on free ports.
    ///
    /// # Errors
    /// Where nginx isn't installed or doesn't start; with its log.
    pub fn start() -> Result<Self> {
        let folder = scratch::folder("web")?;
        let mut authority = Certificates::new(&folder)?;
        let names = ["localhost", "web.test"];
        let good = authority.issue("good", &names)?;
        let expired = authority.expired("expired", &names)?;
        let misnamed = authority.issue("misnamed", &["other.test"])?;
        let self_signed = authority.self_signed("self", &names)?;
        let withdrawn = authority.issue("withdrawn", &names)?;
        let revoked = authority.revoke(&withdrawn)?;
        let client = authority.issue("client", &["client.test"])?;
        fs::create_dir(folder.join("www"))?;
        let mut ports = Vec::new();
        for _ in 0..9 {
            ports.push(free_port()?);
        }
        let port = |index: usize| ports.get(index).copied().unwrap_or(0);
        let mut servers = String::new();
        let both = "ssl_protocols TLSv1.2 TLSv1.3;";
        let mutual = format!(
            "{both} ssl_verify_client on; ssl_client_certificate {};",
            authority.authority().display()
        );
        for (index, files, more) in [
            (1, &good, both),
            (2, &good, "ssl_protocols TLSv1.2;"),
            (3, &expired, both),
            (4, &misnamed, both),
            (5, &self_signed, both),
            (6, &withdrawn, both),
            (7, &good, &mutual),
        ] {
            writeln!(
                servers,
                "server {{ listen 127.0.0.1:{} ssl http2; ssl_certificate {}; ssl_certificate_key {}; {more} include locations; }}",
                port(index),
                files.certificate.display(),
                files.key.display(),
            )?;
        }
        fs::write(
            folder.join("locations"),
            format!(
                "root {0}/www; client_max_body_size 0; location ~ ^/encoded/([a-z]+)/(.*)$ {{ alias {0}/www/$2; default_type application/octet-stream; add_header Content-Encoding $1; }} location /echo {{ default_type text/plain; return 200 \"$request_method $http_host $request_uri\\n\"; }} location /sink {{ proxy_pass http://127.0.0.1:{1}/echo; proxy_method GET; proxy_pass_request_body off; proxy_set_header Content-Length \"\"; }} location /headers {{ default_type text/plain; return 200 \"$http_x_added|$http_x_gone|$http_authorization\\n\"; }} location /who {{ default_type text/plain; return 200 \"$ssl_client_verify\\n\"; }} location /resumed {{ default_type text/plain; return 200 \"$ssl_session_reused\\n\"; }}\n",
                folder.display(),
                port(0),
            ),
        )?;
        fs::write(
            folder.join("nginx.conf"),
            format!(
                "worker_processes 1; daemon off; user root; pid {0}/pid; error_log {0}/log;\nevents {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_requests 1000000; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi; uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi; types {{ application/json json; text/html html; }} default_type application/octet-stream;\nserver {{ listen 127.0.0.1:{1}; include locations; }}\nserver {{ listen 127.0.0.1:{2} http2; include locations; }}\n{servers}}}\n",
                folder.display(),
                port(0),
                port(8),
            ),
        )?;
        let mut server = Command::new("nginx")
            .args(["-c".as_ref(), folder.join("nginx.conf").as_os_str()])
            .args(["-e".as_ref(), folder.join("log").as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("nginx doesn't start; `cargo xtask setup` installs it")?;
        let mut keeper = Keeper::of_process(server.id(), Farewell::Terminate, &folder)?;
        run::wait_for("nginx", Duration::from_secs(10), || {
            if server.try_wait()?.is_some() {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                anyhow::bail!("nginx ended at once:\n{log}");
            }
            Ok(TcpStream::connect(("127.0.0.1", port(7))).ok())
        })?;
        keeper.reap(server);
        Ok(Self {
            plain: port(0),
            plain_h2: port(8),
            good: port(1),
            tls12: port(2),
            expired: port(3),
            misnamed: port(4),
            self_signed: port(5),
            withdrawn: port(6),
            mutual: port(7),
            certificate: good,
            client,
            revoked,
            folder,
            _keeper: keeper,
        })
    }

    /// The certificate of the authority that signed its certificates.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// Where it serves files from.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("www")
    }

    /// The configuration with which a daemon believes its certificates and can present one.
    #[must_use]
    pub fn configuration(&self) -> String {
        let path = |path: &Path| path.display().to_string();
        format!(
            "tls:\n  roots: [{}]\n  revoked: [{}]\n  client_certificates:\n    - {{destination: \"web.test:{}\", certificate: {}, key: {}}}\n",
            path(&self.authority()),
            path(&self.revoked),
            self.mutual,
            path(&self.client.certificate),
            path(&self.client.key),
        )
    }
}
