//! UNIX sockets, by the hooks alone.

use super::{
    super::{UnixAccess, UnixSockets, hooks, link, program},
    *,
};

/// A cgroup of a test's own, tagged with what it may do; removed with its fixture's hooks.
struct Tagged {
    cgroup: PathBuf,
}

impl Tagged {
    fn new(fixture: &Fixture, name: &str, unix: UnixAccess) -> Self {
        let kernel = fixture.kernel();
        let cgroup = kernel.cgroup2.join(format!("{}-{name}", fixture.instance));
        std::fs::create_dir(&cgroup).unwrap();
        kernel
            .tag(&cgroup, agent(name), TagKind::Existing, unix)
            .unwrap();
        Self { cgroup }
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.cgroup).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Connects or sends to everything that there is, and prints what came of it.
const TRY: &str = "
import socket, sys, errno
S, D, Q = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
def attempt(label, kind, name, send=False):
    with socket.socket(socket.AF_UNIX, kind) as client:
        try:
            client.sendto(b'x', name) if send else client.connect(name)
            print(label, 'passed')
        except OSError as error:
            print(label, errno.errorcode[error.errno])
";

/// Whether this kernel has hooks on UNIX sockets. Where it has none, none is attached, and the kernel's side says why.
fn has_hooks(fixture: &Fixture) -> bool {
    let Some(why) = super::super::unguarded() else {
        return true;
    };
    assert!(why.contains("Linux 6.7"), "{why}");
    assert!(hooks::names().all(|name| !name.ends_with("_unix")));
    let unix = UnixAccess {
        sockets: UnixSockets::Refuse,
        allowed: Vec::new(),
    };
    let tagged = Tagged::new(fixture, "unhooked", unix);
    let open = format!(
        "{TRY}
other = socket.socket(socket.AF_UNIX, S)
other.bind('\\0{}-other')
other.listen()
attempt('other', S, '\\0{}-other')
",
        fixture.instance, fixture.instance
    );
    assert_eq!(said(&tagged.cgroup, &open), "other passed\n");
    let counters = fixture.kernel().counters();
    assert_eq!((counters.refused_unix, counters.unix_direct), (0, 0));
    false
}

#[test]
fn what_is_neither_its_own_nor_allowed_is_refused_by_name() {
    let fixture = Fixture::new("unix");
    if !has_hooks(&fixture) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let hidden = format!("@{}-hidden", fixture.instance);
    let allowed = format!("@{}-allowed", fixture.instance);
    let unix = UnixAccess {
        sockets: UnixSockets::Refuse,
        allowed: [path("allowed"), allowed.clone(), path("in/")]
            .map(|name| name.parse().unwrap())
            .to_vec(),
    };
    let tagged = Tagged::new(&fixture, "names", unix);
    let mut events = fixture.kernel().take_events().unwrap();
    std::fs::create_dir_all(path("in/below")).unwrap();
    std::fs::create_dir(path("inside")).unwrap();
    let servers = format!(
        "{TRY}
sockets = []
for kind, name in [(S, '{stream}'), (S, '{allowed_path}'), (D, '{datagram}'), (Q, '{packets}'), (S, '{folder}/in/x'), (S, '{folder}/in/below/x'), (S, '{folder}/inside/x'), (S, '\\0{hidden}'), (D, '\\0{hidden}'), (S, '\\0{allowed}')]:
    sockets.append(socket.socket(socket.AF_UNIX, kind))
    sockets[-1].bind(name)
    if kind != D: sockets[-1].listen()
print('ready', flush=True)
sys.stdin.read()
",
        stream = path("stream"),
        allowed_path = path("allowed"),
        datagram = path("datagram"),
        packets = path("packets"),
        folder = folder.path().display(),
        hidden = &hidden[1..],
        allowed = &allowed[1..],
    );
    let mut outside = Command::new("python3")
        .args(["-c", &servers])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    outside
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 6])
        .unwrap();
    let said = said(
        &tagged.cgroup,
        &format!(
            "{TRY}
attempt('stream', S, '{stream}')
attempt('allowed path', S, '{allowed_path}')
attempt('allowed path longer', S, b'{allowed_path}' + bytes(9))
attempt('allowed path otherwise', S, '{folder}/./allowed')
attempt('in folder', S, '{folder}/in/x')
attempt('below folder', S, '{folder}/in/below/x')
attempt('beside folder', S, '{folder}/inside/x')
attempt('out of folder', S, '{folder}/in/../stream')
attempt('out of below', S, '{folder}/in/below/../../stream')
attempt('the folder', S, '{folder}/in')
attempt('datagram', D, '{datagram}')
attempt('datagram sent', D, '{datagram}', True)
attempt('packets', Q, '{packets}')
attempt('hidden', S, '\\0{hidden}')
attempt('hidden sent', D, '\\0{hidden}', True)
attempt('allowed', S, '\\0{allowed}')
attempt('allowed longer', S, b'\\0{allowed}\\0')
attempt('nobody', S, '\\0nobody')
own = socket.socket(socket.AF_UNIX, S)
own.bind('\\0{hidden}-own')
own.listen()
attempt('own', S, '\\0{hidden}-own')
attempt('own other type', D, '\\0{hidden}-own')
mine = socket.socket(socket.AF_UNIX, D)
mine.bind(b'\\0' + b'x' * 107)
attempt('own sent', D, b'\\0' + b'x' * 107, True)
attempt('own connected', D, b'\\0' + b'x' * 107)
a, b = socket.socketpair(socket.AF_UNIX, S)
a.send(b'x')
print('pair', b.recv(1))
",
            stream = path("stream"),
            allowed_path = path("allowed"),
            datagram = path("datagram"),
            packets = path("packets"),
            folder = folder.path().display(),
            hidden = &hidden[1..],
            allowed = &allowed[1..],
        ),
    );
    drop(outside.stdin.take());
    outside.wait().unwrap();
    assert_eq!(
        said,
        "stream EPERM
allowed path passed
allowed path longer passed
allowed path otherwise EPERM
in folder passed
below folder passed
beside folder EPERM
out of folder EPERM
out of below EPERM
the folder EPERM
datagram EPERM
datagram sent EPERM
packets EPERM
hidden EPERM
hidden sent EPERM
allowed passed
allowed longer EPERM
nobody EPERM
own passed
own other type EPERM
own sent passed
own connected passed
pair b'x'
"
    );
    let told: Vec<(String, String)> = std::iter::from_fn(|| events.next_refusal())
        .map(|refusal| (refusal.name.to_owned(), refusal.socket.unwrap()))
        .collect();
    let has = |name: &str, socket: &str| told.contains(&(name.to_owned(), socket.to_owned()));
    assert!(has("unix_refused", &path("stream")), "{told:?}");
    assert!(has("unix_refused", &hidden), "{told:?}");
    assert!(has("unix_refused", &format!("{allowed}\\x00")), "{told:?}");
    assert!(has("unix_allowed", &path("allowed")), "{told:?}");
    assert!(
        has("unix_direct", &format!("@{}", "x".repeat(107))),
        "{told:?}"
    );
    // Whatever starts the text may ask for sockets of its own: a shell without HOME asks who it is.
    let is_asked_above = |socket: &str| {
        socket.starts_with(&path(""))
            || socket.starts_with(&format!("@{}-", fixture.instance))
            || [format!("@{}", "x".repeat(107)), "@nobody".to_owned()].contains(&socket.to_owned())
    };
    let counters = fixture.kernel().counters();
    for (name, asked, counted) in [
        ("unix_refused", 14, counters.refused_unix),
        ("unix_allowed", 5, counters.unix_allowed),
        ("unix_direct", 3, counters.unix_direct),
    ] {
        let all = told.iter().filter(|(told, _)| told == name);
        assert_eq!(all.clone().count() as u64, counted, "{name}: {told:?}");
        let above = all.filter(|(_, socket)| is_asked_above(socket));
        assert_eq!(above.count(), asked, "{name}: {told:?}");
    }
}

