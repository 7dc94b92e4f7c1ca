"""The model table: every vision-language family that this project knows, and what is supported for it.

One row per family. `model_info` finds the row of a model folder (by its config.json) or of a hub name, `check_pairing`
refuses what cannot work with the reason. Whether trainer and server agree on a family is measured, not stated here:
`measured` reads the last parity matrix (benchmarks/parity.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError
from vision_rl.models.families import FAMILIES
from vision_rl.models.family import ModelFamily, Precision
from vision_rl.models.refused import REFUSED

TABLE: tuple[ModelFamily, ...] = (*FAMILIES, *REFUSED)
_BY_TYPE = {model_type: row for row in TABLE for model_type in row.model_types}
_BY_NAME = {row.name: row for row in TABLE}


@dataclass(frozen=True)
class ModelInfo:
    """A model as far as it can be known without its weights.

    path: folder or hub name. config: the parsed config.json ({} for a hub name that is not on disk). min_pixels and
    max_pixels: the processor's own limits on the area of an image in pixels, None where they are not stated.
    """

    path: str
    family: ModelFamily
    model_type: str
    on_disk: bool
    config: dict[str, Any] = field(default_factory=dict)
    min_pixels: int | None = None
    max_pixels: int | None = None


def model_info(path: str | Path) -> ModelInfo:
    """The family of a model folder or hub name; `UserError` for a missing folder, a text-only model and one whose classes come
    with the checkpoint. A folder of a family that the table does not know has a row of its own, unproven."""
    name = str(path)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):  # a hub name
            return _by_name(name)
        raise UserError(
            f"--model {name} does not exist; give a model folder or a hub name such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    config = _read_json(folder / "config.json")
    if config is None:
        raise UserError(f"--model {name} has no config.json; give the folder that holds config.json and the weights")
    model_type = str(config.get("model_type", ""))
    family = _BY_TYPE.get(model_type)
    if family is None:
        family = _unknown(name, model_type, config)
    if model_type == "llava" and config.get("vision_config", {}).get("model_type") == "pixtral":
        family = _BY_NAME["Pixtral"]
    if model_type == "glm4v" and "Glm46V" in str(_image_processor(folder)):
        family = _BY_NAME["GLM-4.6V"]
    low, high = _pixel_limits(folder)
    return ModelInfo(name, family, model_type, True, config, low, high)


def precision_of(info: ModelInfo, *, cpu: bool) -> Precision:
    """In what a model is served and proven: bfloat16 on a GPU, and where vLLM's CPU kernels take nothing else."""
    return info.family.precision if cpu else "bfloat16"


def _unknown(name: str, model_type: str, config: dict[str, Any]) -> ModelFamily:
    """The row of a family that the table does not know and transformers does."""
    says = f"its config.json says model_type {model_type or 'nothing'!r}"
    if not any(key in config for key in ("vision_config", "visual", "mm_vision_tower")):
        raise UserError(f"--model {name} is not a vision model: {says}")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    if model_type not in KNOWN:
        raise UserError(
            f"--model {name} is not in the model table (--list-models), and transformers has no class for it: {says}"
        )
    return ModelFamily(
        name=model_type,
        examples=(),
        model_types=(model_type,),
        architectures=tuple(config.get("architectures") or ()),
        pattern="",
        tokens_per_image="unknown",
        memory="unknown",
        tower="vis",  # in vision_tower, vision_model and visual
        no_video="nobody has compared its videos",
        unproven="the model table does not know it",
    )


def check_pairing(
    info: ModelInfo,
    engine: str = "vllm",
    *,
    freeze_vision: bool = False,
    strategy: str = "fsdp2",
    adapted: Callable[[str], bool] | None = None,
) -> None:
    """Raise `UserError`, with the reason, for a model that this engine or these training settings cannot handle.

    adapted: for a LoRA run, whether the module of a name gets an adapter.
    """
    row = info.family
    if row.refused:
        raise UserError(f"{row.name} ({info.path}) cannot be trained here: {row.refused}; --list-models shows what can")
    text = info.config.get("text_config")
    if isinstance(text, dict) and text.get("use_bidirectional_attention") == "vision":
        raise UserError(
            f"{info.path} cannot be trained here: its picture tokens see each other in both directions "
            "(text_config.use_bidirectional_attention=vision), where vLLM's attention differs (vllm issue 40106)"
        )
    if not (row.vllm if engine == "vllm" else row.sglang):
        other = "sglang" if engine == "vllm" else "vllm"
        reason = (row.no_sglang if engine == "sglang" else "") or f"it has no {row.architectures[0]}"
        raise UserError(
            f"{row.name} ({info.path}) cannot be served by {engine}: {reason}; use --rollout-engine {other}"
        )
    if freeze_vision and strategy == "megatron":
        raise UserError(
            "actor_rollout_ref.actor.freeze_vision_tower does nothing under Megatron, only this project's FSDP engine reads it; "
            "leave the variant out or use an FSDP preset"
        )
    if strategy == "megatron" and row.name not in MEGATRON:
        raise UserError(
            f"{row.name} cannot be trained by Megatron: verl 0.9.1 knows {', '.join(MEGATRON)}; use an FSDP preset"
        )
    if adapted is not None and adapted(f"model.{row.tower}.layers.0.attn.qkv"):
        raise UserError(
            f"LoRA adapters inside the vision tower of {row.name} would train but not be served: vLLM has none there; "
            f"set actor_rollout_ref.model.exclude_modules='.*{row.tower}.*'"
        )


