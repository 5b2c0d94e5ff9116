"""A terminal with a shell that has job control, in which a command is started, stopped, continued, interrupted.

terminal.py COMMAND…: says what was seen.
"""

import os
import pty
import select
import shlex
import signal
import sys
import time

SEEN = b""


def until(text, seconds=20):
    """Reads until `text` is on the screen, and forgets what was before."""
    global SEEN
    deadline = time.monotonic() + seconds
    while text.encode() not in SEEN:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([TERMINAL], [], [], left)[0]:
            sys.exit(f"no {text!r} in {SEEN!r}")
        SEEN += os.read(TERMINAL, 65536)
    SEEN = SEEN.split(text.encode(), 1)[1]


def interrupt_until(text, times=20):
    """Ctrl-C goes to whoever is in front: that may be the shell for another moment, or a child of one that
    still has its parent's handler."""
    global SEEN
    while text.encode() not in SEEN and times:
        type_in("\x03")
        times -= 1
        time.sleep(0.3)
        while select.select([TERMINAL], [], [], 0)[0]:
            SEEN += os.read(TERMINAL, 65536)
    until(text)


def type_in(text):
    os.write(TERMINAL, text.encode())


CHILD, TERMINAL = pty.fork()
if CHILD == 0:
    os.environ["PS1"] = "ready> "
    # Whoever starts this in the background has it ignored, and a shell leaves that to its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
RUN = shlex.join(sys.argv[1:])
until("ready> ")

# The quotes keep what is typed apart from what is printed.
type_in(f"{RUN} sh -c 'echo st''arted; sleep 0.1; read line; echo g''ot $line; exit 7'\n")
until("started")
type_in("\x1a")
until("Stopped")
until("ready> ")
print("stopped")
type_in("fg\n")
until("sleep 0.1")
type_in("word\n")
until("got word")
until("ready> ")
type_in("echo co''de $?\n")
until("code 7")
print("continued, read and ended with its status")

type_in(f"{RUN} sh -c 'echo st''arted; sleep 100'\n")
until("started")
interrupt_until("ready> ")
type_in("echo co''de $?\n")
until("code 130")
print("interrupted")

type_in(f"{RUN} bash --norc --noprofile --noediting -i\n")
until("ready> ")
type_in("tty; sleep 100\n")
until("/dev/console")
time.sleep(0.3)
type_in("\x1a")
until("Stopped")
until("ready> ")
type_in("fg\n")
until("sleep 100")
interrupt_until("ready> ")
type_in("exit 5\n")
until("exit 5")
until("ready> ")
type_in("echo co''de $?\n")
until("code 5")
print("a shell has job control inside")
