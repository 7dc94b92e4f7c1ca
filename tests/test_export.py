"""Export: which checkpoint, in which precision, whole or not at all; and that transformers, peft and vLLM load it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from vision_rl.config.resolve import render_resolved, resolve
from vision_rl.errors import UserError
from vision_rl.export.__main__ import choose, export, step_taken
from vision_rl.export.checkpoint import dtype_of, written_dtype
from vision_rl.export.merge import main as merge_in_process
from vision_rl.export.model_card import model_card
from vision_rl.files import umask
from vision_rl.models.processor import load_processor
from vision_rl.run.log import RunLog
from vision_rl.run.reader import read_run

ROOT = Path(__file__).resolve().parents[1]
TOKENS = torch.tensor([[5, 9, 33, 70, 12]])


def a_run(folder: Path, *steps: int, best: int | None = None, settings: dict[str, Any] | None = None) -> Path:
    """A run directory with empty checkpoints, metrics of each step, and settings."""
    config = {
        "actor_rollout_ref.model.path": "models/tiny",
        "actor_rollout_ref.actor.fsdp_config.dtype": "float32",
        "agent.reward": "iou",
        **{"task.name": "grounding", "task.truth": "boxes", "task.metric": "iou"},
        "trainer.total_training_steps": 40,
    }
    folder.mkdir(parents=True)
    lines = [f"{key}: {json.dumps(value)}  # preset" for key, value in {**config, **(settings or {})}.items()]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    for step in steps:
        (folder / "checkpoints" / f"global_step_{step}" / "actor").mkdir(parents=True)
    if best is not None:
        record = {"step": best, "metric": "val/reward", "value": 0.5, "since": 0}
        (folder / "checkpoints" / "best.json").write_text(json.dumps(record))
    log = RunLog(folder)
    log.metrics(0, {"val/reward": 0.1, "val/iou": 0.2, "val/rollouts": 60})
    for step in range(1, 31):
        log.metrics(step, {"train/reward": 0.01 * step})
    log.metrics(30, {"val/reward": 0.4, "val/iou": 0.61, "val/rollouts": 60})
    return folder


@pytest.mark.parametrize(
    ("step", "best", "chosen"),
    [("best", 10, 10), ("best", None, 30), ("best", 5, 30), ("last", 10, 30), ("20", 10, 20)],
)
def test_the_checkpoint_that_is_meant(tmp_path: Path, step: str, best: int | None, chosen: int) -> None:
    run = a_run(tmp_path / "run", 10, 20, 30, best=best)
    assert choose(run, step).name == f"global_step_{chosen}"


def test_a_named_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 10, 20, best=20)
    folder = run / "checkpoints" / "global_step_10"
    assert choose(folder, "best") == choose(folder / "actor", "best") == folder


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("nowhere", "best", "does not exist"),
        ("run", "7", "holds no global_step_7; it holds global_step_10, global_step_20"),
        ("run", "newest", "--step newest is not best, last or a number"),
        ("empty", "best", "holds no checkpoint"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, name: str, step: str, words: str) -> None:
    a_run(tmp_path / "run", 10, 20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        choose(tmp_path / name, step)


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(UserError, match="--overwrite"):
        export(a_run(tmp_path / "run", 1), tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


@pytest.mark.parametrize("output", ["run", "project"])
def test_overwrite_replaces_an_exported_model_only(tmp_path: Path, output: str) -> None:
    """A mistyped -o, such as the run itself, must not cost a folder."""
    run = a_run(tmp_path / "run", 1)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("x")
    with pytest.raises(UserError, match=f"{output} is no exported model"):
        export(run, tmp_path / output, overwrite=True)
    assert (run / "checkpoints" / "global_step_1").is_dir() and (tmp_path / "project" / "README.md").exists()


@pytest.mark.parametrize(
    ("step", "best", "words"),
    [
        ("best", 20, ", global_step_20"),
        ("best", 0, ", global_step_20 (the best validation was at step 0, of which there is no checkpoint)"),
        ("best", None, ", global_step_20"),
        ("last", 0, ", global_step_20"),
        ("10", 20, ", global_step_10"),
    ],
)
def test_the_command_tells_which_step_it_took(tmp_path: Path, step: str, best: int | None, words: str) -> None:
    run = a_run(tmp_path / "run", 10, 20, best=best)
    assert step_taken(run, step) == words
    assert step_taken(run / "checkpoints" / "global_step_10", step) == ", global_step_10"


@pytest.mark.parametrize("content", ["{", ""])
def test_a_damaged_record_of_the_best_is_one_sentence(tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path / "run", 10)
    (run / "checkpoints" / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json is damaged .*; delete it"):
        choose(run, "best")
    assert choose(run, "last").name == "global_step_10"


@pytest.mark.slow
def test_half_a_checkpoint_is_one_sentence(tmp_path: Path, tiny_dir: Path) -> None:
    run = a_run(tmp_path / "run", 1)
    actor = run / "checkpoints" / "global_step_1" / "actor"
    tiny_actor(actor, tiny_dir, {})
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"could not merge .*half a checkpoint") as caught:
        export(run, tmp_path / "out")
    assert "\n" not in str(caught.value) and "Error: " in str(caught.value)


def test_a_checkpoint_that_cannot_be_merged_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no FSDP checkpoint"):
        export(a_run(tmp_path / "run", 1), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("mixed_precision", "dtype"), [(None, "bfloat16"), ("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float32")]
)
def test_the_actors_precision_is_kept(tmp_path: Path, mixed_precision: str | None, dtype: str) -> None:
    settings = {"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": mixed_precision}
    run = a_run(tmp_path / "run", 1, settings=settings)
    assert dtype_of(run / "checkpoints" / "global_step_1") == dtype
    moved = shutil.move(run / "checkpoints" / "global_step_1", tmp_path / "global_step_1")
    assert dtype_of(Path(moved)) == "bfloat16"


@pytest.mark.parametrize(
    ("preset", "dtype"),
    [("cpu", "float32"), ("gpu_24gb", "bfloat16"), ("8x80gb", "bfloat16"), ("megatron", "bfloat16")],
)
def test_a_presets_precision_is_read_from_its_run(tmp_path: Path, tiny_dir: Path, preset: str, dtype: str) -> None:
    run = a_run(tmp_path / "run", 1)
    (run / "config.yaml").write_text(render_resolved(resolve(preset, task="vqa", model=tiny_dir)))
    assert dtype_of(run / "checkpoints" / "global_step_1") == dtype


def tiny_actor(actor: Path, tiny_dir: Path, state: dict[str, torch.Tensor]) -> None:
    """An actor folder as verl's FSDP checkpoint manager writes it for one rank, with plain tensors; its processor is saved
    by transformers 5, in one file, where the original had the files of transformers 4."""
    actor.mkdir(parents=True, exist_ok=True)
    torch.save(state, actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    (actor / "huggingface").mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(tiny_dir / name, actor / "huggingface")
    load_processor(str(tiny_dir)).save_pretrained(actor / "huggingface")
    assert not (actor / "huggingface" / "preprocessor_config.json").exists()


def perturbed(model: Any) -> dict[str, torch.Tensor]:
    """The state of a model after a small step: values that bfloat16 cannot hold."""
    torch.manual_seed(0)
    return {name: weights + 1e-4 * torch.randn_like(weights) for name, weights in model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_written_in_the_asked_precision(
    tmp_path: Path, tiny_dir: Path, tiny_model: Any, dtype: str
) -> None:
    from transformers import AutoModelForImageTextToText

    state = perturbed(tiny_model)
    tiny_actor(tmp_path / "actor", tiny_dir, dict(state))
    merge_in_process(str(tmp_path / "actor"), str(tmp_path / "out"), dtype)
    assert written_dtype(tmp_path / "out") == dtype
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(loaded.dtype) == f"torch.{dtype}"
    worst = max((loaded.state_dict()[name].float() - weights).abs().max().item() for name, weights in state.items())
    assert (worst == 0.0) is (dtype == "float32")
    assert worst < 0.02
    assert written_dtype(tmp_path) is None


def test_the_card_tells_figures_settings_and_alarms_and_no_path(tmp_path: Path) -> None:
    run = read_run(
        a_run(
            tmp_path / "run",
            30,
            settings={"actor_rollout_ref.rollout.n": 8, "actor_rollout_ref.model.path": str(tmp_path)},
        )
    )
    card = model_card(run, 30, "float32", adapter=False)
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "image-text-to-text" and "base_model" not in front
    assert "| iou | 0.200 | 0.610 |" in card and "Rows in the sample: 60." in card
    assert "over the last 5 steps: 0.280" in card
    assert "| rollouts per prompt | 8 |" in card and "step 30 of 40" in card
    assert str(tmp_path) not in card and "adapter" not in card.replace("adapters", "")
    early = model_card(run, 10, "float32", adapter=True)
    assert "| iou | 0.200 |" in early and "0.610" not in early and "peft.PeftModel" in early


def test_the_card_names_a_base_model_of_the_hub(tmp_path: Path) -> None:
    run = read_run(a_run(tmp_path / "run", 1, settings={"actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-3B-Instruct"}))
    assert (
        yaml.safe_load(model_card(run, 1, "bfloat16", adapter=False).split("---")[1])["base_model"]
        == "Qwen/Qwen2.5-VL-3B-Instruct"
    )


def test_a_checkpoint_that_was_moved_has_a_card_without_figures() -> None:
    card = model_card(None, 5, "bfloat16", adapter=False)
    assert "step 5" in card and "Figures" not in card


# On the real tools


def sharded(rank: int, folder: str, tiny_dir: str, port: int) -> None:
    """Save a model as two ranks of FSDP2 do."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForImageTextToText

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = AutoModelForImageTextToText.from_pretrained(tiny_dir, dtype=torch.float32)
    model.load_state_dict(perturbed(model))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",)))
    torch.save(model.state_dict(), Path(folder) / f"model_world_size_2_rank_{rank}.pt")
    dist.destroy_process_group()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.e2e