MEGATRON = ("Qwen2.5-VL", "Qwen3-VL", "Qwen3-VL-MoE")
"""Families that verl 0.9.1's Megatron workers know (verl/models/mcore/registry.py)."""

PARITY_RESULTS, LOW_RESULTS = (Path(__file__).with_name(name) for name in ("parity.json", "parity_bf16.json"))
"""The matrix in float32, and the one in bfloat16, which every family has."""


@dataclass(frozen=True)
class Measured:
    """One family in the last parity matrix of its precision: how many of its cells are equal, the largest difference among those
    in nats (in bfloat16 the largest mean), and when and with what it was measured."""

    equal: int
    cells: int
    largest: float
    date: str
    versions: str


_MEASURED_AS = {"MiMo-VL": "Qwen2.5-VL"}


def _cells(row: ModelFamily, results: Path) -> list[dict[str, Any]]:
    """A family's cells of a matrix, without the video that nobody shows it."""
    name = _MEASURED_AS.get(row.name, row.name)
    cells = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    return [cell for cell in cells if cell["family"] == name and not (row.no_video and cell["cell"] == "video")]


def rounding(row: ModelFamily, results: Path = LOW_RESULTS) -> float | None:
    """The mean of |trainer - server| in nats that bfloat16 on both sides shows in the worst cell of the family's tiny model;
    None where nobody has measured it."""
    cells = [cell for cell in _cells(row, results) if cell["distances"] and cell["verdict"] == "equal"]
    return max((cell["mean"] for cell in cells), default=None)


def measured(results: Path = PARITY_RESULTS, low: Path = LOW_RESULTS) -> dict[str, Measured]:
    """The last parity matrices by the family's name, each in the precision of its row."""
    found = {}
    for row in TABLE:
        exact = row.precision == "float32"
        if cells := _cells(row, results if exact else low):
            equal = [cell for cell in cells if cell["verdict"] == "equal"]
            figures = [cell["max"] if exact else cell["mean"] for cell in equal if exact or cell["distances"]]
            when = cells[0]["date"], cells[0]["versions"]
            found[row.name] = Measured(len(equal), len(cells), max(figures, default=0.0), *when)
    return found


def _parity(found: Measured | None) -> str:
    if found is None:
        return "-"
    return f"{found.equal} of {found.cells}" + (f", {found.largest:.0e}" if found.equal else "")


def model_rows() -> list[dict[str, str]]:
    """The table, a row a family, by the names of its columns."""
    matrix = measured()
    return [
        {
            "family": row.name,
            "example": row.examples[0],
            "vLLM": "yes" if row.vllm else "no",
            "SGLang": "yes" if row.sglang else "no",
            "coordinates": row.coordinates,
            "positions": row.positions,
            "memory class": row.memory,
            "parity": _parity(matrix.get(row.name)),
            "trained here": "yes" if row.trained else "no" if row.refused else "with evidence",
        }
        for row in TABLE
    ]


def render_models() -> str:
    """The table as text, one family a line, refusals with their reason below."""
    rows, matrix = model_rows(), measured()
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    when = sorted({f"{m.date} ({m.versions})" for m in matrix.values()})
    parity = (
        "parity: cells in which trainer and vLLM agree to 1e-4 nats, and the largest difference (of a family that is served in "
        f"bfloat16: to its control's rounding, and the largest mean); {'; '.join(when)}"
    )
    reasons = [f"  {row.name}: {row.remarks}" for row in TABLE if row.remarks]
    return "\n".join([*lines, "", *([parity, ""] if matrix else []), "Notes", *reasons])


def _by_name(name: str) -> ModelInfo:
    for row in TABLE:
        if row.pattern and re.search(row.pattern, name, re.IGNORECASE):
            return ModelInfo(name, row, row.model_types[0] if row.model_types else "", False)
    raise UserError(
        f"--model {name} is no folder, and its family is not clear from the name; download it and give the folder, "
        "or choose one of --list-models"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    return loaded if isinstance(loaded, dict) else None


def image_processor_file(folder: Path) -> Path | None:
    """Where a model folder's image processor stands: a part of transformers 5's file, or the whole of transformers 4's."""
    newer, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    if "image_processor" in (_read_json(newer) or {}):
        return newer
    return older if older.exists() else None


def _image_processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings."""
    path = image_processor_file(folder)
    document = (_read_json(path) if path else None) or {}
    return document.get("image_processor", document)


def _pixel_limits(folder: Path) -> tuple[int | None, int | None]:
    """(min, max) area of a picture in pixels, in either spelling of the Qwen processors."""
    config = _image_processor(folder)
    stated = config.get("size")
    size: dict[str, Any] = stated if isinstance(stated, dict) else {}
    if "Qwen" not in str(config.get("image_processor_type", "Qwen")):
        return None, None
    low = config.get("min_pixels") or size.get("shortest_edge")
    high = config.get("max_pixels") or size.get("longest_edge")
    return low, high
