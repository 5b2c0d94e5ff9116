"""A reviewer at a terminal: opens the first question that comes, approves it with a reason, and leaves.

reviewer.py COMMAND…: prints what was on the screen.
"""

import os
import pty
import select
import sys
import time

SCREEN = b""


def until(text, seconds=20):
    """Reads until `text` has come behind what was waited for before."""
    global SCREEN
    start = len(SCREEN)
    deadline = time.monotonic() + seconds
    while text.encode() not in SCREEN[start:]:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([TERMINAL], [], [], left)[0]:
            sys.exit(f"no {text!r} in {SCREEN!r}")
        try:
            SCREEN += os.read(TERMINAL, 65536)
        except OSError:
            sys.exit(f"it ended before {text!r}: {SCREEN!r}")


child, TERMINAL = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
until("[Enter]")
os.write(TERMINAL, b"y")
until("hasn't been opened")
os.write(TERMINAL, b"\r")
until("[y/n]")
os.write(TERMINAL, b"y")
until("because")
os.write(TERMINAL, "looks füne".encode())
until("looks f")
os.write(TERMINAL, b"\x7f\x7f\x7fine\r")
until("nothing waits")
os.write(TERMINAL, b"q")
_, status = os.waitpid(child, 0)
sys.stdout.write(SCREEN.decode())
sys.exit(os.waitstatus_to_exitcode(status))
