"""Answers like the store host, with ports on which nothing is served."""

import os
import socket
import sys

listener = socket.socket(socket.AF_UNIX)
listener.bind("store.sock")
listener.listen()
bound: dict[int, socket.socket] = {}
while True:
    connection, _ = listener.accept()
    with connection:
        serial = int(connection.recv(64) or b"0")
        if serial not in bound:
            bound[serial] = socket.create_server((sys.argv[1], 0))
        connection.sendall(b"%d\n" % bound[serial].getsockname()[1])
    if os.getppid() == 1:
        break
