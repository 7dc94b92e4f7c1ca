"""Turn a training checkpoint into a folder that vLLM and transformers load. verl's merger runs once; the result is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from vision_rl.errors import UserError
from vision_rl.models.chat_templates import check_template_files
from vision_rl.models.checks import stored_tensors
from vision_rl.run.directory import CONFIG

MERGED = "merged"
"""The folder beside `actor` that keeps the merged weights; it goes with its checkpoint."""
ADAPTER = "adapter"
"""The folder of a LoRA adapter beside merged weights."""
_PRECISION = ("fsdp_config.mixed_precision.param_dtype", "megatron.dtype")
"""Settings of the actor that say its precision, under FSDP and under Megatron."""
_STEP = re.compile(r"global_step_(\d+)")


def merged_checkpoint(path: str | Path) -> Path:
    """A folder with config.json and weights for `path`: itself, or the merged form of a training checkpoint.

    path: a Hugging Face folder, `global_step_N` (or its `actor`) of a run, or a run directory, whose newest checkpoint
    counts. Weights are merged in the precision that the actor computed in (`dtype_of`); a LoRA adapter is folded into
    them. Raises `UserError` for anything else, with the last line of the merger if that fails.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--checkpoint {path} does not exist; give a model folder, a global_step_N or a run directory")
    if (folder / "config.json").exists():
        return folder
    step = step_folder(folder)
    if step is None:
        raise UserError(
            f"--checkpoint {path} holds neither config.json nor a training checkpoint (global_step_N/actor); "
            "check the path"
        )
    target, dtype = step / MERGED, dtype_of(step)
    if not (target / "config.json").exists():
        merge(step, target, dtype)
    return target


def run_of(path: str | Path) -> Path | None:
    """The run directory that a training checkpoint belongs to; None for other folders."""
    step = step_folder(Path(path).expanduser().absolute())
    return step.parent.parent if step and step.parent.name == "checkpoints" else None


def dtype_of(step: Path) -> str:
    """The precision in which the actor of a checkpoint computed: "float32" or "bfloat16", by its run's config.yaml.

    verl keeps float32 master weights for both; a bfloat16 actor never saw more than bfloat16 of them. float32 holds a
    float16 actor's weights as they were.
    """
    config = _config(step)
    stated = [config.get(f"actor_rollout_ref.actor.{key}") for key in _PRECISION]
    precision = next((value for value in stated if value), "bfloat16")
    return "bfloat16" if precision in ("bfloat16", "bf16") else "float32"


def _config(step: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint lies in; {} if it was moved out of it."""
    config = step.parent.parent / CONFIG
    values = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else None
    return values if isinstance(values, dict) else {}


def written_dtype(folder: Path) -> str | None:
    """The precision of the weights in a folder, by the header of the first file; None if there is none.

    config.json does not tell: verl's own merger writes bfloat16 weights beside the dtype of the model it started from.
    """
    for path in sorted(folder.glob("*.safetensors")):
        stored = {tensor["dtype"] for tensor in stored_tensors(path)[1].values()}
        return "float32" if stored == {"F32"} else "bfloat16"
    return None


def step_folder(folder: Path) -> Path | None:
    """The `global_step_N` that a path means: itself, the parent of its `actor`, or the newest one of a run; or None."""
    for candidate in (folder, folder.parent):
        if _STEP.fullmatch(candidate.name) and (candidate / "actor").is_dir():
            return candidate
    for place in (folder, folder / "checkpoints"):
        steps = [
            path for path in place.glob("global_step_*") if _STEP.fullmatch(path.name) and (path / "actor").is_dir()
        ]
        if steps:
            return max(steps, key=lambda path: int(path.name.rsplit("_", 1)[1]))
    return None


def merge(step: Path, target: Path, dtype: str, *, keep_adapter: bool = False) -> None:
    """Write the merged weights of `step` to the folder `target`, which appears whole or not at all.

    dtype: "float32" or "bfloat16". A LoRA adapter is folded in; keep_adapter also leaves it in `target`/adapter. Raises
    `UserError` if the merger fails, or would write outside `target`.
    """
    actor = step / "actor"
    if not (actor / "fsdp_config.json").exists():
        raise UserError(
            f"{actor} is no FSDP checkpoint; merge it with `python -m verl.model_merger merge --backend megatron "
            f"--local_dir {actor} --target_dir DIR` and give DIR"
        )
    check_template_files(actor / "huggingface")
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "vision_rl.export.merge", str(actor), str(partial), dtype]
    # No devices: merging happens in main memory, and the GPU may be busy with training.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode or not (partial / "config.json").exists():
        shutil.rmtree(partial, ignore_errors=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and not line.startswith(" ")]
        raise UserError(
            f"verl could not merge {actor} (full disk? half a checkpoint?): {said[-1] if said else 'it was killed'}"
        )
    adapter = partial / ADAPTER
    if (partial / "lora_adapter").is_dir():
        os.rename(partial / "lora_adapter", adapter)
        complete_adapter(adapter, _lora_alpha(step))
        fold_adapter(partial, adapter, dtype)
        if not keep_adapter:
            shutil.rmtree(adapter)
    try:
        os.rename(partial, target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}); copy the checkpoint to a writable place") from error


def complete_adapter(adapter: Path, alpha: float) -> None:
    """Make an adapter that verl's merger wrote loadable: it states lora_alpha 0, and modules by their last name only.

    A last name such as `down_proj` also means the vision tower's, which the run may have left alone; here each module
    is named in full. The trainer's own copy in `actor/lora_adapter` is not used: verl gathers it layer by layer, goes on
    when that fails, and only logs the error (verl/workers/fsdp_workers.py:1058).
    """
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        names = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in file.keys()}  # noqa: SIM118
    config_file = adapter / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config |= {"lora_alpha": alpha, "target_modules": sorted(names), "task_type": "CAUSAL_LM"}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _lora_alpha(step: Path) -> float:
    """What the run trained with, from the trainer's copy of the adapter's config or from config.yaml."""
    own = step / "actor" / "lora_adapter" / "adapter_config.json"
    stated = json.loads(own.read_text(encoding="utf-8")).get("lora_alpha") if own.exists() else None
    stated = stated or _config(step).get("actor_rollout_ref.model.lora_alpha")
    if not stated:
        raise UserError(
            f"neither {own} nor the run's {CONFIG} states lora_alpha; without it the LoRA adapter cannot be merged"
        )
    return float(stated)


def fold_adapter(model_dir: Path, adapter: Path, dtype: str = "bfloat16") -> None:
    """Add a LoRA adapter to the weights in `model_dir`, in precision `dtype`.

    Raises `UserError` if the adapter's config states no lora_alpha, or if it does not fit the model.
    """
    config_file = adapter / "adapter_config.json"
    if not config_file.exists() or not json.loads(config_file.read_text()).get("lora_alpha"):
        raise UserError(f"{config_file} does not state lora_alpha; without it the LoRA adapter cannot be merged")
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(model_dir, torch_dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig.from_pretrained(str(adapter)))
    result: Any = set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))  # type: ignore[func-returns-value]
    absent = [key for key in result.missing_keys if "lora_" in key]
    if result.unexpected_keys or absent:
        raise UserError(f"{adapter} does not fit the model in {model_dir}: {(result.unexpected_keys or absent)[0]}")
    model.merge_and_unload().save_pretrained(model_dir)
