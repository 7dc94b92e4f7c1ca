"""What verl lacks and this package adds: a CPU platform, a reference model there, banned tokens, frozen towers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from verl.utils.flops_counter import FlopsCounter
from verl.utils.torch_functional import logprobs_from_logits

from scripts.tiny_models.families import build
from tests.actor import actor, log_probs
from tests.trainers import SEPARATE, new_trainer
from vision_rl.actor.engine import BLOCK, VisionEngine, freeze_vision_tower, log_probs_by_block
from vision_rl.actor.model_patches import sharded_layers
from vision_rl.actor.patches import patch_verl
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.settings import AppSettings
from vision_rl.training.rows import RowBuilder
from vision_rl.training.samples import Sample

TEXT = Sample([5, 6, 7, 8], [9, 10, 11], [1, 1, 1], [-1.0] * 3, [], 1.0, "g", "r", 0)


@pytest.fixture
def rows(tiny_processor: Any, tmp_path: Path) -> list[dict[str, Any]]:
    builder = RowBuilder(tiny_processor, Pixels(tiny_processor, tmp_path), max_prompt_length=9, max_response_length=9)
    return [builder.row(TEXT)]  # type: ignore[list-item]


@pytest.mark.parametrize(("plugins", "device"), [("auto", "cpu"), ("none", "cuda")])
@pytest.mark.slow
def test_verl_knows_the_cpu_by_the_plug_in_alone(plugins: str, device: str) -> None:
    """Without it verl takes a machine without an accelerator for one of NVIDIA's."""
    code = "import verl; from verl.utils.device import get_device_name; print(get_device_name())"
    environment = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins, "CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == device


def test_a_reference_model_needs_no_pinned_memory(rows: list[dict[str, Any]]) -> None:
    """FSDP2 pins the memory of a model without updates; without the engine's line this raises on a CPU."""
    assert log_probs(actor("ref"), rows, None).shape == (1, 3)


@pytest.mark.parametrize("family", ["LLaVA-NeXT (1.6)", "GLM-4.1V"])
def test_no_embedding_of_a_tower_is_sharded_by_itself(family: str, tmp_path: Path) -> None:
    """verl would: LLaVA-NeXT's lies in a layer that is sharded before it, and GLM-4V's is read without being called."""
    model = AutoModelForImageTextToText.from_pretrained(build(family, tmp_path / "model"))
    names = {id(part): name for name, part in model.named_modules()}
    embeddings = [
        names[id(part)] for part in sharded_layers(model, model._no_split_modules) if "mbed" in names[id(part)]
    ]
    assert any(name.endswith("embed_tokens") for name in embeddings)
    assert not any(name.endswith("position_embedding") for name in embeddings)


def test_the_work_of_a_glm_is_counted(tmp_path: Path) -> None:
    """verl looks for its sizes in the wrong part of the configuration, and ends the run after the first update."""
    patch_verl()
    config = AutoConfig.from_pretrained(build("GLM-4.1V", tmp_path / "model"))
    flops, _ = FlopsCounter(config).estimate_flops([100, 50], 1.0)
    layers = config.text_config.num_hidden_layers * 4 * config.text_config.hidden_size**2
    assert flops * 1e12 > 6 * 150 * layers / 10


def test_banned_tokens_have_no_probability_in_the_actor(rows: list[dict[str, Any]]) -> None:
    """verl's server never samples them; unless the actor takes them out too, every other token is too improbable there."""
    worker = actor()
    free = log_probs(worker, rows, None)
    worker.engine.banned_tokens = torch.arange(100, 450)  # a third and more of the probability of each place
    banned = log_probs(worker, rows, None)
    assert (banned > free).all()
    gain = (banned - free)[0]
    probabilities = -torch.expm1(-gain)  # of the banned: log p' - log p = -log(1 - p(banned))
    assert ((probabilities > 0) & (probabilities < 1)).all()
    worker.engine.banned_tokens = torch.tensor([int(rows[0]["responses"][1])])
    assert log_probs(worker, rows, None)[0, 1] < -5e3


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0])
def test_banned_tokens_leave_the_entropy_a_number(temperature: float, rows: list[dict[str, Any]]) -> None:
    """It is computed after the division by the temperature, and an entropy term of NaN is a loss of NaN."""
    worker = actor()
    worker.engine.banned_tokens = torch.arange(100, 450)  # a third and more of the probability of each place
    entropy = log_probs(worker, rows, None, temperature=temperature, what="entropy")
    assert entropy.isfinite().all() and (entropy >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, BLOCK, BLOCK + 7])
