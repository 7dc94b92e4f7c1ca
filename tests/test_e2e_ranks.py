"""Two FSDP ranks with a model server each, and two nodes of a Ray cluster, on one machine without a GPU.

What several GPUs do to shards, batches and weights; the preset of a task is `cpu`, all else is as on GPUs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from scripts.tiny_models.families import build
from tests.test_e2e_training import ROOT, metrics_of, run
from vision_rl.agent.messages import image_url
from vision_rl.errors import UserError
from vision_rl.export.checkpoint import merged_checkpoint
from vision_rl.models.processor import load_processor
from vision_rl.platform.environment import run_environment
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.algorithm import check_shared
from vision_rl.training.samples import Sample

ACTOR = "actor_rollout_ref.actor"
# Eighteen rollouts a step, nine for each of two ranks, in micro-batches of three.
ODD = [
    "--task", "vqa", "trainer.val_before_train=false", "trainer.test_freq=-1", "data.train_batch_size=6",
    "actor_rollout_ref.rollout.n=3", f"{ACTOR}.ppo_mini_batch_size=6", f"{ACTOR}.ppo_micro_batch_size_per_gpu=3",
    f"{ACTOR}.entropy_coeff=0.01",
]  # fmt: skip
TWO_RANKS = [*ODD, "trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2"]
LORA = [
    "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.exclude_modules='.*visual.*'", "actor_rollout_ref.rollout.load_format=safetensors",
    "actor_rollout_ref.rollout.layered_summon=true", f"{ACTOR}.optim.lr=0.01",
]  # fmt: skip

pytestmark = pytest.mark.e2e


def check(run_dir: Path, steps: int) -> None:
    lines = metrics_of(run_dir)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        assert line["train/rollouts_failed"] == 0 and line["actor/grad_norm"] > 0
        assert line["mismatch/logprob_max"] <= 1e-4  # both servers have the weights of the step before


def test_two_ranks_train_with_a_reference_model(tmp_path: Path) -> None:
    """As the GPU presets do: a KL term, FSDP2's offload policy, and activations that are computed again for the gradient."""
    memory = [
        f"{ACTOR}.fsdp_config.offload_policy=true", "actor_rollout_ref.ref.fsdp_config.param_offload=true",
        "actor_rollout_ref.model.enable_gradient_checkpointing=true",
    ]  # fmt: skip
    changes = ["--variant", "kl_low_var", f"{ACTOR}.optim.lr=1e-3", *memory]
    run(tmp_path / "run", *TWO_RANKS, "--max-steps", "3", *changes)
    check(tmp_path / "run", 3)
    distance = [line["train/kl"] for line in metrics_of(tmp_path / "run")]
    assert distance[0] == 0 and distance[1] > 0.01
    shards = (tmp_path / "run" / "checkpoints" / "global_step_3" / "actor").glob("model_world_size_2_rank_*.pt")
    assert len(list(shards)) == 2
    before, after = (
        load_file(Path(path) / "model.safetensors") for path in (checkpoint_dir(), merged_checkpoint(tmp_path / "run"))
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.long
def test_two_ranks_resume(tmp_path: Path) -> None:
    offload = [f"{ACTOR}.fsdp_config.param_offload=true", f"{ACTOR}.fsdp_config.optimizer_offload=true"]
    for more in (["--max-steps", "2"], ["--max-steps", "4", "--resume"]):
        run(tmp_path / "run", *TWO_RANKS, *offload, *more)
    check(tmp_path / "run", 4)


@pytest.mark.long
def test_two_ranks_sync_an_adapter_layer_by_layer(tmp_path: Path) -> None:
    """As preset lora does: without `layered_summon`, vLLM would drop the base model in its sleep."""
    run(tmp_path / "run", *TWO_RANKS, *LORA, "--max-steps", "3")
    check(tmp_path / "run", 3)


@pytest.mark.long
def test_two_nodes_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As preset multi_node does, with a cluster that was started in another folder; each run gets its own workers' logs."""
    monkeypatch.chdir(tmp_path)
    node = {"num_cpus": 8, "num_gpus": 1, "object_store_memory": 300_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        monkeypatch.chdir(ROOT)
        ray.init(address=cluster.address, log_to_driver=False)
        check_shared(tmp_path)
        with pytest.raises(UserError, match=r"node .* does not see .*/on_one_node_only.*--run-dir"):
            check_shared(tmp_path / "on_one_node_only")
        ray.shutdown()
        theirs = [f"ray_kwargs.ray_init.{name}=null" for name in node]
        two_nodes = ["trainer.nnodes=2", f"ray_kwargs.ray_init.address={cluster.address}", *theirs]
        for name in ("first", "second"):
            run(Path(os.path.relpath(tmp_path / name)), *ODD, *two_nodes, "--max-steps", "2", f"{ACTOR}.optim.lr=1e-3")
            check(tmp_path / name, 2)
    finally:
        cluster.shutdown()
    first, second = ({log.name for log in (tmp_path / name / "logs").iterdir()} for name in ("first", "second"))
    assert first and second and not first & second


def gradients(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    """What `tests.rank_update` finds on rank 0 of so many; a rank that waits for another ends the test after two minutes."""
    environment = {**os.environ, **run_environment(True), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "0", "DIST_INIT_METHOD": f"file://{folder}/meet-{ranks}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.rank_update", str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0] * ranks
    finally:
        for process in running:
            process.kill()
    found = json.loads((folder / "0.json").read_text())
    return {name: torch.tensor(values) for name, values in found.items()}


@pytest.mark.parametrize(
    ("family", "tower"),
    [
        ("LLaVA-1.5", "vision_tower.encoder.layers.0.mlp.fc1.weight"),
        pytest.param("LLaVA-NeXT (1.6)", "vision_tower.encoder.layers.0.mlp.fc1.weight", marks=pytest.mark.long),
        pytest.param("LLaVA-OneVision", "vision_tower.encoder.layers.0.mlp.fc1.weight", marks=pytest.mark.long),
        pytest.param("Qwen3-VL", "visual.blocks.0.mlp.linear_fc1.weight", marks=pytest.mark.long),
        pytest.param("InternVL 3 (-hf)", "vision_tower.encoder.layer.0.mlp.fc1.weight", marks=pytest.mark.long),
        pytest.param("Gemma 4", "vision_tower.encoder.layers.0.mlp.up_proj.linear.weight", marks=pytest.mark.long),
    ],
)
def test_a_rank_without_a_picture_keeps_nobody_waiting(family: str, tower: str, tmp_path: Path) -> None:
    """One rank's row shows a picture, the other's does not: the gradients are those of one rank with both rows."""
    model = build(family, tmp_path / "model")
    processor = load_processor(str(model))
    Image.new("RGB", (112, 112), "red").save(tmp_path / "p.png")
    samples = []
    for images in ([tmp_path / "p.png"], []):
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is it?"}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        pictures = [Image.open(path) for path in images] or None
        ids = processor(text=[text], images=pictures, return_tensors="pt")["input_ids"][0].tolist()
        reply = processor.tokenizer("red")["input_ids"]
        refs = [image_url(str(path), "file") for path in images]
        sample = Sample(ids, reply, [1] * len(reply), [-1.0] * len(reply), refs, 0.0, "group", "rollout", 0)
        samples.append(dataclasses.asdict(sample))
    names = [
        f"model.{tower}",
        *(f"model.language_model.layers.0.mlp.{part}.weight" for part in ("up_proj", "down_proj")),
    ]
    (tmp_path / "job.json").write_text(json.dumps({"model": str(model), "samples": samples, "weights": names}))
    alone, together = gradients(tmp_path, 1), gradients(tmp_path, 2)
    assert alone.keys() == set(names)
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(together[name] * 2, gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.long
def test_gradients_of_shared_prompts_on_two_ranks_are_those_of_the_rows_on_one(tmp_path: Path) -> None:
    """Two groups with pictures, of which each rank has two rows, by FSDP; one rank computes row by row."""
    model = build("Qwen2.5-VL", tmp_path / "model")
    processor = load_processor(str(model))
    samples = []
    for group, colour in enumerate(("red", "blue")):
        Image.new("RGB", (112, 112), colour).save(tmp_path / f"{colour}.png")
        parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        shown = Image.open(tmp_path / f"{colour}.png")
        ids = processor(text=[text], images=[shown], return_tensors="pt")["input_ids"][0].tolist()
        for reply in ([5, 6, 7], [8], [9, 10], [11, 12]):
            refs = [image_url(str(tmp_path / f"{colour}.png"), "file")]
            sample = Sample(ids, reply, [1] * len(reply), [-1.0] * len(reply), refs, 0.0, str(group), "rollout", 0)
            samples.append(dataclasses.asdict(sample))
    parts_of = ("self_attn.k_proj", "mlp.up_proj")
    names = [
        "model.visual.blocks.0.attn.qkv.weight",
        *(f"model.language_model.layers.0.{one}.weight" for one in parts_of),
    ]
    job = {"model": str(model), "samples": samples, "weights": names}
    (tmp_path / "job.json").write_text(json.dumps(job))
    alone = gradients(tmp_path, 1)
    (tmp_path / "job.json").write_text(json.dumps({**job, "together": True}))
    together = gradients(tmp_path, 2)
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0
        assert (together[name] * 2 - gradient).norm() < 1e-5 * gradient.norm(), name
