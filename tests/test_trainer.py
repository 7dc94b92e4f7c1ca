"""What the trainer decides on verl's hooks, without Ray or a model: stops, saves, the death of a model server, the padding."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transfer_queue import KVBatchMeta
from transformers import AutoConfig
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from tests.trainers import new_trainer
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.run.directory import STOP_FILE
from vision_rl.run.log import METRICS, read_jsonl
from vision_rl.settings import AgentSettings, AppSettings, Validation
from vision_rl.training import checkpointing
from vision_rl.training import trainer as trainer_module
from vision_rl.training.health import ModelDied
from vision_rl.training.step_metrics import clip_ratios
from vision_rl.training.trainer import VisionTrainer


class Workers:
    """Ranks that write a file for a checkpoint."""

    def save_checkpoint(self, folder: str, _remote: None, step: int) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "step").write_text(str(step))


class Harm:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VisionTrainer:
    """A trainer at step 4 of 10, with stand-ins for the parts that need processes."""
    steps = ("trainer.test_freq=5", "trainer.save_freq=5")
    lengths = ("data.max_prompt_length=64", "data.max_response_length=24")
    app = AppSettings(validation=Validation(patience=1))
    made: VisionTrainer = new_trainer(tmp_path, app, *steps, *lengths, val=["{}"])
    made.global_steps, made.total_training_steps = 4, 10
    made.actor_rollout_wg = Workers()
    made.train_dataloader = SimpleNamespace(state_dict=lambda: {"rows": made.global_steps})
    made.tracking = SimpleNamespace(log=lambda **_: None)
    monkeypatch.setattr(PPOTrainer, "_compute_metrics", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(VisionTrainer, "_validate", lambda self: {"val/reward": 0.5})
    return made


def test_the_sight_gauge_looks_at_the_runs_own_temperature(
    trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At another one every picture would seem to count: log-probabilities of two temperatures differ."""
    looks: list[tuple[float, int]] = []

    def look(batch: KVBatchMeta, workers: Any, temperature: float, step: int) -> dict[str, float]:
        looks.append((temperature, step))
        return {"sight/kl": 1.0}

    trainer.sight = SimpleNamespace(due=lambda step: True, look=look)  # type: ignore[assignment]
    trainer.rollouts = SimpleNamespace(version=0)  # type: ignore[assignment]
    trainer.records = SimpleNamespace(own_sampling=dict)  # type: ignore[assignment]
    trainer.config.actor_rollout_ref.rollout.temperature = 0.7
    monkeypatch.setattr(trainer_module, "one_update", lambda *_: False)
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: batch)
    monkeypatch.setattr(VisionTrainer, "_padded", lambda *_: None)
    monkeypatch.setattr(trainer_module, "mismatch_metrics", lambda *_: {})
    monkeypatch.setattr(trainer_module, "check_mismatch", lambda *_: None)
    batch = KVBatchMeta(keys=["g_0_0"], tags=[{"min_global_steps": 0}], extra_info={})
    metrics: dict[str, Any] = {}
    trainer._compute_old_log_prob(batch, metrics)
    assert looks == [(0.7, 4)] and metrics == {"sight/kl": 1.0}


def end_of_step(trainer: VisionTrainer, **metrics: Any) -> dict[str, Any]:
    batch = KVBatchMeta(keys=["g_0_0"], tags=[{"prompt_len": 9, "response_len": 24}])
    trainer._compute_metrics(batch, metrics, {}, global_steps=4, epoch=0)
    return metrics


def test_a_step_is_recorded_and_training_goes_on(trainer: VisionTrainer, tmp_path: Path) -> None:
    end_of_step(trainer, loss=torch.tensor(0.25), counts={0.0: 3})
    line = read_jsonl(tmp_path / METRICS)[0][0]
    assert (line["step"], line["loss"]) == (4, 0.25) and "counts" not in line
    assert (line["prompt_length/clip_ratio"], line["response_length/clip_ratio"]) == (0.0, 1.0)
    assert trainer.total_training_steps == 10 and not trainer.checkpoints.has(4)


