"""The memory estimate: sizes against published counts and peft, the terms against their formulas, and the verdicts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vision_rl.config.resolve import presets, resolve
from vision_rl.errors import UserError
from vision_rl.models.sizes import HUB, shape_of
from vision_rl.models.table import model_info
from vision_rl.preflight.memory_plan import GB, Plan, plan, render_plan

TINY = Path(__file__).resolve().parents[1] / "vision_rl" / "tiny" / "checkpoint"
FSDP = "actor_rollout_ref.actor.fsdp_config"
# Billions of parameters as the hub's pages of the checkpoints state them.
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33.5,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73.4,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
}


def estimate(
    preset: str, *overrides: str, model: str | None = None, gpu_gb: float | None = None, **kwargs: Any
) -> Plan:
    return plan(resolve(preset, overrides, task="grounding", model=model, **kwargs), gpu_gb)


@pytest.mark.parametrize("name", HUB)
def test_carried_sizes_are_the_published_ones(name: str) -> None:
    assert float(f"{shape_of(model_info(name)).parameters / 1e9:.3g}") == PUBLISHED[name]


def test_sizes_of_a_folder_are_those_of_its_weights() -> None:
    from safetensors import safe_open

    with safe_open(TINY / "model.safetensors", "pt") as weights:
        counts = {name: weights.get_tensor(name).numel() for name in weights.keys()}  # noqa: SIM118
    shape = shape_of(model_info(TINY))
    assert shape.parameters == sum(counts.values())
    assert shape.vision_parameters == sum(count for name, count in counts.items() if "visual" in name)


def test_adapter_parameters_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(TINY)
    adapters = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", exclude_modules=".*visual.*"))
    trained = sum(p.numel() for p in adapters.parameters() if p.requires_grad)
    assert shape_of(model_info(TINY)).lora_parameters(4) == trained


def test_sizes_of_an_unknown_hub_model_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"--plan knows no sizes for llava-hf/llava-1\.5-7b-hf: download it"):
        estimate("8x80gb", model="llava-hf/llava-1.5-7b-hf")


@pytest.mark.parametrize("preset", presets())
def test_every_preset_fits_what_it_is_named_for(preset: str) -> None:
    made = estimate(preset, model=str(TINY) if preset == "cpu" else None)
    assert made.advice == () and max(sum(made.update.values()), sum(made.rollout.values())) < made.gpu_gb
    assert render_plan(made).endswith("fits")


@pytest.mark.parametrize("preset", ["gpu_24gb", "2x24gb", "gpu_40gb"])
def test_without_host_memory_full_training_does_not_fit_small_gpus(preset: str) -> None:
    made = estimate(preset, f"{FSDP}.offload_policy=false", model="Qwen/Qwen2.5-VL-3B-Instruct")
    assert not made.fits and "offload_policy=true" in render_plan(made)


def test_states_cost_sixteen_bytes_a_parameter_shared_by_the_gpus() -> None:
    made = estimate("8x80gb")
    states = sum(made.update[name] for name in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(16 * made.shape.parameters / 8 / GB)


def test_freezing_and_adapters_shrink_gradients_and_optimizer_only() -> None:
    full, frozen = estimate("8x80gb"), estimate("8x80gb", variants=["freeze_vision"])
    assert frozen.update["weights"] == full.update["weights"]
    trained = full.shape.parameters - full.shape.vision_parameters
    assert frozen.update["optimizer"] == pytest.approx(8 * trained / 8 / GB)
    lora = estimate("lora", gpu_gb=80)
    assert lora.update["optimizer"] == pytest.approx(8 * lora.shape.lora_parameters(64) / GB)


def test_offloading_moves_states_to_the_host() -> None:
    away, here = estimate("gpu_40gb", "app.gpu_memory_gb=80"), estimate("gpu_40gb", f"{FSDP}.offload_policy=false")
    assert away.update["weights"] == away.update["optimizer"] == 0
    assert away.host_gb - here.host_gb == pytest.approx(16 * away.shape.parameters / GB)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", "logits"),
        ("data.max_prompt_length=4096", "activations"),
        ("agent.max_pixels=2007040", "vision activations"),
    ],
)
def test_terms_grow_with_their_settings(override: str, part: str) -> None:
    assert estimate("8x80gb", override).update[part] > estimate("8x80gb").update[part]


def test_the_cache_is_what_the_share_leaves_and_costs_bytes_per_token() -> None:
    small, large = estimate("8x80gb"), estimate("8x80gb", "actor_rollout_ref.rollout.gpu_memory_utilization=0.7")
    shape = small.shape  # Qwen2-VL-7B: 28 layers, keys and values of 4 heads of 128, two bytes
    assert shape.layers * shape.kv_width * 2 == 57_344
    assert large.kv_tokens - small.kv_tokens == pytest.approx(0.1 * 80 * GB / 57_344, abs=1)


@pytest.mark.parametrize(
    ("model", "low", "high"), [("Qwen/Qwen2.5-VL-7B-Instruct", 15.0, 16.0), ("Qwen/Qwen2.5-VL-3B-Instruct", 6.9, 7.1)]
)
def test_weights_in_bfloat16_are_the_size_of_the_published_files(model: str, low: float, high: float) -> None:
    assert low < estimate("8x80gb", model=model).rollout["vLLM weights"] < high


def test_a_cpu_plan_speaks_of_main_memory_and_of_vllms_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    small = estimate("cpu", model=str(TINY))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    large = estimate("cpu", model=str(TINY))
    assert large.kv_tokens == pytest.approx(3 * small.kv_tokens, abs=3)
    text = render_plan(small)
    assert "million parameters" in text and "per GPU" not in text and "8 GB of main memory" in text


@pytest.mark.e2e
@pytest.mark.long
def test_the_update_is_what_verls_actor_takes() -> None:
    """On a CPU, in float32."""
    done = subprocess.run(
        [sys.executable, "benchmarks/plan_check.py", "--size", "small", "--micro", "2"],
        cwd=TINY.parents[2],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found = re.search(r"estimated ([\d.]+) GB, measured ([\d.]+) GB", done.stdout)
    assert found is not None
    assert 0.8 < float(found[1]) / float(found[2]) < 1.4


def test_a_model_that_leaves_no_cache_is_refused() -> None:
    made = estimate("gpu_24gb", model="Qwen/Qwen2.5-VL-7B-Instruct")
    assert not made.fits and made.kv_tokens == 0
    assert any("gpu_memory_utilization or tensor_model_parallel_size" in item for item in made.advice)


def test_a_vllm_that_never_sleeps_counts_in_the_update_too() -> None:
    awake = estimate("8x80gb", "actor_rollout_ref.rollout.free_cache_engine=false")
    assert awake.update["vLLM, never asleep"] == pytest.approx(0.6 * 80, rel=0.01)
