"""Check a model's folder or name before anything heavy starts: processor, template, weights, and code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError, meant
from vision_rl.models.chat_templates import check_template_files
from vision_rl.models.table import TABLE

HUB_SECONDS = 10.0

CODE_KEYS = ("auto_map", "_attn_implementation_internal", "custom_pipelines")
"""Keys of a model folder's configuration that name Python code to run (CVE-2026-4372, CVE-2026-22807)."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where a vision model's folder says how pictures become its input."""


def check_model(folder: Path, *, trusted: bool = False) -> None:
    """Raise `UserError` if a model folder lacks its processor, chat template or some weights, or a hub name cannot be had.

    Also if it brings code of its own, unless that is `trusted` by name, or chat templates that must not be saved.

    The workers would say so after a minute, at length, and in their logs.
    """
    if not folder.is_dir():
        check_hub_name(folder.as_posix())
        return
    if not any((folder / name).exists() for name in PROCESSORS):
        raise UserError(
            f"--model {folder} lacks {PROCESSORS[0]}; copy it from the original model, or download that again"
        )
    for file in sorted(folder.glob("*config.json")) if not trusted else ():
        if key := asks_for_code(file):
            raise UserError(
                f"--model {folder}: {file.name} has {key}, which runs code from that folder or the hub; read that code, "
                "then set actor_rollout_ref.model.trust_remote_code=true and data.trust_remote_code=true"
            )
    check_template_files(folder)
    if not has_template(folder):
        raise UserError(
            f"--model {folder} has no chat template ({TEMPLATES[0]}, or chat_template in tokenizer_config.json), and messages "
            "need one: take the instruction-tuned model, not the base model, or copy the file from it"
        )
    if missing := missing_weights(folder):
        raise UserError(f"--model {folder} lacks {missing}; download the folder again, or what is missing")
    for file in sorted(folder.glob("*.safetensors")):
        if problem := cut_off(file):
            raise UserError(f"--model {folder}: {problem}; download the folder again")


def has_template(folder: Path) -> bool:
    """Whether a model folder has a chat template in one of the places where transformers looks."""
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    return any(
        isinstance(content := _json(folder / name), dict) and content.get("chat_template")
        for name in ("tokenizer_config.json", "processor_config.json")
    )


def missing_weights(folder: Path) -> str:
    """The files of weights that an index of the folder names and that are not there; "" if none is."""
    for index in WEIGHT_INDEXES:
        content = _json(folder / index)
        named = content.get("weight_map") if isinstance(content, dict) else None
        gone = sorted({str(name) for name in named.values() if not (folder / str(name)).exists()} if named else [])
        if named and gone:
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            return f"{gone[0]}{more} of {len(set(named.values()))} files of weights"
    there = [path for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}")]
    return "" if there else "its weights (model.safetensors, or several such files with their index)"


def _json(file: Path) -> Any:
    """The content of a JSON file; None for one that is absent or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def check_hub_name(name: str) -> None:
    """Raise `UserError` for a model that is neither in Hugging Face's cache nor on the hub.

    Offline (HF_HUB_OFFLINE) it says so at once, else after one request of `HUB_SECONDS` at most; a hub that cannot be reached
    ends the start too, since nothing of the model is here.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    here = f"--model {name} is neither a folder nor in Hugging Face's cache"
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except HFValidationError as error:
        raise UserError(f"{here}, and cannot be the name of a model on the hub; check its spelling") from error
    if constants.is_offline_mode():
        raise UserError(f"{here}, and HF_HUB_OFFLINE is set; download it first, or name a folder")
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        raise UserError(f"--model {name} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        hint = meant(name, [example for row in TABLE for example in row.examples]) or "; a private one needs HF_TOKEN"
        raise UserError(f"{here}, and the hub ({constants.ENDPOINT}) has no such model{hint}") from error
    except Exception as error:  # what a network can do: each layer has its own classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{here}, and the hub ({constants.ENDPOINT}) does not answer ({reason}); check the network, or name a folder"
        ) from error


def asks_for_code(file: Path) -> str:
    """The first of `CODE_KEYS` in a configuration file, at any depth; "" without one and for what is no JSON."""
    level: list[Any] = [_json(file)]
    while level:
        for one in level:
            if isinstance(one, dict) and (found := next((key for key in CODE_KEYS if one.get(key)), "")):
                return found
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return ""


def cut_off(file: Path) -> str:
    """What is wrong with the size of a safetensors file, by its own header; "" for a whole one."""
    size = file.stat().st_size
    try:
        start, tensors = stored_tensors(file)
        whole = start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{file.name} has no readable header"
    return "" if size == whole else f"{file.name} has {size} bytes of {whole}"


def stored_tensors(file: Path) -> tuple[int, dict[str, Any]]:
    """Of a safetensors file: the byte at which its numbers begin, and name -> {dtype, shape, data_offsets} of its tensors.

    Eight bytes of length, then a JSON header. Of what is no such file anything may be raised, or come back.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(min(length, file.stat().st_size)))
    header.pop("__metadata__", None)
    return 8 + length, header