def test_a_stop_validates_saves_and_ends_verls_loop(trainer: VisionTrainer, tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    assert end_of_step(trainer)["val/reward"] == 0.5
    assert trainer.total_training_steps == 4, "verl's loop ends before the next step"
    assert trainer.checkpoints.has(4)
    kept = torch.load(tmp_path / "checkpoints" / "global_step_4" / "trainer.pt", weights_only=True)
    assert kept["data"] == {"rows": 4}


def test_a_checkpoint_is_no_pickle(trainer: VisionTrainer, tmp_path: Path) -> None:
    """Whoever may write into a run directory must not thereby run code as whoever resumes it."""
    folder = tmp_path / "checkpoints" / "global_step_4"
    folder.mkdir(parents=True)
    (folder / "trainer.pt").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    trainer.config.trainer.resume_mode, trainer.queue_is_up = "auto", lambda: None
    trainer.supervisor.rewind = lambda step: None  # type: ignore[method-assign]
    trainer.actor_rollout_wg = SimpleNamespace(load_checkpoint=lambda **_: None)
    with pytest.raises(pickle.UnpicklingError):
        trainer._load_checkpoint()
    assert not (tmp_path / "harm").exists()


def test_validations_without_gain_stop_a_run(trainer: VisionTrainer) -> None:
    end_of_step(trainer, **{"val/reward": 0.5})
    assert trainer.checkpoints.has(4), "the best so far is kept"
    trainer.global_steps = 5
    end_of_step(trainer, **{"val/reward": 0.4})
    assert trainer.total_training_steps == 5 and trainer.checkpoints.has(5)


def test_the_actor_is_given_what_the_server_never_samples(
    trainer: VisionTrainer, tiny_processor: Any, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Placeholders of pictures, of whatever family, and ids beyond the tokenizer; vLLM's server has the same list."""
    opened: dict[str, Any] = {}
    trainer.actor_rollout_wg = SimpleNamespace(
        open_pictures=lambda folder, limits, **more: opened.update(more, folder=folder, limits=limits)
    )
    trainer.processor, trainer.tokenizer = tiny_processor, tiny_processor.tokenizer
    agents = {"vqa": AgentSettings(min_pixels=3136, max_pixels=50176)}
    trainer.run = replace(trainer.run, agents=agents, app=replace(trainer.run.app, blank_pixels=True))
    trainer.config.actor_rollout_ref.model.path = str(tiny_dir)
    served: list[Any] = []
    monkeypatch.setattr(PPOTrainerSync, "on_init_end", lambda self: served.append("weights"))
    monkeypatch.setattr(VisionTrainer, "_rollout_manager", lambda self: SimpleNamespace(serve=served.append, version=0))
    trainer.llm_server_manager = SimpleNamespace(server_addresses=["host:1"])
    trainer.on_init_end()
    length = len(tiny_processor.tokenizer)
    vocabulary = AutoConfig.from_pretrained(tiny_dir).get_text_config().vocab_size
    assert set(opened["banned_tokens"]) == {*forbidden_token_ids(tiny_processor), *range(length, vocabulary)}
    assert opened["banned_tokens"] and opened["app"].blank_pixels and opened["folder"].endswith("pictures")
    assert opened["limits"] == {"min_pixels": 3136, "max_pixels": 50176}
    assert served == ["weights", ["host:1"]] and trainer.replay_buffer.rollouts is trainer.rollouts


def test_only_what_is_as_long_as_it_may_be_counts_as_clipped() -> None:
    """verl compares with the longest of the batch: two short replies of one length would all be "clipped"."""
    lengths = [(10, 8), (64, 8), (64, 24), (7, 3)]
    tags = [{"prompt_len": prompt, "response_len": response} for prompt, response in lengths]
    tags.append({"prompt_len": 64, "response_len": 24, "is_padding": True})
    batch = KVBatchMeta(keys=[str(i) for i in range(5)], tags=tags)
    ratios = clip_ratios(batch, (64, 24))
    assert ratios == {
        "prompt_length/clip_ratio": 0.5,
        "response_length/clip_ratio": 0.25,
        "response_length_non_aborted/clip_ratio": 0.25,
    }
    assert set(clip_ratios(batch, (65, 25)).values()) == {0.0}


def test_a_restored_queue_is_asked_again_whole(trainer: VisionTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl asks again what was under way; nobody here knows the rollouts of what was done (`StepRecords.take`)."""
    tags = {uid: {"is_prompt": True, "status": status, "global_steps": 3} for uid, status in
            (("a", "finished"), ("b", "failure"), ("c", "running"))}  # fmt: skip
    tags["a_0_0"] = {"status": "success"}
    put: dict[str, Any] = {}
    queue = SimpleNamespace(kv_list=lambda _: {"train": tags}, kv_batch_put=lambda **given: put.update(given))
    monkeypatch.setattr(checkpointing, "tq", queue)
    trainer._ask_again()
    assert put["keys"] == ["a", "b", "c"] and trainer._restored_tq_prompt_count == 3
    assert {tag["status"] for tag in put["tags"]} == {"pending"} and put["tags"][0]["is_prompt"]


@pytest.mark.parametrize(("done", "saved"), [(False, 3), (True, 4)])
def test_the_death_of_a_model_server_keeps_what_is_trained(
    done: bool, saved: int, trainer: VisionTrainer, tmp_path: Path
) -> None:
    """In a step the weights are those of the step before; in a validation, those of the step that is done."""
    trainer.rollouts = SimpleNamespace(death=lambda error: error if isinstance(error, ModelDied) else None)  # type: ignore
    message = rf"engine is gone.*step {saved} is saved, go on with --resume"
    with pytest.raises(ModelDied, match=message), trainer._saved_if_the_server_dies(done=done):
        raise ModelDied("the engine is gone")
    assert [path.name for path in (tmp_path / "checkpoints").glob("global_step_*")] == [f"global_step_{saved}"]
    with pytest.raises(KeyError), trainer._saved_if_the_server_dies():
        raise KeyError("another fault is raised as it is")
