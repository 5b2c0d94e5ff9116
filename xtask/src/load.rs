//! A client that asks over TLS what the well-known ones can't be told to.
//!
//! It resumes no session, believes one authority only (so that a result can't be of a connection that
//! wasn't intercepted, or was), and can keep to a rate: a request is due at its time, whether or not the one
//! before is answered, and its latency counts from then.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};

/// As much as a TLS record holds, several times.
const BUFFER_BYTES: usize = 64 << 10;

/// How long a server may keep silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where and how to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The server, which is believed to be `localhost`
    #[arg(long)]
    connect: SocketAddr,
    /// PEM of the one authority that is believed
    #[arg(long)]
    authority: PathBuf,
    /// What to ask for
    #[arg(long)]
    path: String,
    /// Connections at once
    #[arg(long, default_value_t = 16)]
    connections: u32,
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, clap::Subcommand)]
enum Work {
    /// Requests at a fixed rate over connections that stay
    Paced {
        #[arg(long)]
        rate: u32,
        #[arg(long)]
        seconds: u32,
    },
    /// A connection for every request, as many as go
    Fresh {
        #[arg(long)]
        seconds: u32,
    },
    /// The same again and again over one connection
    Download {
        #[arg(long)]
        seconds: u32,
    },
    /// Connections that asked once and stay for half a second
    Idle,
}

/// What came of it, printed as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Answers.
    pub(crate) count: u64,
    /// Bytes of their bodies.
    pub(crate) bytes: u64,
    /// How long all of it took.
    pub(crate) seconds: f64,
    /// Microseconds that the middle answer took.
    pub(crate) p50_us: f64,
    /// Microseconds that all but a hundredth took at the most.
    pub(crate) p99_us: f64,
    /// Version and suite of the last connection's TLS.
    pub(crate) tls: String,
}

/// Does what `arguments` say.
///
/// # Errors
/// Where any answer isn't a 200, or doesn't come.
pub(crate) fn load(arguments: &Arguments) -> Result<()> {
    let client = Client::new(arguments)?;
    let start = Instant::now();
    let tallies = match arguments.work {
        Work::Paced { rate, seconds } => {
            let every = Duration::from_secs(1) * arguments.connections / rate.max(1);
            at_once(arguments.connections, |index| {
                // Spread over the interval, not all at its beginning.
                let first = start + WARM_UP + every * index / arguments.connections.max(1);
                client.paced(first, every, first + Duration::from_secs(seconds.into()))
            })?
        }
        Work::Fresh { seconds } => {
            let end = start + Duration::from_secs(seconds.into());
            at_once(arguments.connections, |_| client.fresh(end))?
        }
        Work::Download { seconds } => {
            vec![client.download(start + Duration::from_secs(seconds.into()))?]
        }
        Work::Idle => vec![client.idle(arguments.connections)?],
    };
    let mut elapsed = start.elapsed();
    if matches!(arguments.work, Work::Paced { .. }) {
        elapsed = elapsed.saturating_sub(WARM_UP);
    }
    let outcome = Tally::sum(tallies).outcome(elapsed);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// The time in which paced connections are opened.
const WARM_UP: Duration = Duration::from_millis(300);

fn at_once(count: u32, work: impl Fn(u32) -> Result<Tally> + Sync) -> Result<Vec<Tally>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|index| {
                let work = &work;
                scope.spawn(move || work(index))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a connection's thread panicked"),
            })
            .collect()
    })
}

/// How to connect and what to ask.
struct Client {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    path: String,
}

impl Client {
    fn new(arguments: &Arguments) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&arguments.authority)
            .with_context(|| format!("can't read {}", arguments.authority.display()))?
        {
            roots.add(certificate?)?;
        }
        let mut tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.resumption = Resumption::disabled();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            address: arguments.connect,
            name: ServerName::try_from("localhost")?,
            tls: Arc::new(tls),
            path: arguments.path.clone(),
        })
    }

    fn connect(&self) -> Result<Connected> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let tls = ClientConnection::new(self.tls.clone(), self.name.clone())?;
        let stream = StreamOwned::new(tls, socket);
        Ok(Connected(BufReader::with_capacity(BUFFER_BYTES, stream)))
    }

    /// A request every `every` from `first` to `end`.
    fn paced(&self, first: Instant, every: Duration, end: Instant) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut connected = self.connect()?;
        connected.ask(&self.path, true)?;
        let mut due = first;
        while due < end {
            // The clock of whoever is waited for is what counts, not when this thread was woken.
            let began = match due.checked_duration_since(Instant::now()) {
                Some(early) => {
                    thread::sleep(early);
                    Instant::now()
                }
                None => due,
            };
            let bytes = connected.ask(&self.path, true)?;
            tally.add(began.elapsed(), bytes);
            due += every;
        }
        tally.tls = connected.tls();
        Ok(tally)
    }

    fn fresh(&self, end: Instant) -> Result<Tally> {
        let mut tally = Tally::default();
        while Instant::now() < end {
            let began = Instant::now();
            let mut connected = self.connect()?;
            let bytes = connected.ask(&self.path, false)?;
            tally.add(began.elapsed(), bytes);
            tally.tls = connected.tls();
        }
        Ok(tally)
    }

    fn download(&self, end: Instant) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut connected = self.connect()?;
        while tally.latencies_us.is_empty() || Instant::now() < end {
            let began = Instant::now();
            let bytes = connected.ask(&self.path, true)?;
            tally.add(began.elapsed(), bytes);
        }
        tally.tls = connected.tls();
        Ok(tally)
    }

    fn idle(&self, count: u32) -> Result<Tally> {
        const STAY: Duration = Duration::from_millis(500);
        let mut tally = Tally::default();
        let kept = (0..count)
            .map(|_| {
                let began = Instant::now();
                let mut connected = self.connect()?;
                let bytes = connected.ask(&self.path, true)?;
                tally.add(began.elapsed(), bytes);
                tally.tls = connected.tls();
                Ok(connected)
            })
            .collect::<Result<Vec<Connected>>>()?;
        thread::sleep(STAY);
        drop(kept);
        Ok(tally)
    }
}

