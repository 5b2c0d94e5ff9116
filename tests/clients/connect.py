"""Connects where it is told to and hands the connection over, so that somebody else speaks on it.

Usage: connect.py SOCKET [PROMPT]; for each port in two bytes a connection to 127.0.0.1 comes back.
"""

import socket
import struct
import sys

with socket.socket(socket.AF_UNIX) as control:
    control.connect(sys.argv[1])
    while port := control.recv(2, socket.MSG_WAITALL):
        with socket.create_connection(("127.0.0.1", *struct.unpack("!H", port))) as connection:
            socket.send_fds(control, [b"+"], [connection.fileno()])
