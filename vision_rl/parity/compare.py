"""Both sides side by side: serve the cells, recompute them as the trainer does, and give a verdict for each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vision_rl.parity.cells import Cell, cells, conversation

LIMIT = 1e-4
"""The largest |actor - server| log-probability, in nats, that float32 on both sides may show."""
LOW_PRECISION_MEAN = 0.1
"""The largest mean of it that bfloat16 on both sides may show; a trainer that does not see is off by whole nats."""
TOGETHER = "one micro-batch"
UPDATED_BYTES = 10e9
"""The largest weights of a user's model that a comparison writes to disk once more."""


@dataclass(frozen=True)
class Result:
    """One cell. max, mean: |actor - server| log-probability over the reply, in nats; None where there is nothing to compare.

    prompt_equal: the server's prompt ids are those of the family's own processor in transformers. verdict: "equal",
    "differs", or "refused" by one of the two sides, with the `reason`.
    """

    family: str
    cell: str
    max: float | None
    mean: float | None
    prompt_equal: bool | None
    verdict: str
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a row of benchmarks/results/parity.json."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """A model to ask. model: its folder. updated: a folder of the same model with other weights, None to leave that out.

    engine: arguments of vLLM's `LLM` beside those of a CPU run. limits: as for `Pixels`, on the trainer's side. adapter: the
    folder of a LoRA adapter that the server is to use.
    """

    family: str
    model: Path
    updated: Path | None = None
    scale: int = 1
    cpu: bool = True
    engine: Mapping[str, Any] | None = None
    limits: Mapping[str, int] | None = None
    adapter: Path | None = None


def parity_cells(model: str | Path, *, cpu: bool) -> list[Result]:
    """The cells of a user's own model folder; the update sends the server the weights that it has.

    The update is left out for a folder of more than `UPDATED_BYTES`, because it writes the weights to disk once more. The
    pictures have four times the sides of those for a tiny model. On a GPU both sides compute in bfloat16, and the mean over
    a reply counts.
    """
    path = Path(model)
    small = sum(file.stat().st_size for file in path.glob("*.safetensors")) <= UPDATED_BYTES
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        return compare([Job(path.name, path, path if small else None, scale=4, cpu=cpu)], Path(folder))


def compare(jobs: Sequence[Job], folder: Path) -> list[Result]:
    """Results of every job's cells. Pictures, logs and the server's answers stay in `folder`."""
    asked = cells(folder, jobs[0].scale)
    answers = served(jobs, [[cell for cell in asked if job.updated or not cell.after_update] for job in jobs], folder)
    return [result for job, replies in zip(jobs, answers, strict=True) for result in _job_results(job, asked, replies)]


def served(jobs: Sequence[Job], asked: Sequence[Sequence[Cell]], folder: Path) -> list[dict[str, Any]]:
    """The server's replies to every job's cells by the cell's name, or one {"error": ...} for all of them."""
    from vision_rl.backends.environment import run_environment
    from vision_rl.models.processor import load_processor
    from vision_rl.models.tokens import forbidden_token_ids

    specs = []
    for number, job in enumerate(jobs):
        processor = load_processor(str(job.model))
        positions = getattr(processor.config.get_text_config(), "max_position_embeddings", None)
        engine: dict[str, Any] = {
            "max_model_len": min(2048 * job.scale, positions or 2048),
            "max_num_seqs": 16,
            "seed": 0,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "limit_mm_per_prompt": {"image": 4, "video": 0},
            **({"dtype": "float32", "enforce_eager": True} if job.cpu else {"gpu_memory_utilization": 0.6}),
            **(job.engine or {}),
        }
        specs.append(
            {
                "model": str(job.model),
                "update": str(_synced(job, folder / f"{number}.synced")) if job.updated else None,
                "engine": engine,
                "adapter": str(job.adapter) if job.adapter else None,
                "cells": [cell.to_json() for cell in asked[number]],
                "forbidden": forbidden_token_ids(processor),
                "fork": job.cpu and len(jobs) > 1,
                "log": str(folder / f"{number}.server.log"),
                "result": str(folder / f"{number}.answers.json"),
            }
        )
    (folder / "jobs.json").write_text(json.dumps(specs))
    environment = {**os.environ, **run_environment(jobs[0].cpu), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    command = [sys.executable, "-m", "vision_rl.parity.server", str(folder / "jobs.json")]
    with open(folder / "server.log", "w") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    answers = [folder / f"{number}.answers.json" for number in range(len(jobs))]
    died = {"error": "vLLM died; see its log"}
    return [json.loads(answer.read_text()) if answer.exists() else died for answer in answers]


def _synced(job: Job, folder: Path) -> Path:
    """The weights of `job.updated` as a run sends them to its server, under the names that verl and this project give them."""
    from safetensors.torch import save_file
    from verl.utils.model import convert_weight_keys
    from verl.workers.engine.fsdp.utils import unfuse_moe_params

    from vision_rl.backends.families import server_weights
    from vision_rl.parity.actor import load_model

    model = load_model(str(job.updated), cpu=job.cpu)
    parameters = convert_weight_keys(model.state_dict(), model).items()
    sent = server_weights(model, unfuse_moe_params(parameters, model.config.model_type))
    shutil.copytree(
        job.updated or job.model, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    save_file({name: tensor.clone().contiguous() for name, tensor in sent}, folder / "model.safetensors")
    return folder


def _job_results(job: Job, asked: Sequence[Cell], replies: dict[str, Any]) -> list[Result]:
    from vision_rl.models.pixels import Pixels
    from vision_rl.models.processor import load_processor
    from vision_rl.parity.actor import bare_engine, load_model
    from vision_rl.training.rows import RowBuilder

    asked = [cell for cell in asked if job.updated or not cell.after_update]
    if "error" in replies:
        return [
            Result(job.family, cell.name, None, None, None, "refused", f"vLLM: {replies['error']}") for cell in asked
        ]
    processor = load_processor(str(job.model))
    pixels = Pixels(processor, job.model, limits=job.limits)
    builder = RowBuilder(processor, pixels, max_prompt_length=10**6, max_response_length=10**6)
    results: list[Result] = []
    for path, after in ((job.model, False), (job.updated, True)):
        chosen = [cell for cell in asked if cell.after_update is after]
        if path is None or not chosen:
            continue
        engine = bare_engine(load_model(str(path), cpu=job.cpu), pixels)
        for cell in chosen:
            results.append(_cell_result(job.family, cell, replies[cell.name], processor, engine, builder))
        together = [cell for cell in chosen if cell.temperature == 1 and "error" not in replies[cell.name]]
        if not after and together:
            pairs = [(cell, replies[cell.name]) for cell in together]
            results.append(_measured(job.family, TOGETHER, engine, builder, pairs))
    return results


def _cell_result(family: str, cell: Cell, reply: dict[str, Any], processor: Any, engine: Any, builder: Any) -> Result:
    if "error" in reply:
        return Result(family, cell.name, None, None, None, "refused", f"vLLM: {reply['error']}")
    return _measured(family, cell.name, engine, builder, [(cell, reply)], _prompt_equal(processor, cell, reply))


def _measured(
    family: str,
    name: str,
    engine: Any,
    builder: Any,
    pairs: Sequence[tuple[Cell, dict[str, Any]]],
    prompt_equal: bool | None = None,
) -> Result:
    """The differences of all `pairs`, computed in one micro-batch."""
    from vision_rl.parity.actor import log_probs

    samples = [sample_of(cell, reply) for cell, reply in pairs]
    try:
        computed = [values.tolist() for values in log_probs(engine, builder, samples, pairs[0][0].temperature)]
    except Exception as error:  # whatever stops the trainer is the cell's result
        reason = f"trainer: {type(error).__name__}: {error}"
        for path in {path for cell, _ in pairs for path in cell.pictures}:  # a folder of one machine says nothing
            reason = reason.replace(Path(path).as_uri(), Path(path).name)
        return Result(family, name, None, None, prompt_equal, "refused", reason)
    known = [sample.rollout_log_probs for sample in samples]
    return verdict(family, name, computed, known, prompt_equal, engine.module.dtype)


def sample_of(cell: Cell, reply: dict[str, Any]) -> Any:
    """A server's reply to a cell as the trainer gets it (`vision_rl.training.samples.Sample`)."""
    from vision_rl.training.samples import Sample

    return Sample(
        reply["prompt_ids"],
        reply["response_ids"],
        [1] * len(reply["response_ids"]),
        reply["logprobs"],
        [Path(path).as_uri() for path in cell.pictures],
        *(0.0, cell.name, cell.name, 0),
    )


def verdict(
    family: str,
    name: str,
    computed: Sequence[Sequence[float]],
    known: Sequence[Sequence[float]],
    prompt_equal: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """The result of a cell from the trainer's and the server's log-probabilities of each reply."""
    pairs = [pair for ours, theirs in zip(computed, known, strict=True) for pair in zip(ours, theirs, strict=True)]
    difference = torch.tensor([ours - theirs for ours, theirs in pairs], dtype=torch.float64).abs()
    largest, mean = float(difference.max()), float(difference.mean())
    equal = largest <= LIMIT if dtype == torch.float32 else mean <= LOW_PRECISION_MEAN
    return Result(family, name, largest, mean, prompt_equal, "equal" if equal else "differs")


def _prompt_equal(processor: Any, cell: Cell, reply: dict[str, Any]) -> bool | None:
    """Whether transformers' own processor makes the same prompt ids of the same conversation; None if it makes none."""
    from PIL import Image

    messages = conversation(cell.messages, lambda path: {"type": "image"})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pictures = [Image.open(path).convert("RGB") for path in cell.pictures]
    for images in (pictures, [pictures]):  # some processors take one list of pictures for each text
        try:
            ids = processor(text=[text], **({"images": images} if pictures else {}))["input_ids"][0]
        except Exception:  # PaliGemma's takes no text without a picture, for one
            continue
        return list(ids) == reply["prompt_ids"]
    return None
