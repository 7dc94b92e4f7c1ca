"""Shared fixtures: the tiny model, its processor, and synthetic rows."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import omegaconf.base
import pytest

import vision_rl  # noqa: F401  # before any test imports Agent Lightning: without it that takes ten seconds

# A shell has Ctrl-C ignored in what it starts in the background, and everything that such a process starts has it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same 120 interpolations of verl's files in some 400 compositions: their parse trees, a third of the time, are kept.
omegaconf.base.parse = functools.cache(omegaconf.base.parse)


@pytest.fixture(scope="session")
def tiny_dir() -> Path:
    from vision_rl.tiny import checkpoint_dir

    return checkpoint_dir()


@pytest.fixture(scope="session")
def tiny_processor(tiny_dir: Path) -> Any:
    """The processor as the trainer loads it."""
    from vision_rl.models.processor import load_processor

    return load_processor(str(tiny_dir))


@pytest.fixture(scope="session")
def tiny_model(tiny_dir: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny_dir, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture(scope="session")
def vqa_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from vision_rl.data.schema import read_rows
    from vision_rl.tiny import write_tasks

    files = write_tasks(tmp_path_factory.mktemp("tasks"), "vqa", train=8, val=8, test=4)
    return read_rows(files["train"])


@pytest.fixture(scope="session")
def tiny_reference(tiny_dir: Path) -> Any:
    """Log-probabilities of responses by transformers alone, in a process that verl has not patched.

    Called with a list of (prompt ids, response ids, pictures), or with a temperature as a fourth; unpadded, one by one, the
    model's own positions.
    """
    import json
    import subprocess
    import sys

    import torch

    script = Path(__file__).with_name("reference_log_probs.py")

    def compute(asked: list[tuple[Any, ...]]) -> Any:
        asking = json.dumps([(prompt, response, [*map(str, images)], *at) for prompt, response, images, *at in asked])
        command = [sys.executable, str(script), str(tiny_dir)]
        answer = subprocess.run(command, input=asking, capture_output=True, text=True, check=True)
        return [torch.tensor(one) for one in json.loads(answer.stdout.splitlines()[-1])]

    return compute


@pytest.fixture(scope="module", autouse=True)
def verls_patches_end_with_the_module() -> Iterator[None]:
    """verl replaces `forward` in transformers' classes for good (models/transformers/monkey_patch.py); the tests of other
    modules compare with transformers as it is."""
    import sys

    yield
    for name, originals in _FORWARDS.items():
        for kind, forward in originals.items():
            getattr(sys.modules[name], kind).forward = forward


_FORWARDS: dict[str, dict[str, Any]] = {}
_PATCHED = ("VLAttention", "VLModel", "VLTextModel", "VLForConditionalGeneration")


def remember_forwards() -> None:
    """Call it before verl builds a model."""
    import importlib

    for family in ("qwen2_vl", "qwen2_5_vl"):
        name = f"transformers.models.{family}.modeling_{family}"
        module = importlib.import_module(name)
        _FORWARDS.setdefault(
            name, {kind: vars(module)[kind].forward for kind in vars(module) if kind.endswith(_PATCHED)}
        )
