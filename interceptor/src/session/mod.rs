//! The one byte loop: the only place that touches both sockets and executes a decoder's steps.

mod circumstances;
mod datagrams;
mod decide;
mod http2;
mod secure;

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::Abortable;
use interceptor_core::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    limits,
    operation::Protocol,
    origin::{Destination, Origin},
    protocol::{
        dns::Dns,
        http::{self, Http1},
        opaque::Opaque,
        postgres::{self, Postgres},
    },
    record::{Event, SessionEnd, SessionId, SessionStart, Timestamp},
    ruling::Judge,
    sniff::{self, Sniffed},
};
use tokio::time::Instant;

use self::{
    circumstances::Circumstances,
    decide::{Decided, Held, cancelled},
    secure::Secured,
};
pub(crate) use self::{datagrams::Datagrams, decide::CLAIMED_NAMES_MAX};
use crate::{
    approval::{Outcome, Withdrawal},
    cancellations::{Cancellable, Cancellations},
    clock::now,
    credentials::Credentials,
    dns::Servers,
    leg::{Leg, Queue},
    memory::Holding,
    patience::Patience,
    policies::InForce,
    proxy::{Desk, Network, NetworkId, Place, Records, Share},
    socket::Socket,
    tls::Tls,
    upstream,
};

/// How long a client may take to say enough for its protocol to be known. After that it is refused, or,
/// where it has said nothing, whoever speaks first says what it is.
const SNIFF_PATIENCE: Duration = Duration::from_secs(5);

/// What a client of HTTP/2 says first (RFC 9113, section 3.4), as far as it has to be there.
const HTTP2_PREFACE: &[u8] = b"PRI *";

/// How often the client of a held operation is told that it is still there, where its protocol has a way.
const STILL_HELD_EVERY: Duration = Duration::from_secs(10);

/// How often it is tried to record how a session ended, each time when the journal takes records again.
const STOPPED_TRIES: u32 = 100;

/// Pause between two of these tries.
const STOPPED_PAUSE: Duration = Duration::from_millis(50);

/// Proxies that one connection may go through: each takes a decoder and a place on the stack.
const TUNNELS_MAX: u8 = 2;

/// What the sessions of a thread share.
pub(crate) struct Services {
    /// Where everything is recorded.
    pub(crate) journal: Records,
    /// The policy in force.
    pub(crate) policies: Arc<InForce>,
    /// What is asked of the daemon.
    pub(crate) desk: Arc<Desk>,
    /// Who can be cancelled while people are asked.
    pub(crate) cancellations: Cancellations,
    /// What agents are logged in with.
    pub(crate) credentials: Credentials<Arc<Desk>>,
    /// What PostgreSQL sessions share.
    pub(crate) postgres: Arc<postgres::Shared>,
    /// Which DNS servers are asked.
    pub(crate) servers: Arc<Servers>,
    /// What HTTP sessions share.
    pub(crate) http: Arc<http::Shared>,
    /// What TLS sessions share.
    pub(crate) tls: Arc<Tls>,
    /// The daemon's own network.
    pub(crate) network: NetworkId,
    /// How long to wait for an upstream to answer a connect.
    pub(crate) dial_patience: Duration,
    /// How long peers may take.
    pub(crate) patience: Patience,
}

/// One intercepted connection.
pub(crate) struct Session {
    services: Arc<Services>,
    id: SessionId,
    origin: Arc<Origin>,
    /// Where the agent's side of it is, and the upstream side is dialled from.
    network: Network,
    agent: Arc<str>,
    judge: Judge,
    /// TLS is on it.
    is_secure: bool,
    /// What channel binding takes for the destination's certificate and for ours.
    bindings: [Option<Bytes>; 2],
    /// The names that the destination's certificate is for, wildcards included.
    certified: Arc<[Box<str>]>,
    /// What the agent was told that the destination is called, by a resolver that the operator trusts.
    resolved: Vec<Box<str>>,
    /// Names that requests in the clear claimed, and whether they are the destination's.
    claimed_names: Vec<(Box<str>, bool)>,
    cancellable: Option<Cancellable>,
    /// The user that the agent is logged in as, where it isn't the one that it names.
    logged_in_as: Option<Box<str>>,
    /// Proxies that the agent has asked to be connected through.
    tunnels: u8,
    operations: u64,
    circumstances: Circumstances,
    received: [u64; 2],
    /// When the bytes or the answer that are being worked on arrived: the clock is read once a turn.
    now: Timestamp,
    /// The journal can't take records any more: nothing may go on.
    stopped: bool,
    /// What the agent may take of the proxy.
    share: Arc<Share>,
    /// What this session has taken of its memory.
    memory: Arc<Holding>,
}

