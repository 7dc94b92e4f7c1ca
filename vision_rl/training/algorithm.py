"""Agent Lightning's trainer runs this algorithm in the main process: it starts Ray and the task runner, then watches.

`agl.VERL` does the same (agentlightning/algorithm/verl/interface.py:148), but imports verl in the main process first (11 s)
and starts Ray only then. Here the configuration is already composed (`config.resolve`), so the main process never needs verl,
and Ray, verl's imports and the runners' start overlap.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import agentlightning as agl
import psutil

from vision_rl.config.resolve import Resolved
from vision_rl.errors import UserError
from vision_rl.platform.environment import SERVER_KEY, in_a_cluster
from vision_rl.platform.rendezvous import RENDEZVOUS
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.last_words import MAX_ERROR, to_user_error
from vision_rl.run.log import RunLog
from vision_rl.training.context import RunContext

WATCH_SECONDS = 0.1
RAY_STARTS = 3
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for 127.0.0.1; `_node_ip_address` is resolved to the network's
    "RAY_AUTH_MODE": "token",
}


class LateNode(UserError):
    """Ray's node did not come up in time."""


@dataclass
class Launch:
    """Everything that the task runner needs, known before the runners are forked."""

    resolved: Resolved
    context: RunContext
    environment: dict[str, str]
    cpu: bool
    watch: Callable[[], None]
    forked: dict[str, Any] = field(default_factory=dict)  # of `forked_workers`, for Ray's `runtime_env`


def check_shared(run_dir: Path) -> None:
    """Raise `UserError` if a node of Ray's cluster does not see the run directory: its ranks write their shards there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    look = ray.remote(num_cpus=0)(os.path.exists)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    seen = ray.get([look.options(scheduling_strategy=place).remote(str(run_dir)) for place in places])
    for node, there in zip(nodes, seen, strict=True):
        if not there:
            raise UserError(
                f"node {node['NodeManagerAddress']} of Ray's cluster does not see {run_dir}, where its ranks are to write "
                "their part of a checkpoint; name a folder on a disk that all nodes share with --run-dir"
            )


class VisionVERL(agl.Algorithm):
    """verl's GRPO with the vision batch, driven over Agent Lightning's store."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self.launch = launch
        self._ranks = ""  # the folder in which the ranks meet, on one machine
        self._session = Path()  # Ray's folder of this cluster

    def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        """Train; `watch` is called every tenth of a second meanwhile. Raises `UserError` for what the user can correct."""
        self._close_ray()
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        log = RunLog(self.launch.context.run_dir)
        self._start_ray()
        check_shared(self.launch.context.run_dir)
        log.event("phase", text="Ray is up; importing verl")
        try:
            from vision_rl.training.task_runner import VisionTaskRunner

            # Run directory, pictures and the proxy's address are this machine's; in a cluster Ray might place it elsewhere.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            runner = VisionTaskRunner.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
            training = runner.run.remote(
                self.launch.resolved.verl,
                [row["task"] for row in train_dataset],
                [row["task"] for row in val_dataset],
                self.get_store(),
                self.launch.context,
            )
            while not ray.wait([training], timeout=WATCH_SECONDS)[0]:
                self.launch.watch()
            try:
                ray.get(training)
            except ray.exceptions.RayError as error:
                context = self.launch.context
                raise to_user_error(error, context.run_dir / "logs", self._how_to_go_on()) from None
            finally:
                self.launch.watch()
        finally:
            self._keep_logs()
            ray.shutdown()
            shutil.rmtree(self._ranks, ignore_errors=True)

    def _how_to_go_on(self) -> str:
        whole = Checkpoints(self.launch.context.run_dir / "checkpoints", self.launch.context.app.checkpoints).latest()
        return f"go on with --resume (from {whole.name})" if whole else "there is no checkpoint yet to go on from"

    def _keep_logs(self) -> None:
        """Copy what this run's workers on this machine printed into the run directory: Ray's own folder is soon replaced."""
        import ray

        target, job = self.launch.context.run_dir / "logs", ray.get_runtime_context().get_job_id()
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
            target.mkdir(exist_ok=True)
            for log in (self._session / "logs").glob(f"worker-*-{job}-*"):
                shutil.copy(log, target)

    def _close_ray(self) -> None:
        """Keep Ray to this machine, and to whoever has the run's token: its job route runs any command.

        Before Ray is imported, because it reads these variables then. A cluster that is there already has rules of its own.
        """
        if not in_a_cluster(self.launch.resolved.verl):
            os.environ.update(LOOPBACK)
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

    def _start_ray(self) -> None:
        """On one machine a fresh local cluster; on several, the one whose address the preset or RAY_ADDRESS names.

        Raises `UserError` for what Ray refuses.
        """
        # A key of this run: on several nodes the model servers listen on the network.
        variables = {**self.launch.environment, SERVER_KEY: secrets.token_hex(16)}
        options = dict(self.launch.resolved.verl["ray_kwargs"]["ray_init"])
        if not in_a_cluster(self.launch.resolved.verl):
            variables[RENDEZVOUS] = self._ranks = tempfile.mkdtemp(prefix="vision-rl-ranks-")
            options["address"] = "local"  # else Ray joins whatever cluster somebody has started on this machine
        forked = self.launch.forked
        environment = {**forked, "env_vars": {**variables, **forked.get("env_vars", {})}}
        options.pop("runtime_env", None)  # verl's own default; ours goes to every process of the run
        ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        started = self._init_ray(runtime_env=environment, log_to_driver=False, logging_level="ERROR", **options)
        self._session = Path(started.address_info["session_dir"])
        for number, handler in ours.items():  # Ray's own for SIGTERM ends the process at once, without a checkpoint
            signal.signal(number, handler)

    def _init_ray(self, **options: Any) -> Any:
        """`ray.init`, and again while the node does not come up in the half minute that Ray gives it on a busy machine."""
        for _ in range(RAY_STARTS - 1):
            others = set(psutil.Process().children())
            with contextlib.suppress(LateNode):
                return self._try_ray(options)
            RunLog(self.launch.context.run_dir).event("phase", text="Ray was too slow; starting it again")
            for left in set(psutil.Process().children()) - others:  # of that start: gcs_server, raylet, dashboard
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
                    left.wait()
        return self._try_ray(options)

    def _try_ray(self, options: dict[str, Any]) -> Any:
        """`ray.init`. Raises `UserError` for what Ray refuses, `LateNode` for a node of this machine that does not come up."""
        import ray

        joins = in_a_cluster(self.launch.resolved.verl)
        where = os.environ.get("RAY_ADDRESS") or options["address"]
        try:
            place = urlsplit(where if "//" in where else f"//{where}")
            if place.port:  # Ray itself would try for minutes
                socket.create_connection((place.hostname, place.port), timeout=10).close()
            return ray.init(**options)
        except Exception as error:  # Ray raises a plain Exception for a node that does not come up in time
            text = f"Ray does not start (address {where}): {' '.join(str(error).split())[:MAX_ERROR]}; "
            if "timed out during startup" in str(error) and not joins:
                busy = "the machine is too busy, or short of memory: start again when less runs on it"
                raise LateNode(text + busy) from error
            raise UserError(
                text
                + "ray_kwargs.ray_init.address=HOST:PORT or RAY_ADDRESS names a cluster that runs, and without either the "
                "run starts Ray for itself"
            ) from error
