"""Other families and adapters on the real stack: what the actor computes must be what vLLM sampled, after updates too."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.tiny_models.families import BUILDERS, build
from tests.test_e2e_training import metrics_of, run
from vision_rl.models.family import ModelFamily
from vision_rl.models.table import TABLE

QUICK = ["--max-steps", "3", "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"]
# Random models earn nothing; the entropy term gives them a gradient, so that weights change and must be synchronised.
# Eight rows in batches of eight: every image comes again after every update.
UPDATES = [
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "app.max_train_samples=8",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
]
LORA = [
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.target_modules=all-linear",
    "actor_rollout_ref.model.exclude_modules='.*visual.*'",
    "actor_rollout_ref.rollout.load_format=safetensors",
    "actor_rollout_ref.actor.optim.lr=0.01",
]

pytestmark = pytest.mark.e2e


def check(run_dir: Path, summary: dict[str, float], precision: str = "float32") -> None:
    assert summary["steps"] == 3
    assert summary["rollouts_failed"] == 0
    if precision == "float32":
        assert summary["logprob_mismatch_max"] <= 1e-4
    assert summary["share_of_limit"] < 1
    assert all(line["actor/grad_norm"] > 0 for line in metrics_of(run_dir))


TRAINED = [row for row in TABLE if row.name in BUILDERS and (row.trained or row.proven_on_cpu)]


@pytest.mark.long  # the matrix (test_parity.py) has five families in every CI run
@pytest.mark.parametrize("family", TRAINED, ids=lambda row: row.name)
def test_family_trains_and_agrees(family: ModelFamily, tmp_path: Path) -> None:
    """Qwen3-VL: M-RoPE with another patch size and deepstack. LLaVA: plain positions and a tower whose weights are renamed.
    Qwen3.5, in bfloat16: states and attention share pages, which fail a rollout in six where they are not cleared."""
    model = build(family.name, tmp_path / "model")
    length = "data.max_prompt_length=1024"  # these tokenizers count bytes
    summary = run(tmp_path / "run", "--task", "vqa", "--model", str(model), length, *QUICK, *UPDATES)
    check(tmp_path / "run", summary, family.precision)


def test_lora_rollouts_use_the_adapter(tmp_path: Path) -> None:
    """Without `serving/vllm_server.py` the HTTP server answers from the base model and the mismatch grows with every step.

    A temperature other than 1 goes along: vLLM must report log-probabilities after it.
    """
    options = [*QUICK, *LORA, "actor_rollout_ref.actor.entropy_coeff=0.01", "actor_rollout_ref.rollout.temperature=0.8"]
    check(tmp_path / "run", run(tmp_path / "run", "--task", "vqa", *options))
