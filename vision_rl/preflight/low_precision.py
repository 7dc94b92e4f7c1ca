"""Parity in bfloat16: is the server as near to the float32 model as rounding allows?

In bfloat16 trainer and server differ by rounding, so that a limit on their difference alone proves nothing. Three distances
are measured, each a mean and a 99th percentile of |difference of log-probabilities| in nats: the server from the truth, which
is the trainer's code in float32 with the same weights; the trainer in bfloat16 from the truth; and one from the other. They
are held against a yardstick: the same three of a control family that is proven in float32, or, for a user's own model, the
trainer's own distance from the truth. And the proof has to have power: a trainer with black pictures, with other weights or
with shifted positions has to be beyond the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vision_rl.preflight.parity import Job, Result, _has, _prompt_equal, sample_of, served
from vision_rl.preflight.parity_cells import Cell, cells

FACTOR = 1.5
"""How much more than the yardstick still counts as rounding."""
ALL = "all cells"
SHIFT = 32
"""Positions by which the control of that name is off: as many tokens as a small picture has. By 64 the rotations of the tiny
Qwen3.5, 1 and 0.1 radian a position, come nearly around (ten times and once), and the control hardly showed."""
Differences = dict[str, torch.Tensor]
"""|difference| per token: "server" and "trainer" from the truth, "between" the two; (tokens,)."""


@dataclass(frozen=True)
class Yardstick:
    """What rounding may do, per name of a distance: of all cells together, and the mean of the worst cell."""

    pooled: Mapping[str, Mapping[str, float]]
    worst: Mapping[str, float]


def prove(jobs: Sequence[Job], folder: Path, controls: Mapping[str, str] | None = None) -> list[Result]:
    """Results of every job's cells, of all cells together, and of the three controls that have to be caught.

    controls: by family, the one among the jobs that is its yardstick; others are their own. Job.precision is theirs.
    """
    every = cells(folder, jobs[0].scale)
    asked = [[cell for cell in every if _has(job, cell)] for job in jobs]
    answers = served(jobs, asked, folder)
    measured = {
        job.family: _measure(job, chosen, replies) for job, chosen, replies in zip(jobs, asked, answers, strict=True)
    }
    results = []
    for job in jobs:
        found, caught, refused = measured[job.family]
        results += [
            Result(job.family, name, None, None, None, "refused", why, "bfloat16") for name, why in refused.items()
        ]
        if found:
            control = (controls or {}).get(job.family)
            yardstick = yardstick_of(measured[control][0] if control else found, own=not control)
            results += judged(job.family, found, caught, yardstick)
    return results


def judged(
    family: str, found: Mapping[str, tuple[Differences, bool | None]], caught: Differences, yardstick: Yardstick
) -> list[Result]:
    """The verdicts of a family's cells. caught: |trainer - server| of each control, (tokens,)."""
    results = []
    for name, (differences, prompt_equal) in found.items():
        over = _over({key: {"mean": mean} for key, mean in yardstick.worst.items()}, _summary(differences))
        results.append(_result(family, name, differences, prompt_equal, over))
    pooled = _pooled([differences for differences, _ in found.values()])
    results.append(_result(family, ALL, pooled, None, _over(yardstick.pooled, _summary(pooled))))
    limit = FACTOR * yardstick.pooled["between"]["mean"]  # a control is of all cells too
    for name, difference in caught.items():
        mean = float(difference.mean())
        missed = (
            "" if mean > limit else f"{name} moved the trainer by {mean:.2g} nats only, within the limit of {limit:.2g}"
        )
        largest = float(difference.max())
        results.append(Result(family, name, largest, mean, None, "differs" if missed else "equal", missed, "bfloat16"))
    return results


