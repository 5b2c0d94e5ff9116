//! The hooks in the real kernel. They need root, and fail without it.

mod datagrams;
mod packets;
mod unix;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use interceptor_core::origin::Agent;

use super::{Kernel, KernelError, Ports, TagKind, UnixAccess, Unrouted};

/// Each test moves this process between cgroups, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Waits for a turn, while which this process is in the cgroup that it was started in.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Fixture {
    kernel: Option<Kernel>,
    instance: String,
    v4: TcpListener,
    v6: TcpListener,
    dns: [UdpSocket; 2],
    _turn: MutexGuard<'static, ()>,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let turn = turn();
        let instance = format!("interceptor-test-{name}-{}", std::process::id());
        let kernel = Kernel::open(&instance).expect("these tests need root and eBPF");
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        kernel.route_tokens().unwrap();
        let dns = ["0.0.0.0:0", "[::]:0"].map(datagrams::forwarder);
        let fixture = Self {
            kernel: Some(kernel),
            instance,
            v4,
            v6,
            dns,
            _turn: turn,
        };
        fixture.arm(Unrouted::NOTHING);
        fixture
    }

    fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().unwrap()
    }

    fn tag(&self, name: &str) -> PathBuf {
        self.kernel().tag_new(agent(name)).unwrap().cgroup
    }

    fn arm(&self, unrouted: Unrouted) {
        let port = |address: std::io::Result<SocketAddr>| address.unwrap().port();
        let ports = Ports {
            proxy: [&self.v4, &self.v6].map(|listener| port(listener.local_addr())),
            dns: self.dns.each_ref().map(|socket| port(socket.local_addr())),
        };
        let kernel = self.kernel();
        kernel.arm(kernel.own_netns(), ports, unrouted).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.take()
            && let Err(error) = kernel.remove_all()
        {
            eprintln!("{}: {error}", self.instance);
        }
    }
}

fn agent(name: &str) -> Agent {
    Agent {
        name: name.into(),
        labels: BTreeMap::new(),
    }
}

/// Runs a Python text inside `cgroup`.
fn spawn(cgroup: &std::path::Path, text: &str) -> Child {
    let procs = cgroup.join("cgroup.procs");
    Command::new("sh")
        .args(["-c", "echo $$ > \"$1\" && exec python3 -c \"$2\"", "sh"])
        .arg(procs)
        .arg(text)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a Python text prints inside `cgroup`.
fn said(cgroup: &std::path::Path, text: &str) -> String {
    let output = output(spawn(cgroup, text));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    String::from_utf8_lossy(&output.stdout).into_owned() + &errors
}

fn output(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn accept(listener: &TcpListener) -> std::net::TcpStream {
    listener.set_nonblocking(true).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("nobody connected: {error}"),
        }
    }
}

