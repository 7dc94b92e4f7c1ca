"""What is served and how: settings of the run that made a checkpoint, pixel limits, merged weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vision_rl.errors import UserError
from vision_rl.evaluation.targets import agent_settings, with_pixel_limits
from vision_rl.export.checkpoint import fold_adapter, merged_checkpoint, run_of
from vision_rl.models.processor import load_processor
from vision_rl.rewards.judge import shared_judge
from vision_rl.settings import AgentSettings
from vision_rl.tiny import checkpoint_dir


def settings_of(task: str = "grounding", *overrides: str, **options: Any) -> AgentSettings:
    defaults: dict[str, Any] = {"cpu": True, "model_dir": checkpoint_dir(), "trained_as": None, "transport": "file"}
    return agent_settings(task, list(overrides), **(defaults | options))


def a_run(folder: Path, config: str) -> Path:
    step = folder / "checkpoints" / "global_step_7"
    (step / "actor").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    return step


def test_settings_are_those_of_training() -> None:
    settings = settings_of()
    assert settings.family == "qwen2_5_vl" and settings.image_transport == "file"
    assert (settings.min_pixels, settings.max_pixels) == (3136, 12544)
    assert settings_of("vqa", "agent.reward=similarity").reward == "similarity"
    foreign = settings_of("vqa", model_dir=None, transport="data")
    assert foreign.family == "unit" and foreign.image_transport == "data"
    assert foreign.min_pixels is foreign.max_pixels is None


@pytest.mark.slow
def test_a_checkpoint_is_scored_as_it_was_trained(tmp_path: Path) -> None:
    config = 'task.name: "grounding"\nagent.answer_format: "click"  # override\n'
    config += 'agent.reward: "giou"  # override\nagent.max_tokens: 77\n'
    step = a_run(tmp_path / "run", config)
    for path in (step, step / "actor", tmp_path / "run"):
        trained = settings_of(trained_as=path)
        assert (trained.answer_format, trained.reward, trained.max_tokens) == ("click", "giou", 77)
    assert settings_of("grounding", "agent.reward=iou", trained_as=step).reward == "iou"
    assert settings_of("vqa", trained_as=step).reward == "vqa"
    assert run_of(step) == tmp_path / "run" and run_of(checkpoint_dir()) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.total_epochs=1"], "agent.* only"),
        (["agent.answer_fromat=click"], "answer_format"),
        (["agent.answer_format=native"], "needs agent.family"),
    ],
)
def test_bad_settings(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        settings_of("grounding", *overrides, model_dir=None)


def test_a_judge_that_nobody_named_is_said_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_BASE_URL", raising=False)
    shared_judge.cache_clear()
    with pytest.raises(UserError, match="JUDGE_BASE_URL"):
        settings_of("vqa", "agent.reward=judge", model_dir=None)


def test_pixel_limits_reach_the_served_folder() -> None:
    folder = checkpoint_dir()
    with with_pixel_limits(folder, settings_of()) as same:
        assert same == folder
    changed = settings_of("grounding", "agent.max_pixels=6272")
    with with_pixel_limits(folder, changed) as view:
        config = json.loads((view / "preprocessor_config.json").read_text())
        assert (config["max_pixels"], config["size"]["longest_edge"]) == (6272, 6272)
        assert (config["min_pixels"], config["size"]["shortest_edge"]) == (3136, 3136)
        assert {file.name for file in view.iterdir()} == {file.name for file in folder.iterdir()}
        assert (view / "model.safetensors").stat().st_size == (folder / "model.safetensors").stat().st_size
    assert not view.exists() and json.loads((folder / "preprocessor_config.json").read_text())["max_pixels"] == 12544


def test_pixel_limits_reach_a_folder_that_transformers_5_saved(tmp_path: Path) -> None:
    """A checkpoint has its image processor as a part of processor_config.json."""
    shutil.copy(checkpoint_dir() / "config.json", tmp_path)
    load_processor(str(checkpoint_dir())).save_pretrained(tmp_path)
    with with_pixel_limits(tmp_path, settings_of("grounding", "agent.max_pixels=6272")) as view:
        assert load_processor(str(view)).image_processor.size["longest_edge"] == 6272
    assert load_processor(str(tmp_path)).image_processor.size["longest_edge"] == 12544


def test_the_newest_checkpoint_of_a_run_is_taken_and_merged_once(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        (tmp_path / "checkpoints" / f"global_step_{step}" / "actor").mkdir(parents=True)
    merged = tmp_path / "checkpoints" / "global_step_10" / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "checkpoints", merged.parent, merged.parent / "actor", merged):
        assert merged_checkpoint(path) == merged


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        merged_checkpoint(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"neither config\.json nor a training checkpoint"):
        merged_checkpoint(tmp_path)
    (tmp_path / "global_step_1" / "actor").mkdir(parents=True)
    with pytest.raises(UserError, match="no FSDP checkpoint"):
        merged_checkpoint(tmp_path / "global_step_1")


def test_a_lora_adapter_is_folded_into_the_weights(tmp_path: Path) -> None:
    """The folded folder computes what base model and adapter compute together, with the trainer's own lora_alpha."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    shutil.copytree(checkpoint_dir(), tmp_path / "model")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], exclude_modules=".*visual.*")
    torch.manual_seed(0)  # before the adapter is made: its other half is drawn too
    model = get_peft_model(base, lora)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    model.save_pretrained(str(tmp_path / "adapter"))
    tokens = torch.tensor([[5, 9, 33, 70]])
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)(
            tokens
        ).logits
        fold_adapter(tmp_path / "model", tmp_path / "adapter")
        folded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)(
            tokens
        ).logits
    # bfloat16 weights on the way; the adapter's own effect is many times larger.
    assert (folded - expected).abs().max() < 0.1 * (plain - expected).abs().max()
    assert not any("lora" in name for name in load_file(tmp_path / "model" / "model.safetensors"))

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 0}))
    with pytest.raises(UserError, match="lora_alpha"):
        fold_adapter(tmp_path / "model", tmp_path / "adapter")
