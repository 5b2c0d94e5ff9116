//! The process that reads what agents and servers send: what somebody who takes it over can do from there, and
//! what becomes of its sessions when it ends.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    thread,
    time::Duration,
};

use interceptor_tests::{daemon::Daemon, paths, run};

use crate::{redirect::Cgroup, support::ALLOW_ALL};

/// Says what it hears, on every connection.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
    port
}

fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 4_096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let body = "ok";
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if buffer[..length].ends_with(b"\r\n\r\n") && stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Asks once a line that it reads, on one connection for as long as that goes on; says what came.
const ASK: &str = "
import http.client, sys
connection = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=30)
for line in sys.stdin:
    try:
        connection.request('GET', '/' + line.strip())
        print(connection.getresponse().read().decode(), flush=True)
    except Exception as e:
        connection.close()
        print(type(e).__name__, flush=True)
";

#[test]
fn one_that_ends_is_replaced_and_its_sessions_end_on_record() {
    let port = echo();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "asking"])
        .unwrap();
    let mut command = cgroup.command("python3");
    command.args(["-c", ASK, &port.to_string()]);
    let mut asking = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = asking.stdin.take().unwrap();
    let mut output = std::io::BufReader::new(asking.stdout.take().unwrap());
    let mut ask = |what: &str| {
        input.write_all(format!("{what}\n").as_bytes()).unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(ask("one"), "ok");
    let first = daemon.proxy().unwrap();
    nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).unwrap();
    // The connection is gone; a new one waits until somebody serves it.
    assert_ne!(ask("two"), "ok");
    assert_eq!(ask("three"), "ok");
    let second = daemon.proxy().unwrap();
    assert_ne!(first, second);
    drop(input);
    asking.wait().unwrap();
    run::wait_for("both ends on record", Duration::from_secs(10), || {
        let journal = daemon.journal()?;
        Ok((journal.of_kind("session_end").count() == 2).then_some(()))
    })
    .unwrap();
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.mentioning("session_end", "SIGKILL").count(), 1);
    assert_eq!(journal.mentioning("event", "proxy_ended").count(), 1);
    assert!(journal.mentioning("operation", "/three").count() == 1);
    daemon.ask(&["status"]).unwrap();
    daemon.ask(&["verify"]).unwrap();
}

