"""`--config`: what a run writes into its directory, given back, is the same run; `--changed` and `--json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_utils
import train_agent
from vision_rl.config.resolve import presets, render_resolved
from vision_rl.data.convert.sets import SETS
from vision_rl.tiny import write_tasks
from vision_rl.training import prepare

RUNS = [
    ["--task", "grounding", "--max-steps", "3", "--seed", "5", "agent.max_tokens=9", "app.collapse.refusals=0.5"],
    [
        "--task",
        "grounding",
        "--variant",
        "dapo",
        "--variant",
        "tools",
        "--n-runners",
        "3",
        "actor_rollout_ref.rollout.engine_kwargs.vllm.seed=4",
    ],
    *(["--preset", name] for name in presets()),
]


def written(arguments: list[str]) -> str:
    """config.yaml of the run of a command line."""
    args = train_agent.parsed(arguments)
    prepare.take_given(args)
    return render_resolved(prepare.configure(args, True, media_root="/"))


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_what_a_run_writes_gives_the_same_run(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(written(arguments))
    assert written(["--config", str(tmp_path / "run.yaml")]) == (tmp_path / "run.yaml").read_text()


def test_tasks_data_and_model_of_the_file_count_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_tasks(tmp_path / "data", "grounding", train=4, val=2, test=1)
    first = ["--data-path", f"{data['train']}:2", "--val-data-path", str(data["val"]), "agent.max_tokens=9"]
    (tmp_path / "run.yaml").write_text(written(["--preset", "cpu", *first]))
    args = train_agent.parsed(["--config", "run.yaml", "agent.max_tokens=8", "--max-steps", "7"])
    prepare.take_given(args)
    resolved, rows, _, _ = prepare.prepared(args, True)
    assert resolved.task == "grounding" and len(rows) == 4 and resolved.preset == "cpu"
    assert resolved.agent.max_tokens == 8 and resolved.verl["trainer"]["total_training_steps"] == 7
    assert not [note for note in resolved.notes if "run.yaml" in note]


def test_a_value_that_nobody_chose_and_that_is_another_here_is_a_note(tmp_path: Path) -> None:
    text = written([]).replace("agent.max_pixels: 12544", "agent.max_pixels: 99999")
    (tmp_path / "run.yaml").write_text(text)
    assert "has agent.max_pixels=99999, here it is 12544" in written(["--config", str(tmp_path / "run.yaml")])


def test_another_run_directory_is_no_difference(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(written([]))
    assert "here it is" not in written(["--config", str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / "again")])


def test_a_file_that_somebody_wrote_is_a_layer_over_the_preset(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data:\n  train_batch_size: 4\nagent.max_tokens: 7\n")
    batch = ["actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32"]
    shown = written(["--config", str(tmp_path / "run.yaml"), *batch])
    [line] = [line for line in shown.splitlines() if line.startswith("data.train_batch_size: ")]
    assert line.split() == ["data.train_batch_size:", "4", "#", "config", "run.yaml"]
    assert "# preset cpu" in shown and "agent.max_tokens: 7 " in shown


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        (None, [], "cannot be read as settings"),
        ("- 1\n", [], "must hold settings"),
        ("a: [1\n", [], "cannot be read as settings"),
        ("data.train_batch_sise: 4\n", [], "did you mean data.train_batch_size?"),
        ("data.seed: 4  # preset cpu\n", ["--preset", "gpu_24gb"], "leave --preset out"),
    ],
)
def test_one_sentence(
    text: str | None, more: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        train_agent.main(["--dry-run", "--config", str(tmp_path / "run.yaml"), *more])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and reason in error and error.count("\n") == 1, error


def test_changed_shows_what_differs_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    train_agent.main(["--dry-run", "--changed", "--variant", "dapo", "data.seed=3"])
    lines = capsys.readouterr().out.splitlines()
    origins = {line.rpartition("  # ")[2].split(":")[0] for line in lines if not line.startswith("#")}
    assert origins == {"flag", "override", "derived", "variant dapo"} and len(lines) < 50


def test_json_is_what_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_agent.main(["--plan", "--json"])
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["fits"] is True and estimate["peak_gb"] > 0 and estimate["shape"]["parameters"] > 0
    train_agent.main(["--list-models", "--json"])
    assert any(
        {("family", "Qwen2.5-VL"), ("trained here", "yes")} <= row.items()
        for row in json.loads(capsys.readouterr().out)
    )
    with pytest.raises(SystemExit):
        data_utils.main(["sets", "--json"])
    assert [row["set"] for row in json.loads(capsys.readouterr().out)] == list(SETS)


def test_the_table_of_sets_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        data_utils.main(["sets"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and all(name in shown for name in SETS)
    with pytest.raises(SystemExit):
        data_utils.main(["sets", "slake"])
    assert "data_utils.py convert slake" in capsys.readouterr().out