#[test]
fn tcp_of_every_family_arrives_with_its_true_destination() {
    let fixture = Fixture::new("families");
    let cgroup = fixture.tag("families");
    let [server, of_both] = [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED]
        .map(|address| TcpListener::bind((address, 0)).unwrap());
    let [server, of_both] = [&server, &of_both].map(|server| server.local_addr().unwrap().port());
    for (family, address, port, listener, expected) in [
        ("AF_INET", "192.0.2.7", 5432, &fixture.v4, "192.0.2.7"),
        ("AF_INET", "127.0.0.1", 5432, &fixture.v4, "127.0.0.1"),
        ("AF_INET6", "2001:db8::7", 5432, &fixture.v6, "2001:db8::7"),
        ("AF_INET6", "::1", server, &fixture.v6, "::1"),
        ("AF_INET6", "::1", of_both, &fixture.v6, "::1"),
        (
            "AF_INET6",
            "::ffff:192.0.2.7",
            5432,
            &fixture.v4,
            "192.0.2.7",
        ),
    ] {
        let child = spawn(
            &cgroup,
            &format!(
                "import socket\ns = socket.socket(socket.{family})\ns.settimeout(5)\n\
                 s.connect(('{address}', {port}))\nprint(s.getpeername()[0], s.getpeername()[1])\n\
                 s.sendall(b'hello')\nprint(s.recv(5).decode())"
            ),
        );
        let pid = child.id();
        let mut stream = accept(listener);
        let note = fixture
            .kernel()
            .note(stream.as_fd())
            .unwrap()
            .expect("a redirected connection carries a note");
        assert_eq!(
            note.destination,
            SocketAddr::new(expected.parse().unwrap(), port),
            "{address}"
        );
        assert_eq!((note.pid, note.uid), (pid, 0));
        assert_eq!(
            &*fixture.kernel().agent(note.agent).unwrap().name,
            "families"
        );
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        let output = output(child);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            text,
            format!("{address} {port}\nhello\n"),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Most clients try ::1 first for `localhost`, and 127.0.0.1 only if they are refused at once.
#[test]
fn who_tries_the_ipv6_loopback_in_vain_goes_on_to_the_ipv4_one() {
    let fixture = Fixture::new("absent");
    let cgroup = fixture.tag("absent");
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let child = spawn(
        &cgroup,
        &format!(
            "import socket\ns = socket.socket(socket.AF_INET6)\ntry:\n  s.connect(('::1', {port}))\n\
             except ConnectionRefusedError:\n  print('refused')\n\
             socket.create_connection(('127.0.0.1', {port}), 5).sendall(b'x')"
        ),
    );
    let stream = accept(&fixture.v4);
    let note = fixture.kernel().note(stream.as_fd()).unwrap().unwrap();
    assert_eq!(note.destination, (Ipv4Addr::LOCALHOST, port).into());
    assert_eq!(String::from_utf8_lossy(&output(child).stdout), "refused\n");
    assert_eq!(fixture.kernel().counters().refused_absent, 1);
    let refusal = fixture
        .kernel()
        .take_events()
        .unwrap()
        .next_refusal()
        .unwrap();
    assert_eq!(refusal.name, "connect_refused_absent");
    assert_eq!(
        refusal.destination,
        Some((Ipv6Addr::LOCALHOST, port).into())
    );
}

#[test]
fn networks_without_a_route_are_refused_as_the_kernel_would() {
    use interceptor_abi::unrouted::{GLOBAL, PRIVATE};

    let fixture = Fixture::new("unrouted");
    let cgroup = fixture.tag("unrouted");
    for (address, unrouted) in [("2001:db8::7", GLOBAL), ("fd12::7", PRIVATE)] {
        let attempt = format!(
            "import socket\ntry:\n  socket.create_connection(('{address}', 80), 5)\n  print('connected')\n\
             except ConnectionRefusedError:\n  print('refused')"
        );
        for (unrouted, expected) in [
            (unrouted, "refused\n"),
            (GLOBAL | PRIVATE, "refused\n"),
            ((GLOBAL | PRIVATE) & !unrouted, "connected\n"),
            (0, "connected\n"),
        ] {
            fixture.arm(Unrouted(unrouted));
            let said = output(spawn(&cgroup, &attempt));
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            assert_eq!(said, expected, "{address}, {unrouted}");
        }
    }
    assert_eq!(fixture.kernel().counters().refused_absent, 4);
}

#[test]
fn a_connection_that_was_not_redirected_carries_no_note() {
    let fixture = Fixture::new("untagged");
    let address = fixture.v4.local_addr().unwrap();
    let _client = std::net::TcpStream::connect(address).unwrap();
    let stream = accept(&fixture.v4);
    assert_eq!(fixture.kernel().note(stream.as_fd()).unwrap(), None);
}

#[test]
fn without_a_living_daemon_connects_fail_at_once() {
    let fixture = Fixture::new("unarmed");
    let cgroup = fixture.tag("unarmed");
    fixture.kernel().disarm(fixture.kernel().own_netns());
    let begun = Instant::now();
    let attempt = "import socket\ntry:\n  socket.create_connection(('192.0.2.1', 80), 5)\nexcept PermissionError as e:\n  print('refused')";
    let refused = output(spawn(&cgroup, attempt));
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "refused\n");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(fixture.kernel().counters().refused_unarmed >= 1);
}

#[test]
fn the_listener_itself_can_not_be_dialled() {
    let fixture = Fixture::new("listener");
    let cgroup = fixture.tag("listener");
    let port = fixture.v4.local_addr().unwrap().port();
    let attempt = format!(
        "import socket\ntry:\n  socket.create_connection(('127.0.0.1', {port}), 5)\nexcept PermissionError as e:\n  print('refused')"
    );
    assert_eq!(
        String::from_utf8_lossy(&output(spawn(&cgroup, &attempt)).stdout),
        "refused\n"
    );
}

#[test]
fn a_new_daemon_adopts_the_tags_of_one_that_was_killed() {
    let mut fixture = Fixture::new("adopt");
    let cgroup = fixture.tag("adopted");
    // Dropping it leaves pins and cgroups as they are, as SIGKILL would.
    drop(fixture.kernel.take());
    fixture.kernel = Some(Kernel::open(&fixture.instance).unwrap());
    assert_eq!(
        fixture
            .kernel()
            .tags()
            .iter()
            .map(|tag| &*tag.agent.name)
            .collect::<Vec<_>>(),
        ["adopted"]
    );
    fixture.arm(Unrouted::NOTHING);
    let child = spawn(
        &cgroup,
        "import socket\nsocket.create_connection(('192.0.2.9', 443), 5)",
    );
    let stream = accept(&fixture.v4);
    let note = fixture.kernel().note(stream.as_fd()).unwrap().unwrap();
    assert_eq!(note.destination.to_string(), "192.0.2.9:443");
    drop(output(child));
}

#[test]
fn tags_that_make_no_sense_are_refused_with_a_reason() {
    let fixture = Fixture::new("refused");
    let cgroup = fixture.tag("first");
    let reason = |result: Result<super::Tag, KernelError>| result.unwrap_err().to_string();
    let kernel = fixture.kernel();
    let root = kernel.cgroup2.clone();
    assert!(
        reason(kernel.tag(&root, agent("root"), TagKind::Existing, UnixAccess::FREE))
            .contains("holds interceptor itself")
    );
    assert!(
        reason(kernel.tag(&cgroup, agent("again"), TagKind::Existing, UnixAccess::FREE))
            .contains("overlaps with")
    );
    assert!(
        reason(kernel.tag(
            std::path::Path::new("/none"),
            agent("none"),
            TagKind::Existing,
            UnixAccess::FREE
        ))
        .contains("finding the cgroup")
    );
    assert!(reason(kernel.tag_new(agent("first"))).contains("is tagged already"));
    assert!(reason(kernel.untag("second")).contains("no agent named `second`"));
    assert!(
        Kernel::open("a/b")
            .unwrap_err()
            .to_string()
            .contains("no name for an instance")
    );
}

#[test]
fn untagging_gives_direct_connections_back() {
    let fixture = Fixture::new("untag");
    let kernel = fixture.kernel();
    let cgroup = kernel
        .cgroup2
        .join(format!("{}-existing", fixture.instance));
    std::fs::create_dir(&cgroup).unwrap();
    kernel
        .tag(
            &cgroup,
            agent("existing"),
            TagKind::Existing,
            UnixAccess::FREE,
        )
        .unwrap();
    kernel.untag("existing").unwrap();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let child = spawn(
        &cgroup,
        &format!("import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"),
    );
    accept(&server);
    drop(output(child));
    assert!(cgroup.is_dir(), "a cgroup that was there before stays");
    std::fs::remove_dir(&cgroup).unwrap();
}

#[test]
fn a_clean_stop_leaves_nothing() {
    let fixture = Fixture::new("nothing");
    fixture.tag("nothing");
    let (instance, cgroup2) = (fixture.instance.clone(), fixture.kernel().cgroup2.clone());
    drop(fixture);
    assert!(!std::path::Path::new("/sys/fs/bpf").join(&instance).exists());
    assert!(!std::path::Path::new("/run").join(&instance).exists());
    assert!(!cgroup2.join(&instance).exists());
}

/// Does accept() always see the note that the kernel puts at the new socket, and the right one?
#[test]
fn ten_thousand_connections_each_carry_their_own_note() {
    const CONNECTIONS: usize = 10_000;
    let fixture = Fixture::new("stress");
    let cgroup = fixture.tag("stress");
    // Each process connects to ports of its own and sends the port that it asked for.
    let children: Vec<Child> = (0..4)
        .map(|child| {
            spawn(
                &cgroup,
                &format!(
                    "import socket, struct\nfor i in range({each}):\n  p = 1000 + {child} * 10000 + i\n  \
                     s = socket.create_connection(('192.0.2.1', p), 10)\n  s.sendall(struct.pack('>H', p))\n  \
                     s.recv(1)\n  s.close()",
                    each = CONNECTIONS / 4
                ),
            )
        })
        .collect();
    for count in 0..CONNECTIONS {
        if count % 500 == 0 {
            fixture.arm(Unrouted::NOTHING);
        }
        let mut stream = accept(&fixture.v4);
        let note = fixture
            .kernel()
            .note(stream.as_fd())
            .unwrap()
            .expect("no connection may lack its note");
        let mut port = [0; 2];
        stream.read_exact(&mut port).unwrap();
        assert_eq!(note.destination.port(), u16::from_be_bytes(port));
    }
    for child in children {
        assert!(output(child).status.success());
    }
}

#[test]
fn a_cgroup_that_was_made_again_is_not_taken_for_the_tagged_one() {
    let mut fixture = Fixture::new("again");
    let kernel = fixture.kernel();
    let cgroup = kernel.cgroup2.join(format!("{}-again", fixture.instance));
    std::fs::create_dir(&cgroup).unwrap();
    kernel
        .tag(
            &cgroup,
            agent("before"),
            TagKind::Existing,
            UnixAccess::FREE,
        )
        .unwrap();
    // The kernel takes hooks off with the cgroup; one of the same name has none.
    std::fs::remove_dir(&cgroup).unwrap();
    std::fs::create_dir(&cgroup).unwrap();
    let listed = kernel.tags().len();
    drop(fixture.kernel.take());
    fixture.kernel = Some(Kernel::open(&fixture.instance).unwrap());
    let adopted = fixture.kernel().tags().len();
    std::fs::remove_dir(&cgroup).unwrap();
    assert_eq!(
        (listed, adopted),
        (0, 0),
        "nothing watches it, so it must not be listed as watched"
    );
}

#[test]
fn numbers_of_agents_are_never_used_again() {
    let fixture = Fixture::new("numbers");
    let first = fixture.kernel().tag_new(agent("first")).unwrap().number;
    fixture.kernel().untag("first").unwrap();
    let second = fixture.kernel().tag_new(agent("second")).unwrap().number;
    assert_ne!(
        first, second,
        "a connection of the first that is still queued would be the second's"
    );
}

#[test]
fn an_agent_can_not_take_the_port_of_a_daemon_that_died() {
    let mut fixture = Fixture::new("squat");
    let cgroup = fixture.tag("squat");
    let port = fixture.v4.local_addr().unwrap().port();
    // The daemon's listener goes as with SIGKILL, and the kernel side still counts it as alive.
    fixture.v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let attempt = format!(
        "import socket\nfor f, a in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::')):\n  s = socket.socket(f)\n  try:\n    s.bind((a, {port}))\n    print('bound')\n  except PermissionError:\n    print('refused')"
    );
    assert_eq!(
        String::from_utf8_lossy(&output(spawn(&cgroup, &attempt)).stdout),
        "refused\nrefused\n"
    );
}

#[test]
fn a_connect_through_a_device_is_refused() {
    let fixture = Fixture::new("device");
    let cgroup = fixture.tag("device");
    let attempt = "
import socket
def attempt(s, address):
    s.settimeout(3)
    try:
        s.connect(address)
        print('passed')
    except PermissionError:
        print('refused')
    except OSError as e:
        print(e)
s = socket.socket()
device = next(name for index, name in socket.if_nameindex() if index != 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
attempt(s, ('192.0.2.1', 80))
attempt(socket.socket(socket.AF_INET6), ('fe80::1', 80, 0, 2))
";
    assert_eq!(
        String::from_utf8_lossy(&output(spawn(&cgroup, attempt)).stdout),
        "refused\nrefused\n"
    );
}

#[test]
fn data_in_the_first_packet_is_redirected_too() {
    let fixture = Fixture::new("fastopen");
    let cgroup = fixture.tag("fastopen");
    let child = spawn(
        &cgroup,
        "import socket\ns = socket.socket()\n\
         s.sendto(b'early', socket.MSG_FASTOPEN, ('192.0.2.8', 80))\ns.recv(1)",
    );
    let mut stream = accept(&fixture.v4);
    let note = fixture.kernel().note(stream.as_fd()).unwrap().unwrap();
    assert_eq!(note.destination.to_string(), "192.0.2.8:80");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"early");
    drop(stream);
    drop(output(child));
}

/// Takes the capabilities out of this thread's effective set; the rest of the process keeps them.
fn without_capabilities<T: Send>(then: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            /// _LINUX_CAPABILITY_VERSION_3
            const VERSION: u32 = 0x2008_0522;
            const CAP_NET_ADMIN: u32 = 1 << 12;
            const CAP_SYS_ADMIN: u32 = 1 << 21;
            const CAP_BPF: u32 = 1 << (39 - 32);
            let header = [VERSION, 0];
            // effective, permitted, inheritable; the lower halves, then the upper.
            let mut sets = [0_u32; 6];
            // SAFETY: the kernel reads and writes as much as this version of the arrays has.
            let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) };
            assert_eq!(got, 0);
            sets[0] &= !(CAP_NET_ADMIN | CAP_SYS_ADMIN);
            sets[3] &= !CAP_BPF;
            // SAFETY: as above.
            let set =
                unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) };
            assert_eq!(set, 0);
            then()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_start_that_fails_says_what_is_missing_and_leaves_nothing() {
    let _turn = turn();
    let instance = format!("interceptor-test-powerless-{}", std::process::id());
    let error = without_capabilities(|| Kernel::open(&instance).map(drop)).unwrap_err();
    assert!(error.to_string().contains("CAP_BPF"), "{error}");
    let cgroup2 = super::cgroup::mount_point().unwrap();
    assert!(!cgroup2.join(&instance).exists());
    assert!(!std::path::Path::new("/sys/fs/bpf").join(&instance).exists());
}