/// A traced process, which does what it is told.
mod puppet {
    use nix::{
        sys::{
            ptrace,
            wait::{WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    pub(super) struct Puppet {
        pid: Pid,
        registers: libc::user_regs_struct,
    }

    impl Puppet {
        /// Takes over the main thread of `pid`, which waits in the kernel.
        pub(super) fn of(pid: Pid) -> Self {
            ptrace::attach(pid).unwrap();
            waitpid(pid, None).unwrap();
            let registers = ptrace::getregs(pid).unwrap();
            Self { pid, registers }
        }

        /// What the system call `number` answers; the largest error there is where it is killed for it.
        pub(super) fn call(&mut self, number: i64, arguments: [u64; 6]) -> i64 {
            let mut registers = self.registers;
            // It stopped right behind the instruction.
            registers.rip -= 2;
            registers.orig_rax = u64::MAX;
            registers.rax = number.cast_unsigned();
            let [rdi, rsi, rdx, r10, r8, r9] = arguments;
            (registers.rdi, registers.rsi, registers.rdx) = (rdi, rsi, rdx);
            (registers.r10, registers.r8, registers.r9) = (r10, r8, r9);
            ptrace::setregs(self.pid, registers).unwrap();
            ptrace::step(self.pid, None).unwrap();
            match waitpid(self.pid, None).unwrap() {
                WaitStatus::Stopped(..) => ptrace::getregs(self.pid).unwrap().rax.cast_signed(),
                _ => i64::MIN,
            }
        }

        /// Where `bytes` are now, behind what the stack holds; eight kilobytes at the most.
        pub(super) fn put(&self, bytes: &[u8]) -> u64 {
            let at = (self.registers.rsp - 16_384) & !7;
            for (index, word) in bytes.chunks(8).enumerate() {
                let mut padded = [0; 8];
                padded[..word.len()].copy_from_slice(word);
                let place = (at + index as u64 * 8) as ptrace::AddressType;
                ptrace::write(self.pid, place, i64::from_ne_bytes(padded)).unwrap();
            }
            at
        }

        pub(super) fn text(&self, text: &str) -> u64 {
            self.put(format!("{text}\0").as_bytes())
        }
    }

    impl Drop for Puppet {
        fn drop(&mut self) {
            let _ = ptrace::setregs(self.pid, self.registers);
            let _ = ptrace::detach(self.pid, None);
        }
    }
}

#[test]
fn who_takes_it_over_reaches_nothing_that_the_daemon_has() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let proxy = daemon.proxy().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_ne!(line("Uid:").split(' ').next(), Some("0"));
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(
        (line("NoNewPrivs:"), line("Seccomp:")),
        ("1".into(), "2".into())
    );
    assert_eq!(line("Groups:"), "");

    let mut puppet = puppet::Puppet::of(proxy);
    let refused = |what: &str, answer: i64, errors: &[i32]| {
        let expected = errors.iter().any(|error| answer == -i64::from(*error));
        assert!(expected, "{what}: {answer}");
    };
    let denied: &[i32] = &[libc::EPERM, libc::EACCES];
    let cwd = libc::AT_FDCWD as u64;
    // What it does for a living, so that the rest isn't refused for another reason.
    let own = puppet.call(libc::SYS_getpid, [0; 6]);
    assert_eq!(own, i64::from(proxy.as_raw()));
    // Files: the authority's key, the log, the configuration, what others have.
    let state = daemon.state();
    let segment = run::wait_for("a segment of the log", Duration::from_secs(5), || {
        Ok(std::fs::read_dir(state.join("segments"))?.next())
    });
    for path in [
        state.join("ca/ca.key"),
        state.join("ca/ca.pem"),
        segment.unwrap().unwrap().path(),
        state.join("waiting-a"),
        state.join("journal.key"),
        daemon.configuration(),
        "/etc/passwd".into(),
        "/proc/self/mem".into(),
        "/".into(),
    ] {
        for flags in [
            libc::O_RDONLY,
            libc::O_WRONLY,
            libc::O_RDONLY | libc::O_CREAT,
        ] {
            let at = puppet.text(path.to_str().unwrap());
            let answer = puppet.call(libc::SYS_openat, [cwd, at, flags as u64, 0, 0, 0]);
            let what = format!("open {} {flags}", path.display());
            refused(
                &what,
                answer,
                &[libc::EPERM, libc::EACCES, libc::EISDIR, libc::ENOENT],
            );
        }
    }
    // Others' processes, programs, namespaces, sockets, hooks.
    let daemon_pid = daemon.pid().unwrap() as u64;
    let control = puppet.text("/bin/sh");
    let calls: [(&str, i64, [u64; 6]); 18] = [
        (
            "kill the daemon",
            libc::SYS_kill,
            [daemon_pid, 9, 0, 0, 0, 0],
        ),
        ("execve", libc::SYS_execve, [control, 0, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [16, daemon_pid, 0, 0, 0, 0]),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            [daemon_pid, 0, 0, 0, 0, 0],
        ),
        (
            "pidfd_open",
            libc::SYS_pidfd_open,
            [daemon_pid, 0, 0, 0, 0, 0],
        ),
        ("setuid", libc::SYS_setuid, [0; 6]),
        ("fork", libc::SYS_fork, [0; 6]),
        (
            "clone",
            libc::SYS_clone,
            [libc::SIGCHLD as u64, 0, 0, 0, 0, 0],
        ),
        (
            "unshare",
            libc::SYS_unshare,
            [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0],
        ),
        ("setns", libc::SYS_setns, [0; 6]),
        ("mount", libc::SYS_mount, [0; 6]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        (
            "io_uring",
            libc::SYS_io_uring_setup,
            [8, control, 0, 0, 0, 0],
        ),
        (
            "a raw socket",
            libc::SYS_socket,
            [libc::AF_INET as u64, 3, 1, 0, 0, 0],
        ),
        (
            "a packet socket",
            libc::SYS_socket,
            [libc::AF_PACKET as u64, 3, 0, 0, 0, 0],
        ),
        (
            "a Unix socket",
            libc::SYS_socket,
            [libc::AF_UNIX as u64, 1, 0, 0, 0, 0],
        ),
        (
            "netlink",
            libc::SYS_socket,
            [libc::AF_NETLINK as u64, 3, 0, 0, 0, 0],
        ),
        (
            "runnable memory",
            libc::SYS_mmap,
            [0, 4_096, 7, 0x22, u64::MAX, 0],
        ),
    ];
    for (what, number, arguments) in calls {
        let answer = puppet.call(number, arguments);
        refused(what, answer, denied);
    }
    // A port of its own, which agents could be sent to.
    let socket = puppet.call(libc::SYS_socket, [libc::AF_INET as u64, 1, 0, 0, 0, 0]);
    assert!(socket >= 0, "{socket}");
    let mut address = [0_u8; 16];
    address[0] = libc::AF_INET as u8;
    address[2..8].copy_from_slice(&[0x30, 0x39, 127, 0, 0, 1]);
    let at = puppet.put(&address);
    let bound = puppet.call(libc::SYS_bind, [socket as u64, at, 16, 0, 0, 0]);
    refused("bind", bound, denied);
    // The feed, whose length the daemon counts on.
    let feed = state.join("feed");
    let inode = std::fs::metadata(&feed).unwrap().ino();
    let descriptor = std::fs::read_dir(format!("/proc/{proxy}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| std::fs::metadata(entry.path()).is_ok_and(|meta| meta.ino() == inode))
        .unwrap();
    let number: u64 = descriptor.file_name().to_str().unwrap().parse().unwrap();
    let cut = puppet.call(libc::SYS_ftruncate, [number, 0, 0, 0, 0, 0]);
    refused("ftruncate", cut, denied);
    let punch = puppet.call(libc::SYS_fallocate, [number, 3, 0, 4_096, 0, 0]);
    refused("fallocate", punch, denied);
    // Nor are there descriptors that lead anywhere: the line, the feed, sockets, what runtimes take.
    for entry in std::fs::read_dir(format!("/proc/{proxy}/fd")).unwrap() {
        let to = std::fs::read_link(entry.unwrap().path()).unwrap();
        let to = to.to_str().unwrap();
        let is_fine = to.starts_with("socket:")
            || to.starts_with("pipe:")
            || to.starts_with("anon_inode:[event")
            || to == "/dev/null"
            || to == feed.to_str().unwrap()
            || to.ends_with("/log");
        assert!(is_fine, "{to}");
    }
    drop(puppet);
    // None the worse.
    assert_eq!(daemon.proxy(), Some(proxy));
}

#[test]
fn one_that_says_what_none_would_say_is_ended_and_that_is_on_record() {
    let port = echo();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let proxy = daemon.proxy().unwrap();
    {
        let mut puppet = puppet::Puppet::of(proxy);
        // Its line is what it was started with.
        let at = puppet.put(b"\x07nonsense");
        // It may be ended before it hears how that went.
        puppet.call(libc::SYS_sendto, [0, at, 9, 0, 0, 0]);
    }
    let other = run::wait_for("another one", Duration::from_secs(10), || {
        Ok(daemon.proxy().filter(|other| *other != proxy))
    })
    .unwrap();
    assert_ne!(other, proxy);
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.mentioning("event", "proxy_misbehaved").count(), 1);
    // What it carries is carried.
    let mut command = daemon.run_as("after", paths::python().unwrap());
    let ask = format!(
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/x').read().decode())"
    );
    let said = run::output(command.args(["-c", &ask])).unwrap();
    assert_eq!(said, "ok\n");
}
