"""Compare both sides: serve the cells, recompute them as the trainer does, and give a verdict for each."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vision_rl.models.family import Precision
from vision_rl.preflight.parity_cells import VIDEO, Cell, cells, conversation

LIMIT = 1e-4
"""The largest |actor - server| log-probability, in nats, that float32 on both sides may show."""
TOGETHER = "one micro-batch"
SHARED = "shared prompt"
"""Each prompt computed once for two replies; only of families whose configuration allows it (`actor/shared_prompt.py`)."""
UPDATED_BYTES = 10e9
"""The largest weights of a user's model that a comparison writes to disk once more."""


@dataclass(frozen=True)
class Result:
    """One cell. max, mean: |actor - server| log-probability over the reply, in nats; None where there is nothing to compare.

    prompt_equal: the server's prompt ids are those of the family's own processor in transformers. verdict: "equal",
    "differs", or "refused" by one of the two sides, with the `reason`. distances: in bfloat16, how far either side is from
    float32 and from the other (vision_rl.preflight.low_precision).
    """

    family: str
    cell: str
    max: float | None
    mean: float | None
    prompt_equal: bool | None
    verdict: str
    reason: str = ""
    precision: Precision = "float32"
    distances: Mapping[str, Mapping[str, float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a row of vision_rl/models/parity.json."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """A model to ask. model: its folder. updated: a folder of the same model with other weights, None to leave that out.

    engine: arguments of vLLM's `LLM` beside those of a CPU run. limits: as for `Pixels`, on the trainer's side. adapter: the
    folder of a LoRA adapter that the server is to use. videos: False leaves out what shows a native video. precision: the
    server's.
    """

    family: str
    model: Path
    updated: Path | None = None
    scale: int = 1
    cpu: bool = True
    engine: Mapping[str, Any] | None = None
    limits: Mapping[str, int] | None = None
    adapter: Path | None = None
    videos: bool = True
    precision: Precision = "float32"


def parity_cells(model: str | Path, *, cpu: bool, videos: bool) -> list[Result]:
    """The cells of a user's own model folder; the update sends the server the weights that it has.

    videos: ask about a native video too.

    The update is left out for a folder of more than `UPDATED_BYTES`, because it writes the weights to disk once more. The
    pictures have four times the sides of those for a tiny model. In bfloat16, on a GPU and where vLLM's kernels take nothing
    else, the model's own rounding is the measure (low_precision.py).
    """
    from vision_rl.models.table import model_info, precision_of
    from vision_rl.preflight.low_precision import prove

    path = Path(model)
    small = sum(file.stat().st_size for file in path.glob("*.safetensors")) <= UPDATED_BYTES
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        precision = precision_of(model_info(path), cpu=cpu)
        job = Job(path.name, path, path if small else None, 4, cpu, videos=videos, precision=precision)
        return (compare if precision == "float32" else prove)([job], Path(folder))


@dataclass(frozen=True)
class Server:
    """A model server to compare with. ask: as `served`. masks: it leaves the banned tokens out before it answers."""

    name: str
    ask: Callable[[Sequence[Job], Sequence[Sequence[Cell]], Path], list[dict[str, Any]]]
    videos: bool
    masks: bool


def compare(jobs: Sequence[Job], folder: Path, server: Server | None = None) -> list[Result]:
    """Results of every job's cells. Pictures, logs and the server's answers stay in `folder`. server: None for vLLM."""
    server = server or Server("vLLM", served, videos=True, masks=False)
    every = cells(folder, jobs[0].scale)
    asked = [[cell for cell in every if _has(job, cell, videos=server.videos)] for job in jobs]
    answers = server.ask(jobs, asked, folder)
    return [
        result
        for job, chosen, replies in zip(jobs, asked, answers, strict=True)
        for result in _job_results(job, chosen, replies, server)
    ]


def _has(job: Job, cell: Cell, *, videos: bool = True) -> bool:
    """Whether a cell is asked of a model: the update only with other weights, a video where its processor takes one. videos: the
    server takes them."""
    from vision_rl.models.processor import load_processor

    if cell.after_update and not job.updated:
        return False
    if not cell.shows_video:
        return True
    return job.videos and videos and getattr(load_processor(str(job.model)), "video_processor", None) is not None


def served(jobs: Sequence[Job], asked: Sequence[Sequence[Cell]], folder: Path) -> list[dict[str, Any]]:
    """The server's replies to every job's cells by the cell's name, or one {"error": ...} for all of them."""
    from vision_rl.models.processor import load_processor
    from vision_rl.models.table import model_info
    from vision_rl.models.tokens import forbidden_token_ids
    from vision_rl.platform.environment import run_environment
    from vision_rl.platform.parent_death import child

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
            "limit_mm_per_prompt": {"image": 4, "video": int(any(cell.shows_video for cell in asked[number]))},
            **(model_info(job.model).family.cpu_options if job.cpu else {}),
            **({"enforce_eager": True} if job.cpu else {"gpu_memory_utilization": 0.6}),
            "dtype": job.precision,
            **(job.engine or {}),
        }
        specs.append(
            {
                "model": str(job.model),
                "update": str(synced(job, folder / f"{number}.synced")) if job.updated else None,
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
    command = [sys.executable, "-m", "vision_rl.preflight.parity_server", str(folder / "jobs.json")]
    with open(folder / "server.log", "w") as log, child(command, env=environment, stdout=log, stderr=log) as server:
        server.wait()
    answers = [folder / f"{number}.answers.json" for number in range(len(jobs))]
    died = {"error": "vLLM died; see its log"}
    return [json.loads(answer.read_text()) if answer.exists() else died for answer in answers]


def synced(job: Job, folder: Path) -> Path:
    """The weights of `job.updated` as a run sends them to its server, under the names that verl and this project give them."""
    from safetensors.torch import save_file
    from verl.utils.model import convert_weight_keys
    from verl.workers.engine.fsdp.utils import unfuse_moe_params

    from vision_rl.actor.model_patches import server_weights
    from vision_rl.preflight.parity_actor import load_model

    model = load_model(str(job.updated), cpu=job.cpu)
    parameters = convert_weight_keys(model.state_dict(), model).items()
    sent = server_weights(model, unfuse_moe_params(parameters, model.config.model_type))
    shutil.copytree(
        job.updated or job.model, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    save_file({name: tensor.clone().contiguous() for name, tensor in sent}, folder / "model.safetensors")
    return folder


def _job_results(job: Job, asked: Sequence[Cell], replies: dict[str, Any], server: Server) -> list[Result]:
    from vision_rl.models.pixels import Pixels
    from vision_rl.models.processor import load_processor
    from vision_rl.models.table import model_info
    from vision_rl.preflight.parity_actor import bare_engine, load_model
    from vision_rl.serving.banned_tokens import banned_tokens
    from vision_rl.training.rows import RowBuilder

    replies = {cell.name: replies.get(cell.name, replies) for cell in asked}  # one error stands for all of them
    refused = [
        Result(job.family, cell.name, None, None, None, "refused", f"{server.name}: {replies[cell.name]['error']}")
        for cell in asked
        if "error" in replies[cell.name]
    ]
    if len(refused) == len(asked):
        return refused
    processor = load_processor(str(job.model))
    pixels = Pixels(processor, job.model, limits=job.limits)
    builder = RowBuilder(processor, pixels, max_prompt_length=10**6, max_response_length=10**6)
    no_video = model_info(job.model).family.no_video
    banned = banned_tokens(str(job.model), processor) if server.masks else []
    results = refused
    for path, after in ((job.model, False), (job.updated, True)):
        chosen = [cell for cell in asked if cell.after_update is after and "error" not in replies[cell.name]]
        if path is None or not chosen:
            continue
        engine = bare_engine(load_model(str(path), cpu=job.cpu), pixels, banned)
        for cell in chosen:
            equal = _prompt_equal(processor, cell, replies[cell.name])
            results.append(_measured(job.family, cell.name, engine, builder, [(cell, replies[cell.name])], equal))
        together = [cell for cell in chosen if cell.temperature == 1 and not (cell.shows_video and no_video)]
        if not after and together:
            pairs = [(cell, replies[cell.name]) for cell in together]
            results.append(_measured(job.family, TOGETHER, engine, builder, pairs))
            if not engine.unshared:
                results.append(_measured(job.family, SHARED, engine, builder, pairs, share=True))
    if no_video:
        results = [
            replace(one, reason=no_video) if one.cell == VIDEO and one.verdict != "equal" else one for one in results
        ]
    order = [*replies, TOGETHER, SHARED]
    return sorted(results, key=lambda result: order.index(result.cell))


def _measured(
    family: str,
    name: str,
    engine: Any,
    builder: Any,
    pairs: Sequence[tuple[Cell, dict[str, Any]]],
    prompt_equal: bool | None = None,
    *,
    share: bool = False,
) -> Result:
    """The differences of all `pairs`, computed in one micro-batch. share: each prompt once for two replies."""
    from vision_rl.preflight.parity_actor import log_probs

    samples = [sample_of(cell, reply) for cell, reply in pairs]
    try:
        found = log_probs(engine, builder, samples, pairs[0][0].temperature, share=share)
        computed = [values.tolist() for values in found]
    except Exception as error:  # whatever stops the trainer is the cell's result
        reason = f"trainer: {type(error).__name__}: {error}"
        for path in {path for cell, _ in pairs for path in cell.pictures}:  # a folder of one machine says nothing
            reason = reason.replace(Path(path).as_uri(), Path(path).name)
        return Result(family, name, None, None, prompt_equal, "refused", reason)
    known = [sample.rollout_log_probs for sample in samples]
    return verdict(family, name, computed, known, prompt_equal)


def sample_of(cell: Cell, reply: dict[str, Any]) -> Any:
    """A server's reply to a cell as the trainer gets it (`vision_rl.training.samples.Sample`)."""
    from vision_rl.training.samples import Sample

    return Sample(
        reply["prompt_ids"],
        reply["response_ids"],
        [1] * len(reply["response_ids"]),
        reply["logprobs"],
        cell.refs,
        *(0.0, cell.name, cell.name, 0),
    )


def verdict(
    family: str,
    name: str,
    computed: Sequence[Sequence[float]],
    known: Sequence[Sequence[float]],
    prompt_equal: bool | None = None,
) -> Result:
    """The result of a cell from the trainer's and the server's log-probabilities of each reply."""
    pairs = [pair for ours, theirs in zip(computed, known, strict=True) for pair in zip(ours, theirs, strict=True)]
    difference = torch.tensor([ours - theirs for ours, theirs in pairs], dtype=torch.float64).abs()
    largest, mean = float(difference.max()), float(difference.mean())
    return Result(family, name, largest, mean, prompt_equal, "equal" if largest <= LIMIT else "differs")


def _prompt_equal(processor: Any, cell: Cell, reply: dict[str, Any]) -> bool | None:
    """Whether transformers' own processor makes the same prompt ids of the same conversation; None if it makes none."""
    from PIL import Image

    from vision_rl.models.pixels import video_arguments

    messages = conversation(cell.messages, lambda part: {"type": "video" if part["type"] == "video" else "image"})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pictures = [Image.open(path).convert("RGB") for path in cell.pictures]
    media: list[dict[str, Any]] = [{"images": pictures}, {"images": [pictures]}] if pictures else [{}]
    for shown in (
        [video_arguments(pictures)] if cell.shows_video else media
    ):  # some take a list of pictures for each text
        try:
            ids = processor(text=[text], **shown)["input_ids"][0]
        except Exception:  # PaliGemma's takes no text without a picture, for one
            continue
        return list(ids) == reply["prompt_ids"]
    return None
