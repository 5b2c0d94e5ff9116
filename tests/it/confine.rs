//! What `run` launches can't leave: a hostile process tries every way out that it knows, as root and as an
//! ordinary user, and then without `run`, where what is tried works. What people do with `run` works in it.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram, UnixListener},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use interceptor_tests::{
    daemon::Daemon,
    host,
    keeper::{self, Farewell, Keeper},
    paths, run, scratch,
};
use serde_json::json;

use crate::support::ALLOW_ALL;

pub(crate) const NOBODY: u32 = 65_534;

/// Who can do what is tried, without `run`, on any host that these tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    /// Nobody, or it isn't tried for the host's sake, or it depends on what the kernel has.
    Unknown,
    Root,
    /// An ordinary user.
    User,
    Both,
}
use Without::{Both, Root, Unknown, User};

/// What is tried, what stops root, what stops an ordinary user, and who gets out without `run`.
#[rustfmt::skip]
const ATTEMPTS: &[(&str, &str, &str, Without)] = &[
    // The cgroup: mounted read-only, and no clone3.
    ("write_cgroup_procs", "EROFS", "EROFS EACCES", Root),
    ("clone_into_cgroup", "ENOSYS", "ENOSYS", Root),
    ("mount_cgroupfs", "EPERM", "EPERM", Root),
    ("make_cgroup", "EROFS", "EROFS EACCES", Root),
    // Namespaces and mounts: seccomp.
    ("unshare_network", "EPERM", "EPERM", Root),
    ("unshare_user", "EPERM", "EPERM", Both),
    ("clone_user", "EPERM", "EPERM", Both),
    ("clone3_user", "ENOSYS", "ENOSYS", Both),
    ("setns_outside", "ESRCH", "ESRCH", Root),
    ("setns_first_process", "EACCES", "EACCES", Unknown),
    ("mount_tmpfs", "EPERM", "EPERM", Root),
    ("new_mount_api", "EPERM", "EPERM", Root),
    ("clone_mounts", "EPERM", "EPERM", Root),
    ("unmount_cover", "EPERM", "EPERM", Unknown),
    ("uncover_in_namespace", "EPERM", "EPERM", Unknown),
    ("writable_in_namespace", "EPERM", "EPERM", Unknown),
    ("open_by_handle", "EPERM", "EPERM", Root),
    // Sockets that no hook sees: seccomp.
    ("family_packet", "EAFNOSUPPORT", "EAFNOSUPPORT", Root),
    ("family_key", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_rds", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_can", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_tipc", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_bluetooth", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_alg", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_nfc", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_vsock", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_qipcrtr", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_smc", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_xdp", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_mctp", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_unspecified", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("family_unknown", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("packet_by_type", "EPERM", "EPERM", Root),
    ("raw_ipv4", "EPERM", "EPERM", Root),
    ("raw_ipv6", "EPERM", "EPERM", Root),
    ("netlink_generic", "EAFNOSUPPORT", "EAFNOSUPPORT", Both),
    ("netlink_audit", "EAFNOSUPPORT", "EAFNOSUPPORT", Unknown),
    ("netlink_add_route", "EPERM", "EPERM", Unknown),
    ("io_uring", "ENOSYS", "ENOSYS", Unknown),
    // The kernel: seccomp, and files of it that are read-only or out of sight.
    ("bpf", "EPERM", "EPERM", Root),
    ("perf_event", "EPERM", "EPERM", Unknown),
    ("userfaultfd", "EPERM", "EPERM", Unknown),
    ("load_module", "EPERM", "EPERM", Unknown),
    ("keys", "EPERM", "EPERM", Unknown),
    ("i386", "SIGSYS", "SIGSYS", Unknown),
    ("x32", "ENOSYS", "ENOSYS", Unknown),
    ("later_system_call", "ENOSYS", "ENOSYS", Unknown),
    ("core_pattern", "EROFS", "EROFS EACCES", Root),
    ("write_sysctl", "EROFS", "EROFS EACCES", Root),
    ("write_sysfs", "EROFS", "EROFS EACCES", Root),
    ("tracing", "EMPTY ENOENT", "EMPTY ENOENT", Unknown),
    ("pins", "EMPTY ENOENT", "EMPTY ENOENT", Unknown),
    ("raise_limits", "EPERM", "EPERM", Unknown),
    // Devices: a /dev of its own, none elsewhere.
    ("disk_node", "ENOENT", "ENOENT", Unknown),
    ("make_disk_node", "EPERM", "EPERM", Root),
    ("open_others_disk_node", "EACCES", "EACCES", Root),
    ("memory_device", "ENOENT", "ENOENT", Unknown),
    ("kernel_log", "ENOENT", "ENOENT", Root),
    ("shared_memory", "ENOENT", "ENOENT", Both),
    ("type_into_terminal", "EPERM", "EPERM", Unknown),
    // Processes outside: a process namespace of its own.
    ("signal_outside", "ESRCH", "ESRCH", Both),
    ("ptrace_outside", "ESRCH", "ESRCH", Both),
    ("read_memory_outside", "ESRCH", "ESRCH", Both),
    ("process_vm_readv", "ESRCH", "ESRCH", Both),
    ("descriptor_outside", "ESRCH", "ESRCH", Both),
    ("pidfd_getfd", "ESRCH", "ESRCH", Both),
    ("root_outside", "ESRCH", "ESRCH", Both),
    ("environment_outside", "ESRCH", "ESRCH", Both),
    ("inherited_descriptor", "EBADF", "EBADF", Both),
    ("first_process_program", "EACCES", "EACCES", Unknown),
    ("first_process_traced", "EPERM", "EPERM", Unknown),
    ("priority", "EACCES EPERM", "EACCES EPERM", Unknown),
    ("setuid_program", "EPERM", "EPERM", User),
    // Unix sockets: covered one by one, in whole folders, and those without a path by Landlock.
    ("path_socket", "ECONNREFUSED", "ECONNREFUSED", Both),
    ("datagram_socket", "ECONNREFUSED", "ECONNREFUSED", Both),
    ("relative_socket", "ECONNREFUSED", "ECONNREFUSED", Both),
    ("ssh_agent", "ECONNREFUSED", "ECONNREFUSED", Both),
    ("tmux", "ENOENT", "ENOENT", Both),
    ("abstract_socket", "EPERM", "EPERM", Both),
    ("abstract_datagram", "EPERM", "EPERM", Both),
    ("socket_by_other_folder", "ECONNREFUSED", "ECONNREFUSED", Both),
    ("late_socket_in_run", "ENOENT", "ENOENT", Both),
    ("control_socket", "ECONNREFUSED", "ECONNREFUSED", Root),
    // Files of ours, and files that have others run something.
    ("authority_key", "ENOENT", "ENOENT", Root),
    ("journal", "EMPTY", "EMPTY", Root),
    ("change_policy", "EROFS", "EROFS EACCES", Root),
    ("add_policy", "EROFS", "EROFS EACCES", Root),
    ("change_interceptor", "EROFS", "EROFS EPERM", Root),
    ("cron_job", "EROFS", "EROFS EACCES", Root),
    ("systemd_unit", "EROFS", "EROFS EACCES", Root),
];

/// What is outside, for the hostile process to reach.
pub(crate) struct World {
    pub(crate) daemon: Daemon,
    pub(crate) folder: PathBuf,
    late: PathBuf,
    _sockets: Vec<Box<dyn std::any::Any>>,
    _keepers: Vec<Keeper>,
}

impl World {
    fn new() -> Self {
        Self::under(ALLOW_ALL)
    }

    pub(crate) fn under(policy: &str) -> Self {
        let daemon = Daemon::start(policy).unwrap();
        let folder = scratch::folder("outside").unwrap();
        open_to_all(&folder);
        let name = scratch::name("interceptor-it-outside");
        let late = Path::new("/run").join(&name);
        let tmux = PathBuf::from(format!(
            "/tmp/tmux-{}",
            name.replace(|each: char| !each.is_ascii_digit(), "")
        ));
        let shared = Path::new("/dev/shm").join(&name);
        let cgroup = keeper::cgroup2().unwrap().join(&name);
        // Before anything of it is made.
        let script = "rm -rf -- \"$1\" \"$2\" \"$3\" \"$4\"; rmdir \"$5\"";
        let made = [&folder, &late, &tmux, &shared, &cgroup].map(|path| path.as_os_str());
        let mut keepers = vec![Keeper::of_command(script, made).unwrap()];
        for made in [&late, &tmux] {
            fs::create_dir(made).unwrap();
            open_to_all(made);
        }
        fs::write(&shared, "").unwrap();
        fs::create_dir(&cgroup).unwrap();

        let mut sockets: Vec<Box<dyn std::any::Any>> = Vec::new();
        let [stream, agent, server] = [
            folder.join("stream"),
            folder.join("agent"),
            tmux.join("default"),
        ];
        for path in [&stream, &agent, &server] {
            sockets.push(Box::new(UnixListener::bind(path).unwrap()));
            open_to_all(path);
        }
        // Bound by a name in the working folder, as the kernel then tells it.
        let mut listener = Command::new("/usr/bin/python3");
        let script = "import os, socket, time
server = socket.socket(socket.AF_UNIX); server.bind('relative'); os.chmod('relative', 0o777); server.listen()
time.sleep(600)";
        let listener = listener
            .args(["-c", script])
            .current_dir(&folder)
            .spawn()
            .unwrap();
        let relative = folder.join("relative");
        run::wait_for("the server", run::PATIENCE, || {
            let meta = fs::metadata(&relative);
            Ok(meta
                .is_ok_and(|meta| meta.permissions().mode() & 0o777 == 0o777)
                .then_some(()))
        })
        .unwrap();
        let nowhere = folder.join("unused");
        let mut keeper = Keeper::of_process(listener.id(), Farewell::Terminate, &nowhere).unwrap();
        keeper.reap(listener);
        keepers.push(keeper);
        let datagram = folder.join("datagram");
        sockets.push(Box::new(UnixDatagram::bind(&datagram).unwrap()));
        open_to_all(&datagram);
        let address = |name: &str| SocketAddr::from_abstract_name(name).unwrap();
        sockets.push(Box::new(UnixListener::bind_addr(&address(&name)).unwrap()));
        let datagrams = format!("{name}-datagram");
        sockets.push(Box::new(
            UnixDatagram::bind_addr(&address(&datagrams)).unwrap(),
        ));

        // A program that tells whose rights it has.
        let setuid = folder.join("id");
        fs::copy("/usr/bin/id", &setuid).unwrap();
        fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
        let readable = folder.join("readable");
        fs::write(&readable, "x").unwrap();
        let mountable = folder.join("mountable");
        fs::create_dir(&mountable).unwrap();
        let disk = folder.join("disk");
        run::output(
            Command::new("mknod")
                .arg("-m666")
                .arg(&disk)
                .args(["b", "7", "0"]),
        )
        .unwrap();
        let world = json!({
            "cgroup": cgroup,
            "link": format!("itd{}", std::process::id() % 1_000_000),
            "readable": readable,
            "writable": folder,
            "mountable": mountable,
            "disk": disk,
            "shared": shared,
            "setuid": format!("{} -u", setuid.display()),
            "stream": stream,
            "relative": relative,
            "datagram": datagram,
            "tmux": server,
            "abstract": name,
            "late": late.join("late"),
            "control": daemon.control(),
            "state": daemon.state(),
            "policies": daemon.policies(),
            "program": paths::interceptor().unwrap(),
        });
        for user in [0, NOBODY] {
            let marker = format!("{name}-{user}");
            let mut sleep = Command::new("sleep");
            sleep.arg0(&marker).arg("600").stdin(Stdio::null());
            let child = sleep.uid(user).gid(user).spawn().unwrap();
            let mut world = world.clone();
            world["marker"] = marker.into();
            world["pid"] = child.id().into();
            fs::write(folder.join(format!("world-{user}")), world.to_string()).unwrap();
            let nowhere = folder.join("unused");
            let mut keeper = Keeper::of_process(child.id(), Farewell::Terminate, &nowhere).unwrap();
            keeper.reap(child);
            keepers.push(keeper);
        }
        Self {
            daemon,
            folder,
            late: late.join("late"),
            _sockets: sockets,
            _keepers: keepers,
        }
    }

    /// Has the hostile process try all of `attempts`, started by `start` of which it is the end.
    fn try_out(&self, user: u32, start: Command, attempts: &[&str]) -> BTreeMap<String, String> {
        let name = scratch::name("run");
        let mut command = Command::new("/bin/sh");
        // Something is open that nobody meant to pass on.
        command
            .args(["-c", "exec 7</etc/hostname; exec \"$@\"", "sh"])
            .arg(start.get_program())
            .args(start.get_args())
            .arg("/usr/bin/python3")
            .arg(paths::client("escape.py"))
            .arg(self.folder.join(format!("world-{user}")))
            .arg(&name)
            .args(attempts)
            .env("SSH_AUTH_SOCK", self.folder.join("agent"))
            .current_dir("/");
        let running = run::start(&mut command).unwrap();
        let ready = self.folder.join(format!("ready-{name}"));
        run::wait_for("the agent", Duration::from_secs(60), || {
            Ok(ready.exists().then_some(()))
        })
        .unwrap();
        // A service starts only now, or anew.
        let _ = fs::remove_file(&self.late);
        let late = UnixListener::bind(&self.late).unwrap();
        open_to_all(&self.late);
        fs::write(self.folder.join(format!("late-{name}")), "").unwrap();
        let outcome = running.outcome_within(Duration::from_secs(60)).unwrap();
        drop(late);
        assert!(outcome.status.success(), "{outcome}");
        let line = |line: &str| {
            let (name, result) = line.split_once(' ').unwrap();
            (name.to_owned(), result.to_owned())
        };
        outcome.stdout.lines().map(line).collect()
    }

    fn as_agent(&self, user: u32, flags: &[&str], attempts: &[&str]) -> BTreeMap<String, String> {
        let mut arguments = vec!["run", "--agent", "hostile"];
        arguments.extend(flags);
        if user == NOBODY {
            arguments.extend(["--user", "nobody"]);
        }
        arguments.push("--");
        self.try_out(user, self.daemon.command(arguments), attempts)
    }

    /// Only what harms no host.
    fn unconfined(&self, user: u32, attempts: &[&str]) -> BTreeMap<String, String> {
        let mut command = Command::new("setpriv");
        if user == NOBODY {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        self.try_out(user, command, attempts)
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn there_is_no_way_out_of_run_and_without_it_there_are_all_of_them() {
    let world = World::new();
    let unscoped = host::weaker(&world.daemon, host::ABSTRACT_SCOPE).unwrap();
    let all: Vec<&str> = ATTEMPTS.iter().map(|(name, ..)| *name).collect();
    for user in [0, NOBODY] {
        let confined = world.as_agent(user, &[], &all);
        let mut wrong = Vec::new();
        for (name, root, nobody, _) in ATTEMPTS {
            let expected = if name.starts_with("abstract_") && unscoped.is_some() {
                &"out"
            } else if user == 0 {
                root
            } else {
                nobody
            };
            let seen = confined.get(*name).map_or("not tried", String::as_str);
            if !expected.split(' ').any(|expected| expected == seen) {
                wrong.push(format!("{name}: {seen}, not {expected}"));
            }
        }
        assert!(wrong.is_empty(), "as user {user} under run: {wrong:#?}");

        let mine = if user == 0 { Root } else { User };
        let possible: Vec<&str> = ATTEMPTS
            .iter()
            .filter(|(.., without)| *without == Both || *without == mine)
            .map(|(name, ..)| *name)
            .collect();
        let free = world.unconfined(user, &possible);
        let caught: Vec<_> = free.iter().filter(|(_, seen)| *seen != "out").collect();
        assert!(caught.is_empty(), "as user {user} without run: {caught:#?}");
        assert_eq!(free.len(), possible.len());
    }
}

/// What is left to it by which flags, and what is tried then.
#[rustfmt::skip]
const FLAGS: &[(&[&str], u32, &str)] = &[
    (&["--allow=setuid"], NOBODY, "setuid_program"),
    (&["--allow=namespaces"], NOBODY, "unshare_user"),
    (&["--allow=namespaces"], NOBODY, "clone_user"),
    (&["--allow=devices"], 0, "kernel_log"),
    (&["--allow=schedules"], 0, "cron_job"),
    (&["--allow=sockets"], NOBODY, "path_socket"),
    (&["--allow=sockets"], NOBODY, "abstract_socket"),
    (&["--allow=sockets"], NOBODY, "late_socket_in_run"),
    (&["--allow-socket=FOLDER/stream"], NOBODY, "path_socket"),
    (&["--allow-socket=LATE"], NOBODY, "late_socket_in_run"),
    (&["--allow-device=/dev/kmsg"], 0, "kernel_log"),
    (&["--allow-capability=CAP_SYS_NICE"], 0, "priority"),
    (&["--keep-fd=7"], 0, "inherited_descriptor"),
];

#[test]
fn flags_leave_what_they_say_and_nothing_else_and_the_journal_tells() {
    let world = World::new();
    let late = world.late.parent().unwrap().display().to_string();
    let folder = world.folder.display().to_string();
    for (flags, user, attempt) in FLAGS {
        let flags: Vec<String> = flags
            .iter()
            .map(|flag| flag.replace("FOLDER", &folder).replace("LATE", &late))
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        // `ssh_agent` is another socket of the same folder.
        let others = [
            "write_cgroup_procs",
            "signal_outside",
            "family_packet",
            "ssh_agent",
            "clone_into_cgroup",
            "uncover_in_namespace",
            "writable_in_namespace",
        ];
        let attempts: Vec<&str> = others.into_iter().chain([*attempt]).collect();
        let seen = world.as_agent(*user, &flags, &attempts);
        assert_eq!(seen[*attempt], "out", "{attempt} with {flags:?}");
        for other in others {
            let is_left = other == "ssh_agent" && flags == ["--allow=sockets"];
            let result = &seen[other];
            assert_eq!(result == "out", is_left, "{other} with {flags:?}: {result}");
        }
        let journal = world.daemon.journal().unwrap();
        let tagged = journal.mentioning("event", "tag_added").last().unwrap();
        for flag in flags {
            assert!(tagged.mentions(flag), "{tagged:#?}");
        }
        assert_eq!(tagged.mentions("user nobody"), *user == NOBODY);
    }
}

#[test]
fn what_can_t_be_kept_or_shown_is_no_reason_to_start_without_it() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    for (flag, said) in [
        ("--keep-fd=99", "descriptor 99"),
        ("--allow-socket=/nonexistent/socket", "/nonexistent/socket"),
        ("--allow-device=/etc/passwd", "not in /dev"),
        ("--allow-capability=everything", "no such capability"),
        ("--allow=everything", "possible values"),
    ] {
        let mut command = daemon.command(["run", "--agent", "a", flag, "--", "echo", "started"]);
        let outcome = run::outcome(&mut command).unwrap();
        assert!(
            !outcome.status.success() && outcome.stdout.is_empty(),
            "{flag}: {outcome}"
        );
        assert!(outcome.stderr.contains(said), "{flag}: {outcome}");
    }
    let script = "exec \"$@\" </etc";
    let run = daemon.run_as("a", "true");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script, "sh"])
        .arg(run.get_program())
        .args(run.get_args());
    let outcome = run::outcome(&mut command).unwrap();
    assert!(
        !outcome.status.success() && outcome.stderr.contains("is a folder"),
        "{outcome}"
    );
}

#[test]
fn what_people_do_works_confined() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let folder = scratch::folder("work").unwrap();
    open_to_all(&folder);
    let python = "import asyncio, multiprocessing, os, socket, subprocess, threading
from multiprocessing import shared_memory
if __name__ == '__main__':
    with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, -2]))
    queue = multiprocessing.Queue(); queue.put(3); print(queue.get())
    memory = shared_memory.SharedMemory(create=True, size=9); memory.close(); memory.unlink()
    thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
    async def run(): return await (await asyncio.create_subprocess_exec('true')).wait()
    print(asyncio.run(run()), subprocess.check_output(['echo', 'sub']))
    print(socket.getaddrinfo('localhost', 80)[0][4][1], dict(map(reversed, socket.if_nameindex()))['lo'])
    server = socket.socket(socket.AF_UNIX); server.bind('\\0own'); server.listen()
    client = socket.socket(socket.AF_UNIX); client.connect('\\0own'); print('own socket')";
    let node = "const {Worker} = require('worker_threads'); const cp = require('child_process');
