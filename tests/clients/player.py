"""Somebody at a terminal: presses keys, waits for what is shown, and looks at what is left of their terminal.

player.py COLUMNS SCRIPT COMMAND…: a line of SCRIPT is `until TEXT`, `keys KEYS` (with Python's escapes), `stopped`
(it has to be stopped, with the terminal as it was; it is continued then) or `signal NAME`. Prints JSON: what was on
the screen, the exit status, and whether the terminal is as it was.
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

columns, script = int(sys.argv[1]), sys.argv[2]
screen = b""
seen = 0


def read(deadline):
    """Reads what comes until `deadline`; whether the terminal is still there."""
    global screen
    left = max(0, deadline - time.monotonic())
    if not select.select([terminal], [], [], left)[0]:
        return True
    try:
        more = os.read(terminal, 65536)
    except OSError:
        return False
    screen += more
    return bool(more)


def until(text, seconds=20):
    """Reads until `text` has come behind what was waited for before."""
    global seen
    deadline = time.monotonic() + seconds
    while text.encode() not in screen[seen:]:
        if time.monotonic() > deadline or not read(deadline):
            sys.exit(f"no {text!r} in {screen!r}")
    seen = screen.index(text.encode(), seen) + len(text.encode())


go, gone = os.pipe()
child, terminal = pty.fork()
if child == 0:
    os.close(gone)
    os.read(go, 1)
    os.execvp(sys.argv[3], sys.argv[3:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
before = termios.tcgetattr(terminal)
os.write(gone, b"x")
for line in script.splitlines():
    what, _, more = line.strip().partition(" ")
    if what == "until":
        until(more)
    elif what == "keys":
        os.write(terminal, more.encode().decode("unicode_escape").encode())
    elif what == "signal":
        os.kill(child, getattr(signal, more))
    elif what == "stopped":
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            sys.exit(f"it isn't stopped: {status} {screen!r}")
        if termios.tcgetattr(terminal) != before:
            sys.exit("it is stopped, and the terminal isn't as it was")
        os.kill(child, signal.SIGCONT)
deadline = time.monotonic() + 20
# What is left is read while it ends, which it may not do before.
while True:
    ended, status = os.waitpid(child, os.WNOHANG)
    going_on = read(time.monotonic() + 0.1)
    if ended:
        break
    if time.monotonic() > deadline:
        sys.exit(f"it doesn't end: {screen!r}")
    if not going_on:
        time.sleep(0.05)
restored = termios.tcgetattr(terminal) == before
code = os.waitstatus_to_exitcode(status)
print(json.dumps({"screen": screen.decode(errors="replace"), "code": code, "restored": restored}))