#[test]
fn a_kernel_that_shows_no_names_refuses_all() {
    let fixture = Fixture::new("blind");
    if !has_hooks(&fixture) {
        return;
    }
    let kernel = fixture.kernel();
    let cgroup = kernel.cgroup2.join(format!("{}-blind", fixture.instance));
    std::fs::create_dir(&cgroup).unwrap();
    let tagged = Tagged { cgroup };
    let own = format!(
        "{TRY}
own = socket.socket(socket.AF_UNIX, S)
own.bind('\\0{}-own')
own.listen()
attempt('own', S, '\\0{}-own')
",
        fixture.instance, fixture.instance
    );
    assert_eq!(said(&tagged.cgroup, &own), "own passed\n");
    let object = hooks::load(&kernel.pins, hooks::Bearer::default()).unwrap();
    let program = program::load_blind(hooks::OBJECT, &object);
    let folder = std::fs::File::open(&tagged.cgroup).unwrap();
    let pin = kernel.pins.join("blind");
    link::attach(program, folder, program::UNIX_CONNECT, &pin).unwrap();
    assert_eq!(said(&tagged.cgroup, &own), "own EPERM\n");
    std::fs::remove_file(pin).unwrap();
    let mut events = kernel.take_events().unwrap();
    let refusal = events.next_refusal().unwrap();
    assert_eq!((refusal.name, refusal.socket), ("unix_refused", None));
}
