"""Measure the second parity matrix: a few families in each mode of a run.

The first matrix asks a bare forward about many kinds of pictures; this one asks the engine of a run, sharded by FSDP2, with
its process group, about the same replies: without padding, several pictures in one micro-batch, on two ranks, with a LoRA
adapter, with a frozen tower.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vision_rl.preflight.parity import Job, Result, sample_of, served, verdict
from vision_rl.preflight.parity_cells import Cell, cells

_MODEL, _ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
RANK = 8
"""Of the adapter; vLLM knows 8, 16, 32, ... only."""


@dataclass(frozen=True)
class Mode:
    """A way to run the trainer. settings: overrides of the cpu preset. pictures: only cells with at least so many.

    of: the server's weights, "plain", with an "adapter", or "frozen" after an update that left the tower as it was.
    """

    name: str
    settings: tuple[str, ...] = ()
    ranks: int = 1
    pictures: int = 1
    of: str = "plain"


_LORA = (f"{_MODEL}.lora_rank={RANK}", "actor_rollout_ref.rollout.load_format=safetensors")
MODES = (
    Mode("padding-free", (f"{_MODEL}.use_remove_padding=true",)),
    Mode("several pictures a sample, one micro-batch", pictures=2),
    Mode("two ranks", ranks=2),
    Mode("LoRA", _LORA, of="adapter"),
    Mode("LoRA on two ranks", _LORA, ranks=2, of="adapter"),
    Mode("frozen tower", (f"{_ACTOR}.freeze_vision_tower=true",), of="frozen"),
)


def compare_modes(built: Mapping[str, tuple[Path, Path]], folder: Path) -> list[Result]:
    """A result for every family and mode; pictures, logs and answers stay in `folder`.

    built: by family, a model's folder, and one of the same model with other weights, which is changed.
    """
    # A rank with pictures and videos would call its tower twice where others call theirs once (agent/media.py, check_videos).
    chosen = [cell for cell in cells(folder) if cell.temperature == 1 and not cell.shows_video]
    asked = [replace(cell, after_update=False) for cell in chosen]
    updated = [replace(cell, after_update=True) for cell in asked]
    jobs, models = [], {}
    for number, (family, (plain, other)) in enumerate(built.items()):
        models[family] = {
            "plain": plain,
            "adapter": adapter(plain, folder / f"{number}.adapter"),
            "frozen": _with_tower_of(plain, other),
        }
        lora = {"enable_lora": True, "max_lora_rank": RANK}
        jobs += [
            (Job(family, plain), asked),
            (Job(family, plain, engine=lora, adapter=models[family]["adapter"]), asked),
            (Job(family, plain, other), updated),
        ]
    answers = iter(served([job for job, _ in jobs], [cells for _, cells in jobs], folder))
    replies = {family: {of: next(answers) for of in ("plain", "adapter", "frozen")} for family in built}
    by_mode = [_mode_results(mode, models, asked, replies, folder / mode.name) for mode in MODES]
    return [results[number] for number in range(len(built)) for results in by_mode]


def _mode_results(
    mode: Mode,
    models: Mapping[str, Mapping[str, Path]],
    asked: Sequence[Cell],
    replies: Mapping[str, Mapping[str, Any]],
    work: Path,
) -> list[Result]:
    """The result of every family; all of them are computed by the same processes, because they take long to start."""
    jobs, known = [], {}
    for family, folders in models.items():
        given = replies[family][mode.of]
        chosen = [] if "error" in given else [cell for cell in asked if len(cell.pictures) >= mode.pictures]
        samples = [sample_of(cell, given[cell.name]) for cell in chosen if "error" not in given[cell.name]]
        adapted = mode.of == "adapter"
        settings = [*mode.settings, *([f"{_MODEL}.lora_adapter_path={folders['adapter']}"] if adapted else [])]
        model = folders["plain" if adapted else mode.of]
        jobs.append({"model": str(model), "settings": settings, "samples": [asdict(sample) for sample in samples]})
        known[family] = [sample.rollout_log_probs for sample in samples]
    work.mkdir()
    (work / "jobs.json").write_text(json.dumps(jobs))
    results = []
    for family, computed in zip(models, _ranks(work, mode.ranks, len(jobs)), strict=True):
        error = replies[family][mode.of].get("error")
        reason = f"vLLM: {error}" if error else f"trainer: {computed}" if isinstance(computed, str) else ""
        refused = Result(family, mode.name, None, None, None, "refused", reason)
        results.append(
            refused if reason or isinstance(computed, str) else verdict(family, mode.name, computed, known[family])
        )
    return results


def _ranks(work: Path, ranks: int, jobs: int) -> list[list[list[float]] | str]:
    """The log-probabilities of each job's samples of `work`/jobs.json by so many processes, or why there are none."""
    from vision_rl.platform.environment import run_environment

    environment = {**os.environ, **run_environment(True), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "0", "DIST_INIT_METHOD": f"file://{work}/rendezvous"}
    running = []
    for rank in range(ranks):
        with open(work / f"{rank}.log", "w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.parity_ranks", str(work)],
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=log,
                )
            )
    failed = [rank for rank, process in enumerate(running) if process.wait()]
    if failed:
        return [(work / f"{failed[0]}.log").read_text().strip().splitlines()[-1]] * jobs
    parts = [json.loads((work / f"{rank}.json").read_text()) for rank in range(ranks)]
    return [
        next((one for one in answers if isinstance(one, str)), None) or [values for one in answers for values in one]
        for answers in zip(*parts, strict=True)
    ]


def adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter of `model` with random weights, also where peft begins with zeros, in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model

    from vision_rl.models.table import model_info
    from vision_rl.preflight.parity_actor import load_model

    torch.manual_seed(0)
    exclude = f".*{model_info(model).family.tower}.*|.*multi_modal_projector.*"
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=16, target_modules="all-linear", exclude_modules=exclude,
        init_lora_weights=False,
    )  # fmt: skip
    get_peft_model(load_model(str(model)), config).save_pretrained(str(folder))
    return folder


def _with_tower_of(model: Path, other: Path) -> Path:
    """`other` with the vision tower and projector of `model`, as after an update that left them alone."""
    from safetensors.torch import load_file, save_file

    from vision_rl.actor.engine import VISION_TOWERS

    theirs = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in theirs.items() if any(part in VISION_TOWERS for part in name.split("."))}
    save_file(load_file(other / "model.safetensors") | kept, other / "model.safetensors", metadata={"format": "pt"})
    return other
