"""Evidence that trainer and server agree on a model. `--doctor` measures it; a run of an unproven family asks for it.

A file beside the model cache for each model, precision and kind of machine. It counts for exactly the configuration, the
weights' names and the versions of the four packages that compute: any of them can change what either side sees.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError
from vision_rl.files import write_text
from vision_rl.models.checks import stored_tensors
from vision_rl.models.family import Precision
from vision_rl.models.table import ModelInfo, image_processor_file
from vision_rl.preflight.parity import Result
from vision_rl.preflight.parity_cells import TOOL_REPLY

PACKAGES = ("vllm", "transformers", "verl", "torch")


def versions() -> dict[str, str]:
    """Of the packages that compute on either side."""
    return {name: version(name).split("+")[0] for name in PACKAGES}


def fingerprint(folder: Path) -> str:
    """Of a model folder: its configuration, how it processes pictures, and the names of its weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    processor = image_processor_file(folder)
    digest.update(processor.read_bytes() if processor else b"")
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(json.dumps(sorted(stored_tensors(file)[1])).encode())
    return digest.hexdigest()


def evidence_file(folder: Path, precision: Precision, cpu: bool) -> Path:
    """Where the evidence for a model folder lies, whether there is any or not."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return cache / "vision_rl_evidence" / f"{fingerprint(folder)[:32]}-{precision}-{'cpu' if cpu else 'gpu'}.json"


def keep(folder: Path, precision: Precision, cpu: bool, results: Sequence[Result]) -> Path:
    """Write what `--doctor` has measured; returns where."""
    path = evidence_file(folder, precision, cpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "model": folder.name,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "precision": precision,
        "cells": [result.to_json() for result in results],
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    return path


def check_proven(info: ModelInfo, precision: Precision, cpu: bool, engine: str = "vllm") -> None:
    """Raise `UserError` for a model whose family is not proven, unless there is evidence for it in which all cells are equal."""
    if not info.family.unproven or (cpu and engine == "vllm" and info.family.proven_on_cpu):
        return
    about = (
        f"{info.family.name} ({info.path}) is not proven to be trained on what the server saw: {info.family.unproven}"
    )
    cure = f"`python train_agent.py --doctor --model {info.path}`, with this run's preset, measures it and a run then trains it"
    if engine != "vllm":
        raise UserError(f"{about}; evidence is measured for vLLM only, so use --rollout-engine vllm")
    if not info.on_disk:
        raise UserError(f"{about}; download it and give its folder: {cure}")
    path = evidence_file(Path(info.path), precision, cpu)
    if not path.exists():
        raise UserError(f"{about}; {cure}")
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["versions"] != versions():
        was = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
        raise UserError(f"{about}; the evidence of {document['date']} is for {was}: {cure}")
    wrong = [cell for cell in document["cells"] if not _counts(cell)]
    if wrong or not document["cells"]:
        cell = wrong[0] if wrong else {"cell": "nothing", "verdict": "measured", "reason": ""}
        reason = f" ({cell['reason']})" if cell["reason"] else ""
        raise UserError(f"{about}; measured on {document['date']}, and {cell['cell']!r} {cell['verdict']}{reason}")


def _counts(cell: dict[str, Any]) -> bool:
    """Whether a cell speaks for the model: equal, or a tool's message that its template does not know (no agent sends one)."""
    return cell["verdict"] == "equal" or (cell["cell"] == TOOL_REPLY and cell["verdict"] == "refused")
