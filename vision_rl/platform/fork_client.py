"""What Ray executes in place of Python for each worker: asks the template for a fork, and is the worker in Ray's eyes.

Run as a script without the site's packages (`python -IS`), so that it costs milliseconds. It hands over its arguments,
environment, folder and three streams, waits, and ends with the worker's exit code. The connection is the worker's life line:
the worker ends when this process ends. A template that does not answer is left out: Python starts as Ray would start it.
"""

import json
import os
import socket
import sys

SOCKET_VARIABLE = "VISION_RL_FORK_SOCKET"


def main() -> int:
    """The worker's exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "-u"]
    request = json.dumps({"argv": arguments, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    try:
        template = socket.socket(socket.AF_UNIX)
        template.connect(os.environ[SOCKET_VARIABLE])
        socket.send_fds(template, [len(request).to_bytes(4, "big")], [0, 1, 2])
        template.sendall(request)
        accepted = template.recv(1)
    except (OSError, KeyError) as error:
        accepted = b""
        print(f"no template to fork from ({error})", file=sys.stderr, flush=True)
    if not accepted:
        print("this worker imports everything itself", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    ended = template.recv(8)
    return int(ended) & 255 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
