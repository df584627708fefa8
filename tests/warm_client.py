"""Stands in for `python` in shell scripts: what it is asked to run becomes a copy of a Python that has imported torch.

    python -SE warm_client.py SOCKET ARGUMENTS...

It has imported next to nothing itself, gives its streams, folder and environment away, passes signals on, and ends as
the copy does. See warm.py, which writes the script around it.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    place, *arguments = sys.argv[1:]
    ended, ending = os.pipe()
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "session": False,
        "children": 2 if {"--gpus", "local"} & {*arguments} else 0,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(place)
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2, ending])
    os.close(ending)
    with open(ended) as told:
        process = int(told.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(process, number))
        code = int(told.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


main()