def test_log_probabilities_by_the_block_are_verls(tokens: int, dtype: torch.dtype) -> None:
    """And their gradients. verl's own cannot do without a token."""
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, 50, generator=generator).to(dtype)
    labels = torch.randint(0, 50, (tokens,), generator=generator)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = log_probs_by_block(ours, labels)
    assert found.shape == (tokens,)
    if tokens:
        expected = logprobs_from_logits(theirs, labels)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_actor_does_not_go_token_by_token(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's own function asked once for each of them, prompt and padding included: a quarter of a step's update."""
    asked: list[torch.Size] = []
    logsumexp = torch.logsumexp

    def counted(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(values.shape)
        return logsumexp(values, *args, **kwargs)

    worker = actor()
    monkeypatch.setattr(torch, "logsumexp", counted)
    log_probs(worker, rows * 4, None)
    assert asked
    assert not [shape for shape in asked if len(shape) == 1]


def test_adam_takes_all_weights_in_one_call() -> None:
    """torch's default goes over FSDP2's weights one by one on a CPU, and over the sharding rules of each."""
    assert actor().engine.optimizer.param_groups[0]["fused"]


def test_the_separate_trainer_can_tell_that_it_starts() -> None:
    """verl 0.9.1 hands `flush` to logging there, which is a TypeError where the line is logged."""
    from vision_rl.training import separate

    separate.quiet_verl()
    logger = logging.getLogger(separate.PPOTrainerSeparateAsync.__module__)
    logger.info("said once it has started", flush=True)  # type: ignore[call-arg]


def test_a_frozen_tower_stays_as_it_is() -> None:
    VisionEngine.freezes_tower = True
    try:
        module = actor().engine.module
    finally:
        VisionEngine.freezes_tower = False
    moving = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert moving and not any("visual" in name for name in moving)


def test_a_model_without_a_tower_cannot_freeze_it() -> None:
    with pytest.raises(UserError, match="has no part named visual"):
        freeze_vision_tower(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.slow
def test_no_load_balancer_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's is an actor that imports vLLM and verl for a question that nobody asks."""
    import asyncio

    import ray
    from verl.workers.rollout.llm_server import LLMServerManager

    from vision_rl.serving.vllm_server import register

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("an actor is started, or asked")

    register()
    trainer = new_trainer(tmp_path, AppSettings(), *SEPARATE)
    manager = LLMServerManager(trainer.config)
    manager.server_addresses, manager.server_handles = ["127.0.0.1:1"], [None]
    monkeypatch.setattr(ray, "remote", refused)
    monkeypatch.setattr(ray, "get", refused)
    asyncio.run(manager._init_global_load_balancer())
    assert manager.get_client()._load_balancer is None
    trainer._enable_hybrid_replicas, trainer.standalone_server_manager = True, manager
    trainer.llm_server_manager = manager
    trainer.add_replicas_to_balancer()
    trainer.remove_replicas_from_balancer()
    assert trainer.clear_sticky_cache() == {}


@pytest.mark.parametrize(("model_type", "level"), [("gemma4", 1), ("gemma4_unified", 1), ("qwen3_vl", 2)])
def test_a_server_that_a_sync_does_not_restore_keeps_its_weights_while_it_sleeps(model_type: str, level: int) -> None:
    from types import SimpleNamespace

    from vision_rl.serving.vllm_server import VisionHttpServer

    server = VisionHttpServer()
    server.config = SimpleNamespace(mtp=None)
    server.model_config = SimpleNamespace(
        hf_config=SimpleNamespace(model_type=model_type), lora_rank=0, lora={"rank": 0, "merge": True}
    )
    assert server._resolve_sleep_level() == level


def test_the_model_server_may_fetch_nothing() -> None:
    """vLLM takes an empty list for "any domain"; it is asked with what verl hands to it for us."""
    from types import SimpleNamespace

    from vllm.multimodal.media import MediaConnector

    from vision_rl.serving.vllm_server import VisionHttpServer

    server = VisionHttpServer()
    server.config = SimpleNamespace(tensor_model_parallel_size=1)
    arguments: dict[str, Any] = {}
    server._preprocess_engine_kwargs(arguments)
    connector = MediaConnector(allowed_media_domains=arguments["allowed_media_domains"])
    for address in ("http://127.0.0.1:9/a.png", "https://example.org/a.png", "http://[::1]:9/a.png"):
        with pytest.raises(ValueError, match="domain"):
            connector.fetch_image(address)
