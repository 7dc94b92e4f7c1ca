"""A checkpoint chooses the names of its chat templates; none of them may become a path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoProcessor

from tests.actor import actor
from vision_rl.errors import UserError
from vision_rl.export.checkpoint import merge
from vision_rl.models.chat_templates import check_template_files, check_template_names
from vision_rl.models.checks import check_model
from vision_rl.models.processor import load_processor

HARMLESS = "../../harmless"
NAMES = [
    ("default", True),
    ("tool_use", True),
    ("rag v1.2", True),
    ("..dots..", True),
    (HARMLESS, False),
    ("/harmless", False),
    ("below/harmless", False),
    ("..", False),
    ("..\\harmless", False),
    ("nul\0", False),
]


def named(model: Path, target: Path, name: str) -> Path:
    """A copy of `model` whose tokenizer has a chat template under `name`, as older checkpoints write them: in a list."""
    shutil.copytree(model, target)
    text = (target / "chat_template.jinja").read_text(encoding="utf-8")
    (target / "chat_template.jinja").unlink()
    config = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = [{"name": "default", "template": text}, {"name": name, "template": "harmless"}]
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


@pytest.mark.parametrize(("name", "allowed"), NAMES)
@pytest.mark.parametrize("form", [lambda name: {name: "text"}, lambda name: [{"name": name, "template": "text"}]])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json", "chat_template.json"])
def test_the_names_in_a_model_folder(
    tmp_path: Path, file: str, form: Callable[[str], Any], name: str, allowed: bool
) -> None:
    (tmp_path / file).write_text(json.dumps({"chat_template": form(name)}), encoding="utf-8")
    held = [
        SimpleNamespace(chat_template=form(name)),
        SimpleNamespace(tokenizer=SimpleNamespace(chat_template=form(name))),
    ]
    if allowed:
        check_template_files(tmp_path)
        for saved in held:
            check_template_names(saved, "model")
        return
    with pytest.raises(UserError, match=rf"{file}: the chat template .* is no plain file name.*CVE-2026-9856"):
        check_template_files(tmp_path)
    for saved in held:
        with pytest.raises(UserError, match="model: the chat template"):
            check_template_names(saved, "model")


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_template": "a/b"}', '{"chat_template": [1, {"template": ""}]}'])
def test_files_without_names_are_left_to_their_readers(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    check_template_files(tmp_path)


def test_a_template_that_would_leave_its_folder_is_never_saved(tmp_path: Path, tiny_dir: Path) -> None:
    """Not by a run that trains the folder, not with the tokenizer of another folder, not by a merge."""
    model = named(tiny_dir, tmp_path / "model", HARMLESS)
    for refuse in (check_model, lambda folder: load_processor(str(folder))):
        with pytest.raises(UserError, match=r"'\.\./\.\./harmless' is no plain file name"):
            refuse(model)

    worker = actor("actor", None, f"actor_rollout_ref.model.tokenizer_path={model}")
    checkpoint = tmp_path / "run" / "checkpoints" / "global_step_1"
    with pytest.raises(UserError, match=r"model: the chat template '\.\./\.\./harmless'"):
        worker.engine.save_checkpoint(str(checkpoint / "actor"))

    shutil.copytree(model, checkpoint / "actor" / "huggingface")
    (checkpoint / "actor" / "fsdp_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"huggingface/tokenizer_config.json: the chat template '\.\./\.\./harmless'"):
        merge(checkpoint, checkpoint / "merged", "float32")
    assert not list(tmp_path.rglob("harmless.jinja"))


def test_transformers_itself_does_not_write_it_either(tmp_path: Path, tiny_dir: Path) -> None:
    """CVE-2026-9856 is closed by the pin; what is here comes earlier, and says which file is meant."""
    processor = AutoProcessor.from_pretrained(named(tiny_dir, tmp_path / "model", HARMLESS))
    with pytest.raises(ValueError, match="Invalid chat template name"):
        processor.save_pretrained(tmp_path / "run" / "saved")
    assert not list(tmp_path.rglob("harmless.jinja"))