@pytest.mark.long
def test_a_sharded_checkpoint_is_served_by_vllm(tmp_path: Path, tiny_dir: Path, tiny_model: Any) -> None:
    """Two ranks, the command line, then the folder in transformers (exact) and in vLLM (an answer)."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vision_rl.platform.parent_death import child
    from vision_rl.rollout.addresses import free_port

    run = a_run(tmp_path / "run", 30)
    actor = run / "checkpoints" / "global_step_30" / "actor"
    tiny_actor(actor, tiny_dir, {})
    (actor / "model_world_size_1_rank_0.pt").unlink()
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 2}))
    torch.multiprocessing.spawn(sharded, (str(actor), str(tiny_dir), free_port()), nprocs=2)
    command = [sys.executable, "-m", "vision_rl.export", str(run), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    for name, weights in perturbed(tiny_model).items():
        torch.testing.assert_close(loaded.state_dict()[name], weights, rtol=0, atol=0)
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template
    assert "step 30 of 40" in (tmp_path / "out" / "README.md").read_text()
    port = free_port()
    [command_of_card] = re.findall(r"```bash\n(.*)\n```", (tmp_path / "out" / "README.md").read_text())
    shell = command_of_card.replace("PATH_OF_THIS_FOLDER", str(tmp_path / "out")) + f" --port {port}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with child(["bash", "-c", shell], env={**os.environ, "PATH": path}) as server:
        url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + 300
        while server.poll() is None and not answers(f"{url}/models") and time.monotonic() < end:
            time.sleep(0.5)
        assert server.poll() is None, "the card's own command serves the folder"
        body = {
            "model": str(tmp_path / "out"),
            "messages": [{"role": "user", "content": "Which shape?"}],
            "max_tokens": 4,
        }
        reply = httpx.post(f"{url}/chat/completions", json=body, timeout=120, trust_env=False).json()
    assert reply["usage"]["completion_tokens"] >= 1


@pytest.mark.e2e
@pytest.mark.long
def test_a_lora_checkpoint_is_exported_both_ways(tmp_path: Path, tiny_dir: Path) -> None:
    """Merged weights compute what base and adapter compute; the adapter alone loads on the base model."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(tiny_dir, dtype=torch.float32)
    with torch.no_grad():
        plain = base(TOKENS).logits
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], exclude_modules=".*visual.*")
    model = get_peft_model(base, config)
    torch.manual_seed(0)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
    run = a_run(tmp_path / "run", 30, settings={"actor_rollout_ref.model.lora_alpha": 16})
    actor = run / "checkpoints" / "global_step_30" / "actor"
    tiny_actor(actor, tiny_dir, dict(model.state_dict()))
    (actor / "lora_adapter").mkdir()  # empty, as verl leaves it when gathering the adapter fails

    out = export(run, tmp_path / "out")
    with torch.no_grad():
        merged = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")(TOKENS).logits
        fresh = AutoModelForImageTextToText.from_pretrained(tiny_dir, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(fresh, str(out / "adapter"))(input_ids=TOKENS).logits
    assert (plain - expected).abs().max() > 0.01
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-5)
    assert "adapter/" in (out / "README.md").read_text()
    mask = umask()
    modes = {path.relative_to(out).as_posix(): path.stat().st_mode & 0o777 for path in out.rglob("*")}
    assert {"model.safetensors", "adapter/adapter_model.safetensors"} <= modes.keys()
    expected_mode = {True: 0o777 & ~mask, False: 0o666 & ~mask}
    assert {name: mode for name, mode in modes.items() if mode != expected_mode[(out / name).is_dir()]} == {}, (
        "safetensors writes 0600: a server under another account could not read them"
    )
    assert str(tmp_path) not in (out / "adapter" / "adapter_config.json").read_text()
