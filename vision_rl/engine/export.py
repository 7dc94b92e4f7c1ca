"""A training checkpoint as a folder that vLLM and transformers load: verl's own merger, run once and kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError

MERGED = "merged"
"""The folder beside `actor` that keeps the merged weights; it goes with its checkpoint."""
_STEP = re.compile(r"global_step_(\d+)")


def merged_checkpoint(path: str | Path) -> Path:
    """A folder with config.json and weights for `path`: itself, or the merged form of a training checkpoint.

    path: a Hugging Face folder, `global_step_N` (or its `actor`) of a run, or a run directory, whose newest checkpoint
    counts. Weights are merged in bfloat16, as verl does; a LoRA adapter is folded into them. Raises `UserError` for
    anything else, with the last lines of the merger if that fails.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--checkpoint {path} does not exist; give a model folder, a global_step_N or a run directory")
    if (folder / "config.json").exists():
        return folder
    step = _step_folder(folder)
    if step is None:
        raise UserError(
            f"--checkpoint {path} holds neither config.json nor a training checkpoint (global_step_N/actor); "
            "check the path"
        )
    target = step / MERGED
    if not (target / "config.json").exists():
        _merge(step, target)
    return target


def run_of(path: str | Path) -> Path | None:
    """The run directory that a training checkpoint belongs to; None for other folders."""
    step = _step_folder(Path(path).expanduser().absolute())
    return step.parent.parent if step and step.parent.name == "checkpoints" else None


def _step_folder(folder: Path) -> Path | None:
    for candidate in (folder, folder.parent):
        if _is_step(candidate):
            return candidate
    for place in (folder, folder / "checkpoints"):
        steps = [
            path for path in place.glob("global_step_*") if _STEP.fullmatch(path.name) and (path / "actor").is_dir()
        ]
        if steps:
            return max(steps, key=lambda path: int(path.name.rsplit("_", 1)[1]))
    return None


def _is_step(path: Path) -> bool:
    return _STEP.fullmatch(path.name) is not None and (path / "actor").is_dir()


def _merge(step: Path, target: Path) -> None:
    actor = step / "actor"
    if not (actor / "fsdp_config.json").exists():
        raise UserError(
            f"{actor} is no FSDP checkpoint; merge it with `python -m verl.model_merger merge --backend megatron "
            f"--local_dir {actor} --target_dir DIR` and give DIR"
        )
    partial = step / f".{MERGED}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    # No devices: merging happens in main memory, and the GPU may be busy with training.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--local_dir", str(actor), "--target_dir", str(partial)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode or not (partial / "config.json").exists():
        shutil.rmtree(partial, ignore_errors=True)
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise UserError(f"verl could not merge {actor} (full disk? half a checkpoint?); its last lines:\n{tail}")
    if (partial / "lora_adapter").is_dir():
        fold_adapter(partial, actor / "lora_adapter")
    try:
        os.rename(partial, target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}); copy the checkpoint to a writable place") from error


def fold_adapter(model_dir: Path, adapter: Path) -> None:
    """Add a LoRA adapter to the weights in `model_dir`.

    verl's merger leaves it beside the base weights with lora_alpha 0, and a server would load those without it; the
    trainer's own copy in `actor/lora_adapter` knows its alpha. Raises `UserError` if that is missing or does not fit.
    """
    config_file = adapter / "adapter_config.json"
    if not config_file.exists() or not json.loads(config_file.read_text()).get("lora_alpha"):
        raise UserError(f"{config_file} does not state lora_alpha; without it the LoRA adapter cannot be merged")
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForVision2Seq

    model = AutoModelForVision2Seq.from_pretrained(model_dir, torch_dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig.from_pretrained(str(adapter)))
    result: Any = set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))  # type: ignore[func-returns-value]
    absent = [key for key in result.missing_keys if "lora_" in key]
    if result.unexpected_keys or absent:
        raise UserError(f"{adapter} does not fit the model in {model_dir}: {(result.unexpected_keys or absent)[0]}")
    model.merge_and_unload().save_pretrained(model_dir)
    shutil.rmtree(model_dir / "lora_adapter", ignore_errors=True)
