"""A hostile process: tries every way out that it knows, each in a process of its own, and says for each
whether it got out (`out`) or what stopped it (an errno, or the signal that killed it).

escape.py WORLD RUN ATTEMPT…: WORLD is a JSON file that says what is outside, see `confine.rs`. Only what is
named is tried: some of it would harm a host that lets it through.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import pty
import resource
import signal
import socket
import struct
import sys
import termios
import time

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
# Of x86-64 and of the common table.
BPF, SETNS, OPEN_BY_HANDLE_AT, PROCESS_VM_READV = (321, 308, 304, 310) if X86 else (280, 268, 265, 270)
KEYCTL, PTRACE, CLONE, NAME_TO_HANDLE_AT = (250, 101, 56, 303) if X86 else (219, 117, 220, 264)
UNSHARE, PERF_EVENT_OPEN, USERFAULTFD, INIT_MODULE = (272, 298, 323, 175) if X86 else (97, 241, 282, 105)
IO_URING_SETUP, CLONE3, PIDFD_OPEN, PIDFD_GETFD, OPEN_TREE, FSOPEN = 425, 435, 434, 438, 428, 430
NEWNS, NEWCGROUP, NEWUSER, NEWPID, NEWNET = 0x20000, 0x2000000, 0x10000000, 0x20000000, 0x40000000
INTO_CGROUP = 0x200000000
WORLD = {}
ATTEMPTS = {}


def attempt(function):
    ATTEMPTS[function.__name__] = function
    return function


def call(number, *arguments):
    # As wide as registers: what is passed on the stack would have anything in its upper half.
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), "syscall")
    return result


def libc(name, *arguments):
    if getattr(LIBC, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def outside():
    """The process outside, by its number or by looking for it."""
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as line:
                if WORLD["marker"].encode() in line.read() and entry != str(os.getpid()):
                    return int(entry)
        except OSError:
            continue
    os.kill(WORLD["pid"], 0)
    return WORLD["pid"]


def connect(address, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(address)
        client.send(b"out")


# The cgroup.


@attempt
def write_cgroup_procs():
    with open(WORLD["cgroup"] + "/cgroup.procs", "w") as procs:
        procs.write("0")


@attempt
def clone_into_cgroup():
    folder = os.open(WORLD["cgroup"], os.O_RDONLY | os.O_DIRECTORY)
    arguments = struct.pack("11Q", INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, folder)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    if call(CLONE3, buffer, ctypes.c_size_t(len(arguments))) == 0:
        os._exit(0)


@attempt
def mount_cgroupfs():
    libc("mount", b"none", WORLD["mountable"].encode(), b"cgroup2", 0, None)
    libc("umount2", WORLD["mountable"].encode(), 2)


@attempt
def make_cgroup():
    os.mkdir(WORLD["cgroup"] + "/inner")
    os.rmdir(WORLD["cgroup"] + "/inner")


# Namespaces and mounts.


@attempt
def unshare_network():
    call(UNSHARE, NEWNET)


@attempt
def unshare_user():
    call(UNSHARE, NEWUSER | NEWNET)


@attempt
def clone_user():
    if call(CLONE, NEWUSER | NEWPID | signal.SIGCHLD, None, None, None, None) == 0:
        os._exit(0)


@attempt
def clone3_user():
    arguments = struct.pack("8Q", NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    if call(CLONE3, buffer, ctypes.c_size_t(len(arguments))) == 0:
        os._exit(0)


@attempt
def setns_outside():
    call(SETNS, os.open(f"/proc/{outside()}/ns/net", os.O_RDONLY), 0)


@attempt
def setns_first_process():
    # It is this namespace's own inside: entering where one is needs the right all the same.
    call(SETNS, os.open("/proc/1/ns/net", os.O_RDONLY), 0)


@attempt
def mount_tmpfs():
    libc("mount", b"none", WORLD["mountable"].encode(), b"tmpfs", 0, None)
    libc("umount2", WORLD["mountable"].encode(), 2)


@attempt
def new_mount_api():
    os.close(call(FSOPEN, b"tmpfs", 0))


@attempt
def clone_mounts():
    os.close(call(OPEN_TREE, -100, b"/", 1))


@attempt
def unmount_cover():
    libc("umount2", WORLD["state"].encode(), 2)


@attempt
def uncover_in_namespace():
    # All rights of a user namespace of its own, where they are to be had.
    call(UNSHARE, NEWUSER | NEWNS)
    covered = WORLD["stream"]
    if LIBC.umount2(covered.encode(), 2) == 0:
        connect(covered)
        return
    folder = os.path.dirname(covered).encode()
    libc("mount", folder, WORLD["mountable"].encode(), None, 4096, None)
    connect(WORLD["mountable"] + "/" + os.path.basename(covered))


@attempt
def writable_in_namespace():
    call(UNSHARE, NEWUSER | NEWNS)
    libc("mount", None, b"/proc/sys", None, 4096 | 32, None)
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


@attempt
def open_by_handle():
    handle = struct.pack("Ii", 128, 0) + bytes(128)
    buffer, mount = ctypes.create_string_buffer(handle, len(handle)), ctypes.c_int()
    path = WORLD["readable"].encode()
    call(NAME_TO_HANDLE_AT, -100, path, buffer, ctypes.byref(mount), 0)
    call(OPEN_BY_HANDLE_AT, os.open("/tmp", os.O_RDONLY), buffer, os.O_RDONLY)


# Sockets that no hook sees.


def family(number, kind=socket.SOCK_RAW, protocol=0):
    os.close(call(41 if X86 else 198, number, kind, protocol))


for NAME, NUMBER in {
    "packet": 17, "key": 15, "rds": 21, "can": 29, "tipc": 30, "bluetooth": 31, "alg": 38, "nfc": 39,
    "vsock": 40, "qipcrtr": 42, "smc": 43, "xdp": 44, "mctp": 45, "unspecified": 0, "unknown": 60,
}.items():
    KIND = {"vsock": 1, "alg": 5, "smc": 1, "qipcrtr": 2}.get(NAME, 3)
    ATTEMPTS["family_" + NAME] = lambda number=NUMBER, kind=KIND: family(number, kind)


@attempt
def packet_by_type():
    family(socket.AF_INET, 10, 0x300)


@attempt
def raw_ipv4():
    family(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)


@attempt
def raw_ipv6():
    family(socket.AF_INET6, socket.SOCK_RAW, 58)


@attempt
def netlink_generic():
    family(16, socket.SOCK_RAW, 16)


@attempt
def netlink_audit():
    family(16, socket.SOCK_RAW, 9)


@attempt
def netlink_add_route():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        # RTM_NEWLINK of a dummy: refused or made, told in an acknowledgement.
        name = WORLD["link"].encode() + b"\0"
        name += bytes(-len(name) % 4)
        kind = struct.pack("HH", 9, 1) + b"dummy" + bytes(3)
        info = struct.pack("HH", 4 + len(kind), 18) + kind
        body = struct.pack("BxHiII", 0, 0, 0, 0, 0)
        body += struct.pack("HH", 4 + len(name.rstrip(b"\0")) + 1, 3) + name + info
        netlink.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        answer = netlink.recv(4096)
        code = struct.unpack_from("i", answer, 16)[0]
        if code:
            raise OSError(-code, "netlink")


@attempt
def io_uring():
    os.close(call(IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))


# The kernel.


@attempt
def bpf():
    attributes = ctypes.create_string_buffer(struct.pack("IIIII", 1, 4, 4, 1, 0) + bytes(100))
    os.close(call(BPF, 0, attributes, 120))


@attempt
def perf_event():
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 1) + bytes(96))
    os.close(call(PERF_EVENT_OPEN, attributes, 0, -1, -1, 0))


@attempt
def userfaultfd():
    os.close(call(USERFAULTFD, 1))


@attempt
def load_module():
    try:
        call(INIT_MODULE, b"no module", 9, b"")
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise


@attempt
def keys():
    call(KEYCTL, 0, -3, 1)


@attempt
def i386():
    if not X86:
        raise OSError(errno.ENOSYS, "another machine")
    # mov eax, 20 (getpid); int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() < 0:
        raise OSError(errno.ENOSYS, "int 0x80")


@attempt
def x32():
    if not X86:
        raise OSError(errno.ENOSYS, "another machine")
    call(0x40000000 | 39)


@attempt
def later_system_call():
    call(470)


@attempt
def core_pattern():
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


@attempt
def write_sysctl():
    os.close(os.open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY))


@attempt
def write_sysfs():
    os.close(os.open("/sys/kernel/profiling" if os.path.exists("/sys/kernel/profiling")
                     else "/sys/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY))


@attempt
def tracing():
    os.listdir("/sys/kernel/tracing")[0]


@attempt
def pins():
    os.listdir("/sys/fs/bpf")[0]


@attempt
def raise_limits():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = struct.pack("QQ", 0, 1 << 20)
    libc("setrlimit", resource.RLIMIT_CORE, limit)


# Devices.


@attempt
def disk_node():
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(folder, name)
            if os.lstat(path).st_mode & 0o170000 == 0o060000:
                os.close(os.open(path, os.O_RDONLY))
                return
    raise OSError(errno.ENOENT, "no disk")


@attempt
def make_disk_node():
    path = WORLD["writable"] + f"/disk-{os.getuid()}-{os.getpid()}"
    os.mknod(path, 0o600 | 0o060000, os.makedev(7, 0))
    os.unlink(path)


@attempt
def open_others_disk_node():
    # One that somebody else has made.
    os.close(os.open(WORLD["disk"], os.O_RDONLY))


@attempt
def memory_device():
    os.close(os.open("/dev/mem", os.O_RDONLY))


@attempt
def kernel_log():
    os.close(os.open("/dev/kmsg", os.O_WRONLY))


@attempt
def shared_memory():
    open(WORLD["shared"]).close()


@attempt
def type_into_terminal():
    leader, follower = pty.openpty()
    os.setsid()
    fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
    fcntl.ioctl(follower, termios.TIOCSTI, b"x")


# Processes outside.


@attempt
def signal_outside():
    os.kill(outside(), signal.SIGCONT)


@attempt
def ptrace_outside():
    pid = outside()
    call(PTRACE, 16, pid, 0, 0)
    os.waitpid(pid, 0x40000000)
    call(PTRACE, 17, pid, 0, 0)


@attempt
def read_memory_outside():
    pid = outside()
    with open(f"/proc/{pid}/maps") as maps:
        start = int(next(maps).split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(start)
        memory.read(4)


@attempt
def process_vm_readv():
    pid = outside()
    with open(f"/proc/{pid}/maps") as maps:
        start = int(next(maps).split("-")[0], 16)
    target = ctypes.create_string_buffer(4)
    local = struct.pack("QQ", ctypes.addressof(target), 4)
    remote = struct.pack("QQ", start, 4)
    call(PROCESS_VM_READV, pid, local, 1, remote, 1, 0)


@attempt
def descriptor_outside():
    open(f"/proc/{outside()}/fd/0", "rb").close()


@attempt
def pidfd_getfd():
    call(PIDFD_GETFD, call(PIDFD_OPEN, outside(), 0), 0, 0)


@attempt
def root_outside():
    os.stat(f"/proc/{outside()}/root/etc")


@attempt
def environment_outside():
    open(f"/proc/{outside()}/environ", "rb").close()


@attempt
def inherited_descriptor():
    os.fstat(7)


@attempt
def setuid_program():
    with os.popen(WORLD["setuid"]) as program:
        if os.getuid() == 0 or program.read().strip() != "0":
            raise OSError(errno.EPERM, "no other user")


@attempt
def first_process_program():
    os.close(os.open("/proc/1/exe", os.O_RDONLY))


@attempt
def first_process_traced():
    call(PTRACE, 16, 1, 0, 0)


@attempt
def priority():
    os.setpriority(os.PRIO_PROCESS, 0, -5)


# Unix sockets.


@attempt
def path_socket():
    connect(WORLD["stream"])


@attempt
def datagram_socket():
    connect(WORLD["datagram"], socket.SOCK_DGRAM)


@attempt
def relative_socket():
    connect(WORLD["relative"])


@attempt
def ssh_agent():
    connect(os.environ["SSH_AUTH_SOCK"])


@attempt
def tmux():
    connect(WORLD["tmux"])


@attempt
def abstract_socket():
    connect("\0" + WORLD["abstract"])


@attempt
def abstract_datagram():
    connect("\0" + WORLD["abstract"] + "-datagram", socket.SOCK_DGRAM)


@attempt
def socket_by_other_folder():
    # By the working folder of a process, a link, and a descriptor.
    folder = os.open(os.path.dirname(WORLD["stream"]), os.O_PATH)
    os.fchdir(folder)
    connect(os.path.basename(WORLD["stream"]))


@attempt
def late_socket_in_run():
    deadline = time.monotonic() + 20
    while not os.path.exists(WORLD["writable"] + f"/late-{WORLD['run']}"):
        if time.monotonic() > deadline:
            print("nobody made the late socket", flush=True)
            return
        time.sleep(0.02)
    connect(WORLD["late"])


@attempt
def control_socket():
    connect(WORLD["control"])


# Files.


@attempt
def authority_key():
    open(WORLD["state"] + "/ca/ca.key").close()


@attempt
def journal():
    # The authority's certificate is for everybody.
    [name for name in os.listdir(WORLD["state"]) if name != "ca"][0]


@attempt
def change_policy():
    os.close(os.open(WORLD["policies"] + "/policy.yaml", os.O_WRONLY))


@attempt
def add_policy():
    path = WORLD["policies"] + "/more"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.unlink(path)


@attempt
def change_interceptor():
    # Writing to a program that runs is refused in any case.
    os.chmod(WORLD["program"], os.stat(WORLD["program"]).st_mode & 0o7777)


@attempt
def cron_job():
    path = "/etc/cron.d/" + WORLD["marker"]
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.unlink(path)


@attempt
def systemd_unit():
    path = "/etc/systemd/system/" + WORLD["marker"]
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.unlink(path)


def outcome(function):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            text = function() or "out"
        except TimeoutError:
            text = "ETIMEDOUT"
        except OSError as error:
            text = errno.errorcode.get(error.errno, str(error.errno))
        except IndexError:
            text = "EMPTY"
        except Exception as error:  # pylint: disable=broad-except
            text = f"broken: {error!r}".replace("\n", " ")
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as result:
        text = result.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return text or "silent"


if __name__ == "__main__":
    with open(sys.argv[1]) as world:
        WORLD.update(json.load(world))
    WORLD["run"] = sys.argv[2]
    # What comes only when this runs already, comes now.
    open(WORLD["writable"] + f"/ready-{WORLD['run']}", "w").close()
    for NAME in sys.argv[3:]:
        print(NAME, outcome(ATTEMPTS[NAME]), flush=True)