/// Lets every session that has something to do go first: all read, then all write. A write wakes the peer,
/// which then finds the work of many at once rather than of one, and isn't woken in this thread's place.
async fn behind_the_others() {
    let mut went_first = false;
    poll_fn(|context| {
        if went_first {
            return Poll::Ready(());
        }
        went_first = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Why the loop ends.
struct Ended(String);

impl Ended {
    fn severed() -> Self {
        Self("severed: `interceptor agents cut`".to_owned())
    }
}

impl Session {
    /// A session for a connection of `origin` in `network`.
    #[must_use]
    pub(crate) fn new(
        services: Arc<Services>,
        id: SessionId,
        origin: Arc<Origin>,
        (network, share): (Network, Arc<Share>),
    ) -> Self {
        let agent = Arc::from(&*origin.agent.name);
        let judge = Judge::new(&services.policies.current(), origin.clone());
        Self {
            resolved: origin.names.clone(),
            services,
            id,
            origin,
            network,
            agent,
            judge,
            is_secure: false,
            bindings: [None, None],
            certified: [].into(),
            claimed_names: Vec::new(),
            cancellable: None,
            logged_in_as: None,
            tunnels: 0,
            operations: 0,
            circumstances: Circumstances::default(),
            received: [0; 2],
            now: now(),
            stopped: false,
            memory: Arc::new(Holding::new(share.memory.clone())),
            share,
        }
    }

    /// Serves `client` until either side is done, or somebody severs it.
    pub(crate) fn run(self, client: Socket, place: Place) -> impl Future<Output = ()> + Send {
        let memory = self.memory.clone();
        memory.of(self.run_counted(client, place))
    }

    async fn run_counted(mut self, client: Socket, place: Place) {
        client.spare_no_packets();
        upstream::spare(&client);
        let start = self.start(client.peer());
        self.begin(Event::SessionStart(start)).await;
        let ended = Abortable::new(self.serve(client), place.severed).await;
        self.end(ended.unwrap_or_else(|_| Ended::severed())).await;
        drop(place.kept);
    }

    /// The start of it, of a client at `address`.
    fn start(&self, address: Option<SocketAddr>) -> SessionStart {
        SessionStart {
            origin: self.origin.clone(),
            client: address,
        }
    }

    /// Puts on record that it begins.
    async fn begin(&mut self, start: Event) {
        self.record(start).await;
        if let Some(cookie) = self.origin.process.network_namespace {
            let namespace = [("cookie", cookie.to_string())];
            self.record(Event::notice("network_namespace", namespace))
                .await;
        }
        if !self.resolved.is_empty() {
            let names = [("names", self.resolved.join(" "))];
            self.record(Event::notice("destination_names", names)).await;
        }
    }

    async fn end(&mut self, Ended(reason): Ended) {
        self.now = now();
        let [bytes_from_client, bytes_from_upstream] = self.received;
        let end = SessionEnd {
            reason: reason.into(),
            operations: self.operations,
            bytes_from_client,
            bytes_from_upstream,
        };
        let end = Event::SessionEnd(end);
        // Where it ended because nothing can be recorded, that is on record as soon as something can: a disk
        // that is full may be so again at once.
        for _ in 0..STOPPED_TRIES {
            if self.append([end.clone()]).await.is_some() {
                break;
            }
            self.services.journal.resumed().await;
            tokio::time::sleep(STOPPED_PAUSE).await;
        }
    }

    async fn serve(&mut self, client: Socket) -> Ended {
        let dialled = if self.stopped {
            Err(Failure::Unrecorded)
        } else {
            let patience = self.services.dial_patience;
            upstream::dial(&self.network, &self.origin.destination, patience)
                .await
                .map_err(|error| Failure::Unreachable(error.to_string()))
        };
        let mut dialled = dialled.map(Leg::plain);
        let mut client = Leg::plain(client);
        let mut first = BytesMut::with_capacity(limits::READ_BYTES / 8);
        let mut said = BytesMut::new();
        let server = dialled.as_mut().ok().map(|server| (server, &mut said));
        let protocol = match self.identify(&mut client, &mut first, server).await {
            Ok(protocol) => protocol,
            Err(ended) => return ended,
        };
        let dialled = match protocol {
            Protocol::Dns => self.instead(dialled).await,
            _ => dialled,
        };
        self.now = now();
        match (protocol, dialled) {
            (Protocol::Tls, Err(failure)) => {
                client.reset();
                Ended(failure.to_string())
            }
            (Protocol::Tls, Ok(upstream)) => {
                match self
                    .secure(client.into_socket(), first, upstream.into_socket())
                    .await
                {
                    Ok(secured) => self.secured(secured).await,
                    Err(ended) => ended,
                }
            }
            (Protocol::Http, Ok(upstream)) if first.starts_with(HTTP2_PREFACE) => {
                client.unread(first);
                self.http2(client, upstream).await
            }
            (protocol, dialled) => {
                let mut decoder = self.decoder(protocol);
                decoder.receive(Peer::Client, &mut first, self.now);
                decoder.receive(Peer::Upstream, &mut said, self.now);
                match dialled {
                    Ok(upstream) => self.exchange(decoder, client, upstream).await,
                    Err(failure) => self.without_upstream(&mut *decoder, client, &failure).await,
                }
            }
        }
    }

    /// The connection to the DNS server that is asked in place of the one that the agent means, if it is
    /// another one.
    async fn instead(&mut self, dialled: Result<Leg, Failure>) -> Result<Leg, Failure> {
        let Some(meant) = self.origin.destination.address() else {
            return dialled;
        };
        let (server, network) = self.dns_server(meant);
        let is_meant = server == meant && network.cookie() == self.network.cookie();
        if is_meant || self.stopped {
            return dialled;
        }
        let patience = self.services.dial_patience;
        let dialled = upstream::dial(&network, &Destination::Ip(server), patience).await;
        dialled.map(Leg::plain).map_err(|error| {
            self.services.servers.failed(server);
            Failure::Unreachable(error.to_string())
        })
    }

    /// The DNS server that is asked, and where from: those of the configuration are the operator's, and asked
    /// from the daemon's own network.
    fn dns_server(&self, meant: SocketAddr) -> (SocketAddr, Network) {
        let servers = &self.services.servers;
        let server = servers.server(meant);
        if servers.is_configured() {
            (server, self.network.host(self.services.network))
        } else {
            (server, self.network.clone())
        }
    }

    /// Goes on behind a handshake.
    async fn secured(&mut self, secured: Secured) -> Ended {
        match secured {
            Secured::Through {
                client,
                upstream,
                permit,
                mut first,
            } => {
                let mut decoder = Box::new(Opaque::permitted(permit));
                decoder.receive(Peer::Client, &mut first, self.now);
                self.exchange(decoder, client, upstream).await
            }
            Secured::Inside {
                mut client,
                mut upstream,
                alpn,
            } => {
                if alpn.as_deref() == Some(b"h2") {
                    return self.http2(client, upstream).await;
                }
                let mut first = BytesMut::with_capacity(limits::READ_BYTES / 8);
                let mut said = BytesMut::new();
                let server = Some((&mut upstream, &mut said));
                let protocol = match alpn.as_deref() {
                    Some(b"postgresql") => Protocol::Postgres,
                    _ => match self.identify(&mut client, &mut first, server).await {
                        // TLS within TLS is nothing that could be verified.
                        Ok(Protocol::Tls) => Protocol::Opaque,
                        Ok(protocol) => protocol,
                        Err(ended) => return ended,
                    },
                };
                self.now = now();
                let mut decoder = self.decoder(protocol);
                decoder.secured();
                decoder.receive(Peer::Client, &mut first, self.now);
                decoder.receive(Peer::Upstream, &mut said, self.now);
                self.exchange(decoder, client, upstream).await
            }
        }
    }

    /// Goes on behind a CONNECT, with what either side has said already.
    async fn tunnelled(
        &mut self,
        (mut client, mut first): (Leg, BytesMut),
        (mut upstream, mut said): (Leg, BytesMut),
    ) -> Ended {
        self.tunnels += 1;
        if self.tunnels > TUNNELS_MAX {
            return Ended("refused: a tunnel within tunnels".to_owned());
        }
        // What the proxy has proved isn't proved of who is behind it.
        let is_within_tls = client.is_secure() || upstream.is_secure();
        self.is_secure = false;
        self.bindings = [None, None];
        self.certified = [].into();
        self.named(Vec::new());
        let protocol = if said.is_empty() {
            let server = Some((&mut upstream, &mut said));
            match self.identify(&mut client, &mut first, server).await {
                // TLS within TLS is nothing that could be verified.
                Ok(Protocol::Tls) if is_within_tls => Protocol::Opaque,
                Ok(protocol) => protocol,
                Err(ended) => return ended,
            }
        } else {
            // Of the protocols that are decoded none has the server speak first.
            Protocol::Opaque
        };
        self.now = now();
        match protocol {
            Protocol::Tls => {
                let upstream = upstream.into_socket();
                match self.secure(client.into_socket(), first, upstream).await {
                    Ok(secured) => self.secured(secured).await,
                    Err(ended) => ended,
                }
            }
            Protocol::Http if first.starts_with(HTTP2_PREFACE) => {
                client.unread(first);
                self.http2(client, upstream).await
            }
            protocol => {
                let mut decoder = self.decoder(protocol);
                decoder.receive(Peer::Client, &mut first, self.now);
                if !said.is_empty() {
                    decoder.receive(Peer::Upstream, &mut said, self.now);
                }
                self.exchange(decoder, client, upstream).await
            }
        }
    }

    /// The destination has these names from here on.
    fn named(&mut self, names: Vec<Box<str>>) {
        if names != self.origin.names {
            self.origin = Arc::new(Origin {
                names,
                ..(*self.origin).clone()
            });
            self.judge = Judge::new(&self.services.policies.current(), self.origin.clone());
        }
    }

    /// The destination as the configuration would name it.
    fn destination(&self) -> String {
        let destination = &self.origin.destination;
        match (&*self.origin.names, destination.port()) {
            ([name, ..], Some(port)) => format!("{name}:{port}"),
            _ => destination.to_string(),
        }
    }

    fn http_context(&self) -> http::Context {
        http::Context {
            secure: self.is_secure,
            address: self.origin.destination.ip().map(|ip| ip.to_canonical()),
            nameless: matches!(self.origin.destination, Destination::Unix(_)),
            names: self.origin.names.clone(),
            certified: self.certified.clone(),
        }
    }

    fn decoder(&self, protocol: Protocol) -> Box<dyn Decoder> {
        match protocol {
            Protocol::Postgres => {
                Box::new(Postgres::new(self.services.postgres.clone()).towards(self.destination()))
            }
            Protocol::Http => {
                let context = self.http_context();
                Box::new(Http1::new(self.services.http.clone(), context))
            }
            Protocol::Dns => Box::new(Dns::default()),
            Protocol::Opaque | Protocol::Tls => Box::new(Opaque::default()),
        }
    }

    /// Answers the client until it asks for something of the server, then says why it can't have it.
    ///
    /// Not at once: an error in the place of the answer to an SSLRequest is one that libpq doesn't show.
    async fn without_upstream(
        &mut self,
        decoder: &mut dyn Decoder,
        mut client: Leg,
        failure: &Failure,
    ) -> Ended {
        let (mut buffer, mut answers) = (BytesMut::new(), Queue::default());
        let patience = tokio::time::sleep(SNIFF_PATIENCE);
        tokio::pin!(patience);
        let mut over = false;
        let end = loop {
            match decoder.poll() {
                Step::Send(Peer::Client, bytes) => answers.push(bytes),
                Step::Record(event) => self.record(event).await,
                Step::Close(closing) => break describe(&closing),
                Step::Wait if over => break failure.to_string(),
                Step::Wait => {
                    client.drain(&mut answers).await;
                    tokio::select! {
                        read = poll_fn(|context| client.poll_read(&mut buffer, context)) => {
                            if let Ok(count @ 1..) = read {
                                self.now = now();
                                self.take(decoder, Peer::Client, (count, &mut buffer));
                                continue;
                            }
                        }
                        () = &mut patience => {}
                    }
                    over = true;
                    decoder.fail(failure);
                }
                // Without a server nothing gets so far.
                Step::Cancellable(_)
                | Step::Cancel(_)
                | Step::Finish(_)
                | Step::StartTls
                | Step::Tunnel { .. }
                | Step::Http2 { .. }
                | Step::Resolved(_) => {}
                Step::Propose(_)
                | Step::Login { .. }
                | Step::Authorize { .. }
                | Step::Send(Peer::Upstream, _) => {
                    decoder.fail(failure);
                }
            }
        };
        if answers.is_empty() {
            client.reset();
        } else {
            client.drain(&mut answers).await;
        }
        Ended(end)
    }

    /// Reads until the protocol is known.
    ///
    /// Time alone makes nothing opaque: a client that says half of a request, or nothing, until we stop
    /// looking could say the rest unseen to a server that has all the time in the world. Opaque is what
    /// is certainly nothing else, and what begins with the server, whose bytes are put into the buffer
    /// beside it.
    async fn identify(
        &mut self,
        client: &mut Leg,
        first: &mut BytesMut,
        mut server: Option<(&mut Leg, &mut BytesMut)>,
    ) -> Result<Protocol, Ended> {
        let patience = tokio::time::sleep(SNIFF_PATIENCE);
        tokio::pin!(patience);
        // For so long that it is for the server to speak first.
        let mut silent = false;
        loop {
            match sniff::from_client(first) {
                Sniffed::Protocol(protocol) => return Ok(protocol),
                Sniffed::Unsure => {}
            }
            let greeting = async {
                match &mut server {
                    Some((server, said)) if silent => {
                        poll_fn(|context| server.poll_read(said, context)).await
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                read = poll_fn(|context| client.poll_read(first, context)) => match read {
                    Ok(0) if first.is_empty() => return Err(Ended("the client said nothing".to_owned())),
                    Ok(0) => return Ok(Protocol::Opaque),
                    Ok(count) => {
                        self.count(Peer::Client, count);
                        if silent {
                            silent = false;
                            patience.as_mut().reset(Instant::now() + SNIFF_PATIENCE);
                        }
                    }
                    Err(error) => return Err(Ended(format!("client: {error}"))),
                },
                read = greeting => {
                    if let Ok(count) = read {
                        self.count(Peer::Upstream, count);
                    }
                    return Ok(Protocol::Opaque);
                }
                () = &mut patience, if !silent => {
                    if !first.is_empty() {
                        client.reset();
                        return Err(Ended(format!(
                            "malformed: {} bytes within {SNIFF_PATIENCE:?}, too few to know a protocol by",
                            first.len()
                        )));
                    }
                    if server.is_none() {
                        return Ok(Protocol::Opaque);
                    }
                    silent = true;
                }
            }
        }
    }

    /// Carries bytes and rulings until the decoder or a peer ends it.
    async fn exchange(
        &mut self,
        mut decoder: Box<dyn Decoder>,
        mut client: Leg,
        mut upstream: Leg,
    ) -> Ended {
        let (mut client_buffer, mut upstream_buffer) = (BytesMut::new(), BytesMut::new());
        let (mut client_queue, mut upstream_queue) = (Queue::default(), Queue::default());
        let (mut client_finished, mut upstream_finished) = (false, false);
        let mut held: Option<Held> = None;
        let mut deadline: Option<Instant> = None;
        let mut standstill: Option<(u64, Instant)> = None;
        loop {
            let recorded = client_queue.chunks();
            let mut more = false;
            let closing = loop {
                if client_queue.is_full() || upstream_queue.is_full() {
                    // What one read becomes can be much: no more of it than a peer takes.
                    more = true;
                    break None;
                }
                match decoder.poll() {
                    Step::Wait => break None,
                    Step::Send(Peer::Client, bytes) => client_queue.push(bytes),
                    Step::Send(Peer::Upstream, bytes) => upstream_queue.push(bytes),
                    Step::Record(event) => self.record(event).await,
                    Step::Resolved(resolved) => self.learn_addresses(&resolved).await,
                    Step::Login { user, database } => {
                        match self.credential(&user, &database).await {
                            Ok(login) => decoder.login(login),
                            Err(failure) => decoder.fail(&failure),
                        }
                    }
                    Step::Authorize { host, path } => {
                        match self.authorization(host.as_deref(), &path).await {
                            Ok(authorization) => decoder.authorize(authorization),
                            Err(failure) => decoder.fail(&failure),
                        }
                    }
                    Step::Cancellable(key) => {
                        let cancellations = &self.services.cancellations;
                        self.cancellable =
                            Some(cancellations.register(self.origin.destination.clone(), key));
                    }
                    Step::Cancel(key) => self
                        .services
                        .cancellations
                        .cancel(self.origin.destination.clone(), key),
                    Step::Finish(Peer::Client) => client_finished = true,
                    Step::Finish(Peer::Upstream) => upstream_finished = true,
                    Step::StartTls => {
                        client.drain(&mut client_queue).await;
                        let (socket, to) = (client.into_socket(), upstream.into_socket());
                        match self.secure(socket, BytesMut::new(), to).await {
                            Ok(Secured::Inside {
                                client: inner,
                                upstream: outer,
                                ..
                            }) => (client, upstream) = (inner, outer),
                            Ok(through) => return Box::pin(self.secured(through)).await,
                            Err(ended) => return ended,
                        }
                        decoder.secured();
                    }
                    Step::Tunnel {
                        client: first,
                        upstream: said,
                    } => {
                        upstream.drain(&mut upstream_queue).await;
                        client.drain(&mut client_queue).await;
                        let inside = self.tunnelled((client, first), (upstream, said));
                        return Box::pin(inside).await;
                    }
                    Step::Http2 {
                        client: first,
                        upstream: said,
                    } => {
                        upstream.drain(&mut upstream_queue).await;
                        client.drain(&mut client_queue).await;
                        client.unread(first);
                        upstream.unread(said);
                        return Box::pin(self.http2(client, upstream)).await;
                    }
                    Step::Close(closing) => break Some(closing),
                    Step::Propose(operation) => {
                        match self.decide(operation, decoder.beginning()).await {
                            Decided::Now(ruling) => decoder.rule(ruling, self.now),
                            Decided::Later(question) => held = Some(*question),
                        }
                    }
                }
                if self.stopped {
                    client_queue.truncate(recorded);
                    let ended = farewell(&mut *decoder, &Failure::Unrecorded, &mut client_queue);
                    if client_queue.is_empty() {
                        client.reset();
                    }
                    client.drain(&mut client_queue).await;
                    return ended;
                }
            };
            if let Some(closing) = closing {
                // Withdraws the question that is still open.
                drop(held);
                upstream.drain(&mut upstream_queue).await;
                client.drain(&mut client_queue).await;
                if closing == Closing::Finished {
                    upstream.finish();
                    client.finish();
                }
                return Ended(describe(&closing));
            }
            if !upstream_queue.is_empty() || !client_queue.is_empty() {
                behind_the_others().await;
            }
            if let Err(error) = upstream.write(&mut upstream_queue) {
                return Ended(format!("upstream: {error}"));
            }
            if let Err(error) = client.write(&mut client_queue) {
                return Ended(format!("client: {error}"));
            }
            if client_finished && client_queue.is_empty() && !client.has_backlog() {
                client.finish();
            }
            if upstream_finished && upstream_queue.is_empty() && !upstream.has_backlog() {
                upstream.finish();
            }
            let full = [&client_queue, &upstream_queue].map(Queue::is_full);
            if more && full == [false, false] {
                // Others have their turn in between.
                tokio::task::yield_now().await;
                continue;
            }
            let waiting = Waiting {
                client: !client_queue.is_empty() || client.has_backlog(),
                upstream: !upstream_queue.is_empty() || upstream.has_backlog(),
                // What a client asks for can be answered by us: who doesn't read may not go on asking.
                wants_client: decoder.wants(Peer::Client) && full == [false, false],
                wants_upstream: decoder.wants(Peer::Upstream) && !client_queue.is_full(),
            };
            standstill = self.standstill(standstill, &*decoder, &waiting, [&client, &upstream]);
            if let Some((_, until)) = standstill
                && until <= Instant::now()
            {
                let patience = self.services.patience.stalled;
                let who = if waiting.client { "client" } else { "server" };
                decoder.stalled(&format!("the {who} took nothing for {patience:?}"));
                client_queue.truncate(0);
                upstream_queue.truncate(0);
                continue;
            }
            let turn = poll_fn(|context| {
                waiting.poll(
                    (&mut client, &mut client_buffer),
                    (&mut upstream, &mut upstream_buffer),
                    context,
                )
            });
            // From when it began something, however slowly it goes on with it.
            deadline = (decoder.is_waiting_for_client() && waiting.wants_client).then(|| {
                deadline.unwrap_or_else(|| Instant::now() + self.services.patience.request)
            });
            let standstill_ends = standstill.map(|(_, until)| until);
            let turn = match (&mut held, deadline.into_iter().chain(standstill_ends).min()) {
                (None, None) => turn.await,
                (None, Some(next)) => tokio::select! {
                    biased;
                    turn = turn => turn,
                    () = tokio::time::sleep_until(next) => {
                        self.now = now();
                        if deadline.is_some_and(|deadline| deadline <= next) {
                            decoder.expire();
                        }
                        continue;
                    }
                },
                (Some(question), _) => tokio::select! {
                    biased;
                    turn = turn => turn,
                    outcome = question.pending.outcome() => {
                        self.now = now();
                        if let Some(question) = held.take() {
                            if outcome == Outcome::Approved {
                                self.circumstances.passed(&question.operation);
                            }
                            decoder.rule(question.ruled(outcome), self.now);
                        }
                        continue;
                    }
                    () = tokio::time::sleep(STILL_HELD_EVERY) => {
                        decoder.still_held(question.pending.id());
                        continue;
                    }
                    () = cancelled(self.cancellable.as_ref()) => {
                        self.now = now();
                        if let Some(question) = held.take_if(|held| held.pending.withdraw(Withdrawal::Cancelled)) {
                            decoder.rule(question.cancelled(), self.now);
                        }
                        continue;
                    }
                },
            };
            self.now = now();
            for (peer, read, buffer) in [
                (Peer::Upstream, turn.upstream, &mut upstream_buffer),
                (Peer::Client, turn.client, &mut client_buffer),
            ] {
                match read {
                    None => {}
                    Some(Ok(count @ 1..)) => self.take(&mut *decoder, peer, (count, buffer)),
                    Some(Ok(0) | Err(_)) => decoder.finish(peer),
                }
            }
        }
    }

    /// Since when nothing has been taken of what is there for the peers, as bytes taken until then, and
    /// when that has lasted too long.
    fn standstill(
        &self,
        before: Option<(u64, Instant)>,
        decoder: &dyn Decoder,
        waiting: &Waiting,
        legs: [&Leg; 2],
    ) -> Option<(u64, Instant)> {
        if !(waiting.client || waiting.upstream) || !decoder.gives_up_stalled() {
            return None;
        }
        let taken = legs.map(Leg::taken).iter().sum();
        before
            .filter(|(before, _)| *before == taken)
            .or_else(|| Some((taken, Instant::now() + self.services.patience.stalled)))
    }

    async fn record(&mut self, event: Event) {
        self.append([event]).await;
    }

    /// Puts `events` into the journal. Without a journal nothing goes on.
    async fn append<const N: usize>(&mut self, events: [Event; N]) -> Option<u64> {
        let journal = &self.services.journal;
        self.share.volume.room().await;
        let appended = match journal.room().await {
            Ok(()) => journal.append(self.id, &self.agent, self.now, events),
            Err(stopped) => Err(stopped),
        };
        match appended {
            Ok(appended) => {
                self.share.volume.take(appended.bytes);
                Some(appended.position)
            }
            Err(error) => {
                if !self.stopped {
                    tracing::error!(session = %self.id, %error, "the session ends: it can't be recorded");
                }
                self.stopped = true;
                None
            }
        }
    }

    /// Gives `decoder` what was read, unless the agent holds too much already.
    fn take(&mut self, decoder: &mut dyn Decoder, from: Peer, read: (usize, &mut BytesMut)) {
        let (count, buffer) = read;
        self.count(from, count);
        decoder.receive(from, buffer, self.now);
        if self.memory.is_too_much() {
            decoder.fail(&Failure::Memory);
        }
    }

    fn count(&mut self, from: Peer, bytes: usize) {
        let [client, upstream] = &mut self.received;
        *match from {
            Peer::Client => client,
            Peer::Upstream => upstream,
        } += bytes as u64;
    }
}

/// What the loop waits for.
struct Waiting {
    client: bool,
    upstream: bool,
    wants_client: bool,
    wants_upstream: bool,
}

/// What came of waiting: bytes from one side, from both, or room to write on.
struct Turn {
    client: Option<io::Result<usize>>,
    upstream: Option<io::Result<usize>>,
}

impl Waiting {
    /// Both sides get their turn: neither can keep the other from being read.
    fn poll(
        &self,
        (client, from_client): (&mut Leg, &mut BytesMut),
        (upstream, from_upstream): (&mut Leg, &mut BytesMut),
        context: &mut Context<'_>,
    ) -> Poll<Turn> {
        // An error shows in the write that follows.
        let writable = (self.client && client.poll_writable(context).is_ready())
            | (self.upstream && upstream.poll_writable(context).is_ready());
        let mut read = |wanted, leg: &mut Leg, buffer| match wanted {
            true => match leg.poll_read(buffer, context) {
                Poll::Ready(read) => Some(read),
                Poll::Pending => None,
            },
            false => None,
        };
        let turn = Turn {
            upstream: read(self.wants_upstream, upstream, from_upstream),
            client: read(self.wants_client, client, from_client),
        };
        if writable || turn.client.is_some() || turn.upstream.is_some() {
            Poll::Ready(turn)
        } else {
            Poll::Pending
        }
    }
}

/// Has `decoder` end the session, and queues what it says to the client about it.
fn farewell(decoder: &mut dyn Decoder, failure: &Failure, answers: &mut Queue) -> Ended {
    decoder.fail(failure);
    loop {
        match decoder.poll() {
            Step::Send(Peer::Client, bytes) => answers.push(bytes),
            Step::Wait | Step::Close(_) => return Ended(failure.to_string()),
            _ => {}
        }
    }
}

fn describe(closing: &Closing) -> String {
    match closing {
        Closing::Finished => "finished".to_owned(),
        Closing::Malformed(reason) => format!("malformed: {reason}"),
        Closing::Refused(reason) => format!("refused: {reason}"),
    }
}