def _measure(
    job: Job, asked: Sequence[Cell], replies: Mapping[str, Any]
) -> tuple[dict[str, tuple[Differences, bool | None]], Differences, dict[str, str]]:
    """(differences and equal prompts by cell, |trainer - server| by control, refusals by cell)."""
    from vision_rl.models.pixels import Pixels
    from vision_rl.models.processor import load_processor
    from vision_rl.preflight.parity_actor import bare_engine, load_model, log_probs
    from vision_rl.training.rows import RowBuilder

    processor = load_processor(str(job.model))
    pixels = Pixels(processor, job.model)
    builder = RowBuilder(processor, pixels, max_prompt_length=10**6, max_response_length=10**6)
    known = {cell.name: replies.get(cell.name, replies) for cell in asked}
    refused = {name: f"vLLM: {reply['error']}" for name, reply in known.items() if "error" in reply}
    found: dict[str, tuple[Differences, bool | None]] = {}
    controls: dict[str, list[torch.Tensor]] = {}

    def engine(path: Path, dtype: torch.dtype) -> Any:
        model = load_model(str(path), cpu=job.cpu, dtype=dtype)
        for parameter in model.parameters():  # the truth has the weights that server and trainer have
            parameter.data = parameter.data.bfloat16().to(dtype)
        return bare_engine(model, pixels)

    for path, after in ((job.model, False), (job.updated, True)):
        chosen = [cell for cell in asked if cell.after_update is after and cell.name not in refused]
        if path is None or not chosen:
            continue
        trainer, truth = engine(path, torch.bfloat16), engine(path, torch.float32)
        other = engine(job.updated, torch.bfloat16) if job.updated and job.updated != job.model and not after else None
        for cell in chosen:
            samples = [sample_of(cell, {**known[cell.name], **one}) for one in ({}, *known[cell.name]["others"])]
            server = torch.tensor([value for sample in samples for value in sample.rollout_log_probs])

            def of(engine: Any, samples: Any = samples, cell: Cell = cell, **options: Any) -> torch.Tensor:
                return torch.cat(log_probs(engine, builder, samples, cell.temperature, **options))

            try:
                right, ours = of(truth), of(trainer)
            except Exception as error:  # whatever stops the trainer is the cell's result
                refused[cell.name] = f"trainer: {type(error).__name__}: {error}"
                continue
            differences = {"server": server - right, "trainer": ours - right, "between": ours - server}
            equal = _prompt_equal(processor, cell, known[cell.name])
            found[cell.name] = {key: value.abs() for key, value in differences.items()}, equal
            if cell.pictures and not cell.shows_video:
                controls.setdefault("black pictures", []).append((of(trainer, view="blank") - server).abs())
                controls.setdefault("shifted positions", []).append((of(trainer, shift=SHIFT) - server).abs())
            if other is not None:
                controls.setdefault("other weights", []).append((of(other) - server).abs())
    return found, {name: torch.cat(values) for name, values in controls.items()}, refused


def yardstick_of(found: Mapping[str, tuple[Differences, bool | None]], *, own: bool) -> Yardstick:
    """Of a control family's cells; own: of a model that is its own control, by its trainer's distance from the truth. Between two
    sides that are independently as far from it lies the square root of two times as much."""
    every = [differences for differences, _ in found.values()]
    if own:
        every = [{key: (2**0.5 if key == "between" else 1) * one["trainer"] for key in one} for one in every]
    means = [_summary(one) for one in every]
    return Yardstick(_summary(_pooled(every)), {key: max(one[key]["mean"] for one in means) for key in every[0]})


def _pooled(every: Sequence[Differences]) -> Differences:
    return {key: torch.cat([one[key] for one in every]) for key in every[0]}


def _summary(differences: Differences) -> dict[str, dict[str, float]]:
    return {
        key: {"mean": float(value.mean()), "p99": float(value.quantile(0.99))} for key, value in differences.items()
    }


def _over(limits: Mapping[str, Mapping[str, float]], measured: Mapping[str, Mapping[str, float]]) -> str:
    """The first distance that is more than `FACTOR` times its limit, in words; "" if none is."""
    words = {"server": "server from float32", "trainer": "trainer from float32", "between": "trainer from server"}
    for key, figures in limits.items():
        for name, limit in figures.items():
            if not measured[key][name] <= FACTOR * limit:
                return f"{words[key]}: {name} {measured[key][name]:.2g} nats, more than {FACTOR} times {limit:.2g}"
    return ""


def _result(family: str, name: str, differences: Differences, prompt_equal: bool | None, over: str) -> Result:
    between = differences["between"]
    verdict, summary = "differs" if over else "equal", _summary(differences)
    return Result(
        family, name, float(between.max()), summary["between"]["mean"], prompt_equal, verdict, over, "bfloat16", summary
    )