new Worker('require(\"worker_threads\").parentPort.postMessage(1)', {eval: true}).on('message', () =>
  console.log('worker', cp.execSync('echo child') + '', Object.keys(require('os').networkInterfaces())));";
    let build =
        "printf 'int main(){return 7;}' >a.c && gcc -o a a.c; ./a; test $? = 7 && echo built";
    let users = "import os; os.setgroups([]); os.setresgid(7, 7, 7); os.setresuid(7, 7, 7); print(os.getresuid())";
    let owner = "touch b && chown nobody b && stat -c %U b";
    let tmux = "export SHELL=/bin/sh; tmux new-session -d 'sleep 5' && tmux list-sessions && tmux kill-server";
    let git = "git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && git log --format=%s";
    let both = [0, NOBODY].as_slice();
    for (users, command, sign) in [
        (both, vec!["/usr/bin/python3", "-c", python], "own socket"),
        (both, vec!["node", "-e", node], "child"),
        (both, vec!["java", "-version"], "version"),
        (both, vec!["sh", "-c", build], "built"),
        (both, vec!["sh", "-c", git], "first"),
        (both, vec!["sh", "-c", tmux], "windows"),
        (
            both,
            vec!["strace", "-f", "sh", "-c", "true; true"],
            "exited with 0",
        ),
        (
            both,
            vec![
                "gdb",
                "-q",
                "-batch",
                "-ex",
                "set startup-with-shell off",
                "-ex",
                "run",
                "/bin/true",
            ],
            "exited normally",
        ),
        (
            both,
            vec!["env", "SHELL=/bin/sh", "script", "-qc", "tty", "/dev/null"],
            "/dev/pts/0",
        ),
        (
            both,
            vec![
                "sh",
                "-c",
                "ps -e -o comm= >all; test $(wc -l <all) = 3 && echo alone",
            ],
            "alone",
        ),
        (
            both,
            vec![
                "sh",
                "-c",
                "echo x >/dev/null; head -c 4 /dev/urandom | wc -c",
            ],
            "4",
        ),
        (&[0], vec!["/usr/bin/python3", "-c", users], "(7, 7, 7)"),
        (&[0], vec!["sh", "-c", owner], "nobody"),
        (
            &[0],
            vec!["su", "nobody", "-s", "/bin/sh", "-c", "id -un"],
            "nobody",
        ),
    ] {
        for user in users {
            let mine = folder.join(user.to_string());
            let _ = fs::remove_dir_all(&mine);
            fs::create_dir(&mine).unwrap();
            open_to_all(&mine);
            let mut arguments = vec!["run", "--agent", "a"];
            if *user == NOBODY {
                arguments.extend(["--user", "nobody"]);
            }
            arguments.push("--");
            let mut run = daemon.command(arguments.iter().chain(&command));
            run.current_dir(&mine)
                .env_remove("TMUX")
                .env_remove("TMUX_TMPDIR");
            let outcome = run::outcome(&mut run).unwrap();
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            assert!(
                outcome.status.success() && said.contains(sign),
                "{command:?} as {user}: {outcome}"
            );
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_terminal_stops_continues_and_interrupts_it() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let run = daemon.command(["run", "--agent", "terminal", "--"]);
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(paths::client("terminal.py"))
        .arg(run.get_program())
        .args(run.get_args());
    let running = run::start(&mut command).unwrap();
    let outcome = running.outcome_within(Duration::from_secs(90)).unwrap();
    assert_eq!(
        outcome.stdout,
        "stopped\ncontinued, read and ended with its status\ninterrupted\na shell has job control inside\n",
        "{outcome}"
    );
}

#[test]
fn signals_go_in_and_none_come_out() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let folder = scratch::folder("signals").unwrap();
    let ready = folder.join("ready");
    let script = "trap 'exit 9' TERM; : >\"$0\"; while :; do sleep 0.05; done";
    let mut command = daemon.run_as("in", "sh");
    let running = run::start(command.args(["-c", script]).arg(&ready)).unwrap();
    run::wait_for("the agent", run::PATIENCE, || {
        Ok(ready.exists().then_some(()))
    })
    .unwrap();
    let launcher = nix::unistd::Pid::from_raw(running.pid().unwrap().try_into().unwrap());
    nix::sys::signal::kill(launcher, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(running.outcome().unwrap().status.code(), Some(9));

    // Whoever started it is in its process group: that is no reason to let it be killed.
    let run = daemon.run_as("out", "sh");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "\"$@\"; echo \"survived, $?\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .arg("-c");
    let unscoped = host::weaker(&daemon, host::ABSTRACT_SCOPE).unwrap();
    command
        .arg(match unscoped {
            None => "trap : USR2; kill -USR2 0; kill -KILL -1; exit 3",
            Some(_) => "kill -KILL -1; exit 3",
        })
        .process_group(0);
    let outcome = run::outcome(&mut command).unwrap();
    if let Some(why) = unscoped {
        // The group is the kernel's to guard, which has to be said.
        assert!(why.contains("signals to the process group"), "{why}");
        let said = "so do signals to the process group";
        assert!(outcome.stderr.contains(said), "{outcome}");
    }
    assert_eq!(outcome.stdout, "survived, 3\n", "{outcome}");

    // What it leaves ends with it, whatever session it is in.
    let mut command = daemon.run_as("left", "sh");
    command.args([
        "-c",
        "setsid sleep 600 & sleep 0.2; setsid sh -c 'sleep 0.1 &'; sleep 0.3",
    ]);
    let outcome = run::outcome(&mut command).unwrap();
    assert!(outcome.status.success(), "{outcome}");
    assert!(
        outcome.stderr.contains("left 1 process running"),
        "{outcome}"
    );
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn resolvers_and_engines_in_run_are_out_of_sight_and_what_names_are_resolved_by_is_not() {
    let world = World::new();
    // A host with systemd's resolver and Docker, in a mount namespace of this test's own.
    let script = "set -e
test -e \"$1/etc/passwd\" || cp -a /etc/. \"$1/etc\"
mount --bind \"$1/etc\" /etc
mount -t tmpfs none /run
mkdir -p /run/systemd/resolve /run/systemd/system
echo nameserver 192.0.2.9 >/run/systemd/resolve/stub-resolv.conf
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
for socket in /run/docker.sock /run/systemd/resolve/io.systemd.Resolve; do
  : >$socket; mount --bind \"$1/stream\" $socket
done
shift; exec \"$@\"";
    let client = "import glob, os, socket
print(open('/etc/resolv.conf').read().strip(), os.path.exists('/run/systemd/system'))
for path in ['/run/docker.sock', '/var/run/docker.sock', '/run/systemd/resolve/io.systemd.Resolve']:
    try: socket.socket(socket.AF_UNIX).connect(path); print('connected')
    except OSError as error: print(error.strerror)
open(f'/run/user/{os.getuid()}/own', 'w').write('x')";
    fs::create_dir(world.folder.join("etc")).unwrap();
    let run = |flags: &[&str]| {
        let start = world
            .daemon
            .command([&["run", "--agent", "a"], flags, &["--"]].concat());
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(&world.folder);
        command.arg(start.get_program()).args(start.get_args());
        command.args(["/usr/bin/python3", "-c", client]);
        run::output(&mut command).unwrap()
    };
    let gone = "No such file or directory\n";
    let [none, docker] = [run(&[]), run(&["--allow-socket-unseen=/run/docker.sock"])];
    assert_eq!(
        none,
        format!("nameserver 192.0.2.9 False\n{gone}{gone}{gone}")
    );
    assert_eq!(
        docker,
        format!("nameserver 192.0.2.9 False\nconnected\nconnected\n{gone}")
    );
}

#[test]
fn what_is_covered_is_covered_under_its_other_names_too() {
    let world = World::new();
    let [mirror, daemons] = ["mirror", "daemons"].map(|name| world.folder.join(name));
    for folder in [&mirror, &daemons] {
        fs::create_dir(folder).unwrap();
    }
    let script = "set -e; mount --bind \"$1\" \"$1/mirror\"; mount --bind \"$2\" \"$1/daemons\"
cd \"$1\"; shift 2; exec \"$@\"";
    let client = "import os, socket
for path in ['mirror/stream', 'mirror/agent', 'daemons/control.sock']:
    try: socket.socket(socket.AF_UNIX).connect(path); print('connected')
    except OSError as error: print(error.strerror)
for path in ['daemons/state/ca/ca.key', 'daemons/policies/new']:
    try: os.close(os.open(path, os.O_RDONLY if 'key' in path else os.O_CREAT | os.O_WRONLY)); print('opened')
    except OSError as error: print(error.strerror)";
    let outside = |confined: bool| {
        let start = world.daemon.command(["run", "--agent", "a", "--"]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(&world.folder).arg(world.daemon.folder());
        if confined {
            command.arg(start.get_program()).args(start.get_args());
        }
        command.args(["/usr/bin/python3", "-c", client]);
        run::output(&mut command).unwrap()
    };
    let refused = "Connection refused\n".repeat(3);
    let expected = format!("{refused}No such file or directory\nRead-only file system\n");
    assert_eq!(outside(true), expected);
    assert_eq!(
        outside(false),
        "connected\nconnected\nconnected\nopened\nopened\n"
    );
}
