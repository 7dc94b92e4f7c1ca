"""A process that imports torch, transformers and vLLM once, from which Ray's workers are forked.

Ray starts a Python for each actor, and those of a run import the same modules: on two cores that is most of a run's start.
Here each of them begins as a fork of one template (Ray's `py_executable`, see `fork_client`) and goes on as Ray's own worker.
For the CPU preset on one machine: a CUDA context does not survive a fork.

The template has one thread, or a fork could copy a lock that nobody holds: it refuses to fork where a module has started
another. It imports neither Ray, whose settings come with each worker, nor verl, which imports Ray.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_rl.platform import fork_client
from vision_rl.platform.environment import in_a_cluster
from vision_rl.platform.fork_client import SOCKET_VARIABLE
from vision_rl.platform.parent_death import child

TRAINER = ("torch", "tensordict", "transformers", "transformers.models.auto.modeling_auto", "torch.distributed.tensor")
"""What trainer, rank and server import."""
SERVER = ("vllm", "vllm.engine.arg_utils")
"""What server and trainer import beyond it with vLLM. More of it would import Ray, and pyarrow, which starts a thread."""


def forked_workers(cpu: bool, verl: Mapping[str, Any], log: Path) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """`fork_template` for a run of verl's configuration on this machine's CPUs; nothing for others, where Ray starts Pythons."""
    if not cpu or in_a_cluster(verl) or sys.platform != "linux":
        return contextlib.nullcontext({})
    served = verl["actor_rollout_ref"]["rollout"]["name"] == "vllm"
    return fork_template(TRAINER + SERVER if served else TRAINER, log)


@contextlib.contextmanager
def fork_template(modules: Sequence[str], log: Path) -> Iterator[dict[str, Any]]:
    """The part of Ray's `runtime_env` that forks its workers from a template with `modules`, for as long as a block runs.

    log: the file that gets what the modules print.
    """
    log.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="vision-rl-fork-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
        log.open("ab") as output,
    ):
        path = f"{folder}/socket"
        listener.bind(path)
        listener.listen(64)  # who asks before the template is up waits for it
        number = listener.fileno()
        command = [sys.executable, "-m", "vision_rl.platform.fork_template", str(number), *modules]
        with child(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[number]):
            listener.close()  # or nobody would notice that the template has ended
            client = f"{shlex.quote(sys.executable)} -IS {shlex.quote(fork_client.__file__)}"
            yield {"py_executable": client, "env_vars": {SOCKET_VARIABLE: path}}


class Template:
    """Forks for whoever connects to its listener."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.waiting = selectors.DefaultSelector()
        self.waiting.register(self.listener, selectors.EVENT_READ)
        self.workers: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor of the process: its id, its client

    def serve(self, modules: Sequence[str]) -> None:
        """Import `modules`, then fork for whoever asks, and has asked meanwhile, until the end of the process."""
        for module in modules:
            importlib.import_module(module)
        while True:
            for key, _ in self.waiting.select():
                if key.fileobj is self.listener:
                    self.fork(self.listener.accept()[0])
                else:
                    self.reap(key.fd)

    def fork(self, client: socket.socket) -> None:
        """Fork a worker for a client; returns in the template only."""
        received = socket.recv_fds(client, 4, 3, socket.MSG_WAITALL)
        size, streams = int.from_bytes(received[0], "big"), received[1]
        request = json.loads(client.recv(size, socket.MSG_WAITALL))
        gc.freeze()  # the collector of a worker would write to, and so copy, every page of the template
        alone = len(os.listdir("/proc/self/task")) == 1
        process = os.fork() if alone else None
        if process == 0:
            self.close()
            become(request, streams, client)
        for stream in streams:
            os.close(stream)
        if process is None:
            client.close()
            return
        client.send(b"+")
        watched = os.pidfd_open(process)
        self.workers[watched] = process, client
        self.waiting.register(watched, selectors.EVENT_READ)

    def reap(self, watched: int) -> None:
        """Tell the client of a worker that has ended its exit code."""
        self.waiting.unregister(watched)
        os.close(watched)
        process, client = self.workers.pop(watched)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with contextlib.suppress(OSError):  # the client was killed, and the worker ended because of it
            client.send(str(code).encode())
        client.close()

    def close(self) -> None:
        """In a worker: let go of what is the template's."""
        self.waiting.close()
        self.listener.close()
        for watched, (_, client) in self.workers.items():
            os.close(watched)
            client.close()


def become(request: dict[str, Any], streams: Sequence[int], client: socket.socket) -> None:
    """Go on as the script that the client was asked to run; does not return."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    random.seed()  # all workers would draw the same
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    threading.Thread(target=end_with, args=(client,), daemon=True, name="client").start()
    sys.argv = request["argv"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what Python runs at its end is the template's


def end_with(client: socket.socket) -> None:
    """End this process at once when the client ends: it is the one that Ray kills."""
    with contextlib.suppress(OSError):
        client.recv(1)
    os._exit(1)


if __name__ == "__main__":
    Template(socket.socket(fileno=int(sys.argv[1]))).serve(sys.argv[2:])