/// A connection.
struct Connected(BufReader<StreamOwned<ClientConnection, TcpStream>>);

impl Connected {
    /// Asks for `path` and reads all of the answer; how long its body is.
    fn ask(&mut self, path: &str, keep: bool) -> Result<u64> {
        let close = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        if status.split(' ').nth(1) != Some("200") {
            bail!("the answer is `{status}`");
        }
        let (mut length, mut chunked) = (None, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            match name {
                "content-length" => length = Some(value.trim().parse()?),
                "transfer-encoding" => chunked = true,
                _ => {}
            }
        }
        if chunked {
            return self.chunks();
        }
        let length = length.context("the answer doesn't say how long it is")?;
        self.skip(length)?;
        Ok(length)
    }

    fn chunks(&mut self) -> Result<u64> {
        let mut total = 0;
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default();
            let length = u64::from_str_radix(digits.trim(), 16).context("a broken chunk")?;
            self.skip(length)?;
            // Behind a chunk the end of its line, behind the last one the end of the trailers.
            self.line()?;
            if length == 0 {
                return Ok(total);
            }
            total += length;
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if !line.ends_with('\n') {
            bail!("the answer ended in its middle");
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        let mut body = io::Read::by_ref(&mut self.0).take(length);
        loop {
            let count = body.fill_buf()?.len();
            if count == 0 {
                break;
            }
            body.consume(count);
        }
        if body.limit() > 0 {
            bail!("the answer ended in its middle");
        }
        Ok(())
    }

    fn tls(&self) -> String {
        let tls = &self.0.get_ref().conn;
        let version = tls.protocol_version().and_then(|version| version.as_str());
        let suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
        format!(
            "{} {}",
            version.unwrap_or("?"),
            suite.and_then(|suite| suite.as_str()).unwrap_or("?")
        )
    }
}

/// What one connection saw.
#[derive(Debug, Default)]
struct Tally {
    latencies_us: Vec<f64>,
    bytes: u64,
    tls: String,
}

impl Tally {
    fn sum(tallies: Vec<Self>) -> Self {
        tallies
            .into_iter()
            .reduce(|mut sum, tally| {
                sum.latencies_us.extend(tally.latencies_us);
                sum.bytes += tally.bytes;
                sum
            })
            .unwrap_or_default()
    }

    fn add(&mut self, latency: Duration, bytes: u64) {
        self.latencies_us.push(latency.as_secs_f64() * 1e6);
        self.bytes += bytes;
    }

    fn outcome(mut self, elapsed: Duration) -> Outcome {
        self.latencies_us.sort_by(f64::total_cmp);
        let quantile = |hundredths: usize| {
            let index = self.latencies_us.len() * hundredths / 100;
            self.latencies_us.get(index).copied().unwrap_or(0.0)
        };
        Outcome {
            count: self.latencies_us.len() as u64,
            bytes: self.bytes,
            seconds: elapsed.as_secs_f64(),
            p50_us: quantile(50),
            p99_us: quantile(99),
            tls: self.tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_connections() {
        let tally = |range: std::ops::Range<u64>| {
            let mut tally = Tally::default();
            for latency in range {
                tally.add(Duration::from_micros(latency), 1);
            }
            tally
        };
        let outcome =
            Tally::sum(vec![tally(0..50), tally(50..100)]).outcome(Duration::from_secs(1));
        assert_eq!((outcome.count, outcome.bytes), (100, 100));
        assert_eq!(
            (outcome.p50_us.round(), outcome.p99_us.round()),
            (50.0, 99.0)
        );
    }
}
