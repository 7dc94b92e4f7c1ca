"""Train the demo with verl's own agent loop; `against_verl.py` starts this script in a process of its own.

    PYTHONPATH=. python benchmarks/verl_demo.py '{"arguments": ["--task", "vqa", ...], "train": ..., "val": ..., ...}'

Configuration, checkpoint and optimiser are those of `train_agent.py` with the same arguments; rows are read by verl's
`RLHFDataset`, rollouts come from its agent loop workers, and rewards from its reward workers. Ray's workers are forks of a
template, as in this project's runs. Prints one JSON object as its last line.
"""

from __future__ import annotations

import time

STARTED = time.time()

import json  # noqa: E402
import os  # noqa: E402
import secrets  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import train_agent  # noqa: E402
from vision_rl.config.resolve import Resolved  # noqa: E402
from vision_rl.platform.environment import SERVER_KEY, run_environment  # noqa: E402
from vision_rl.platform.fork_template import forked_workers  # noqa: E402
from vision_rl.platform.rendezvous import RENDEZVOUS  # noqa: E402
from vision_rl.training.prepare import prepared, take_given  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OBJECT_STORE = 2**31
"""Bytes; this project's 300 MiB would not hold the pixels of a step's pictures, one of a megapixel for each rollout."""


def configuration(resolved: Resolved, settings: dict[str, Any]) -> dict[str, Any]:
    """verl's tree of a run of this project, with verl's own data set, agent loop and rewards in it."""
    tree: dict[str, Any] = resolved.verl
    tree["data"] |= {"train_files": settings["train"], "val_files": settings["val"]}
    tree["data"]["dataloader_num_workers"] = settings["loaders"]
    tree["actor_rollout_ref"]["rollout"]["agent"]["num_workers"] = settings["agents"]
    tree["reward"]["num_workers"] = settings["scorers"]
    tree["reward"]["custom_reward_function"] |= {"path": "pkg://benchmarks.verl_reward", "name": "compute_score"}
    tree["trainer"]["logger"] = []
    return tree


def main() -> None:
    settings = json.loads(sys.argv[1])
    args = train_agent.parsed(settings["arguments"])
    take_given(args)
    environment = run_environment(cpu=True)
    os.environ.update(environment)
    tree = configuration(prepared(args, cpu=True)[0], settings)
    folder = Path(settings["folder"])
    notes = folder / "notes.jsonl"
    variables = {
        **environment,
        SERVER_KEY: secrets.token_hex(16),
        RENDEZVOUS: tempfile.mkdtemp(dir=folder),
        "TRANSFER_QUEUE_ENABLE": "1",
        "VERL_ENGINE_VENDOR": "pixels",  # the engine of verl_rank.py
        "PYTHONPATH": str(ROOT),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # 127.0.0.1 alone
    options = {**tree["ray_kwargs"]["ray_init"], "address": "local", "object_store_memory": OBJECT_STORE}
    # Logical ones, which verl's actors reserve: what this project's run reserves, and those that it does not have.
    options["num_cpus"] += settings["agents"] + settings["scorers"] + 1
    with forked_workers(True, tree, folder / "template.log") as forked:
        import ray

        from benchmarks.verl_side import VerlRunner

        options["runtime_env"] = {**forked, "env_vars": {**variables, **forked.get("env_vars", {})}}
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
        ray.get(VerlRunner.remote().run.remote(tree, notes, settings["poll"]))  # type: ignore[attr-defined]
        ray.shutdown()
    begun, *lines = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    print("\n" + json.dumps({"startup_seconds": begun["time"] - STARTED, "lines": lines}))


if __name__ == "__main__":
    main()
