"""Shared fixtures: the tiny model, its processor, and synthetic rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import pytest


@pytest.fixture(scope="session")
def tiny_dir() -> Path:
    from vision_rl.tiny import checkpoint_dir

    return checkpoint_dir()


@pytest.fixture(scope="session")
def tiny_processor(tiny_dir: Path) -> Any:
    """The processor as the trainer loads it (verl, fast image processor)."""
    from verl.utils import hf_processor

    return hf_processor(str(tiny_dir), use_fast=True)


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
