"""What the trainer decides on verl's hooks, without Ray or a model: stops, saves, the death of a model server, the padding."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from vision_rl.run.directory import STOP_FILE
from vision_rl.run.log import METRICS, RunLog, read_jsonl
from vision_rl.settings import AppSettings, Validation
from vision_rl.training.checkpoints import Checkpoints
from vision_rl.training.health import ModelDied
from vision_rl.training.supervisor import Supervisor
from vision_rl.training.trainer import VisionTrainer, VisionTrainerSync


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
    """A trainer at step 4 of 10, without the parts that need processes."""
    made = VisionTrainerSync.__new__(VisionTrainerSync)
    app = AppSettings(validation=Validation(patience=1))
    made.run = SimpleNamespace(app=app, run_dir=tmp_path)  # type: ignore[assignment]
    made.log = RunLog(tmp_path)
    made.checkpoints = Checkpoints(tmp_path / "checkpoints", app.checkpoints)
    made.supervisor = Supervisor(app, made.log, made.checkpoints, saves=True)
    made.config = OmegaConf.create({"trainer": {"test_freq": 5, "save_freq": 5}})
    made.global_steps, made.total_training_steps, made.trainer_mode = 4, 10, "sync"
    made.actor_rollout_wg = Workers()
    made.train_dataloader = SimpleNamespace(state_dict=lambda: {"rows": made.global_steps})
    made.gpu = SimpleNamespace(read=dict)  # type: ignore[assignment]
    made.tracking = SimpleNamespace(log=lambda **_: None)
    made.tasks = {"train": [], "val": ["{}"]}
    monkeypatch.setattr(PPOTrainer, "_compute_metrics", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(VisionTrainer, "_validate", lambda self: {"val/reward": 0.5})
    return made


def end_of_step(trainer: VisionTrainer, **metrics: Any) -> dict[str, Any]:
    trainer._compute_metrics(KVBatchMeta(keys=[], tags=[]), metrics, {}, global_steps=4, epoch=0)
    return metrics


def test_a_step_is_recorded_and_training_goes_on(trainer: VisionTrainer, tmp_path: Path) -> None:
    end_of_step(trainer, loss=torch.tensor(0.25), counts={0.0: 3})
    line = read_jsonl(tmp_path / METRICS)[0][0]
    assert (line["step"], line["loss"]) == (4, 0.25) and "counts" not in line
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


@pytest.mark.parametrize(("done", "saved"), [(False, 3), (True, 4)])
def test_the_death_of_a_model_server_keeps_what_is_trained(
    done: bool, saved: int, trainer: VisionTrainer, tmp_path: Path
) -> None:
    """In a step the weights are those of the step before; in a validation, those of the step that is done."""
    trainer.rollouts = SimpleNamespace(death=lambda error: error if isinstance(error, ModelDied) else None)  # type: ignore
    told = rf"engine is gone.*step {saved} is saved, go on with --resume"
    with pytest.raises(ModelDied, match=told), trainer._saved_if_the_server_dies(done=done):
        raise ModelDied("the engine is gone")
    assert [path.name for path in (tmp_path / "checkpoints").glob("global_step_*")] == [f"global_step_{saved}"]
    with pytest.raises(KeyError), trainer._saved_if_the_server_dies():
        raise KeyError("another fault is told as it is")
