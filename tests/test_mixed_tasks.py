"""Rows of several tasks in one run and in one evaluation: each row's own task says the agent, the reward and the figures."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import evaluate_agent
import train_agent
from baselines import api_baseline
from tests.fake_openai import MODEL, fake_openai
from vision_rl import tasks
from vision_rl.config.resolve import overrides_for, render_resolved, resolve_tasks
from vision_rl.data.schema import read_rows, task_names_of, write_rows
from vision_rl.errors import UserError
from vision_rl.run.directory import CONFIG
from vision_rl.run.reader import read_run
from vision_rl.run.summary import summarise
from vision_rl.tiny import write_tasks
from vision_rl.training import prepare
from vision_rl.training.finish import changes

BOTH = ["vqa", "grounding"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training and validation files: one of each task, and one with both."""
    folder = tmp_path_factory.mktemp("mixed")
    made = {task: write_tasks(folder / task, task, train=40, val=3, test=1) for task in BOTH}
    found = {f"{task}-{split}": made[task][split] for task in BOTH for split in ("train", "val")}
    rows = [{**row, "id": f"{task}-{row['id']}"} for task in BOTH for row in read_rows(made[task]["val"])]
    write_rows(folder / "both.parquet", rows)
    return {**found, "both": folder / "both.parquet"}


def prepared(mixed: dict[str, Path], *options: str) -> tuple[Any, list[Any], list[Any]]:
    data = ["--data-path", f"{mixed['grounding-train']}:1", f"{mixed['vqa-train']}:3", "--val-data-path", mixed["both"]]
    args = train_agent.parsed(["--preset", "cpu", *map(str, data), *options])
    resolved, rows, val_rows, _ = prepare.prepared(args, True)
    return resolved, rows, val_rows


def test_the_rows_say_the_tasks_and_each_has_its_own_settings(mixed: dict[str, Path]) -> None:
    resolved, rows, val_rows = prepared(mixed)
    assert (resolved.tasks, resolved.task) == (("grounding", "vqa"), "grounding+vqa")
    assert [row["task"] for row in rows[:8]].count("vqa") == 6
    assert {row["task"] for row in val_rows} == set(BOTH)
    assert {task: agent.reward for task, agent in resolved.agents.items()} == {"vqa": "vqa", "grounding": "iou"}
    sent = [json.loads(item["task"]) for item in prepare.as_tasks(val_rows)]
    assert all("settings" not in row for row in sent), "they travel once a task, and are added as a rollout is queued"


def test_a_named_task_leaves_the_others_out(mixed: dict[str, Path]) -> None:
    args = train_agent.parsed(
        [
            "--preset",
            "cpu",
            "--task",
            "vqa",
            "--data-path",
            str(mixed["both"]),
            "--val-data-path",
            str(mixed["vqa-val"]),
        ]
    )
    resolved, rows, _, _ = prepare.prepared(args, True)
    assert resolved.tasks == ("vqa",) and {row["task"] for row in rows} == {"vqa"} and len(rows) == 3


def test_the_tasks_of_a_file_are_read_without_its_rows(mixed: dict[str, Path], tmp_path: Path) -> None:
    assert task_names_of(mixed["both"]) == BOTH and task_names_of(mixed["grounding-val"]) == ["grounding"]
    import pandas as pd

    pd.DataFrame([{"image": "a.png", "question": "?", "answer": "x"}]).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame([{"image": "a.png", "question": "?", "bbox": [0.0, 0.0, 1.0, 1.0]}]).to_parquet(tmp_path / "b.parquet")
    assert [task_names_of(tmp_path / name) for name in ("a.parquet", "b.parquet")] == [["vqa"], ["grounding"]]


@pytest.mark.parametrize(
    ("override", "rewards"),
    [
        ("agent.reward=anls", {"vqa": "anls", "grounding": "iou"}),
        ("agent.reward=gaussian", {"vqa": "vqa", "grounding": "gaussian"}),
        ("agent.reward=vision_rl.new_task.template:score", dict.fromkeys(BOTH, "vision_rl.new_task.template:score")),
    ],
)
def test_a_reward_holds_for_the_tasks_that_have_it(override: str, rewards: dict[str, str], mixed: Any) -> None:
    resolved, _, _ = prepared(mixed, override)
    assert {name: agent.reward for name, agent in resolved.agents.items()} == rewards


def test_what_no_task_has_and_what_they_do_not_agree_on() -> None:
    with pytest.raises(UserError, match=r"agent\.reward=yolo is no reward of vqa or grounding"):
        overrides_for("vqa", BOTH, ["agent.reward=yolo"])
    with pytest.raises(UserError, match=r"want another algorithm\.gdpo_reward_keys each; set it for the run"):
        resolve_tasks(BOTH, "cpu", ["algorithm.adv_estimator=gdpo"])
    keys = "algorithm.gdpo_reward_keys=[format/ok]"
    assert resolve_tasks(BOTH, "cpu", ["algorithm.adv_estimator=gdpo", keys]).tasks == tuple(BOTH)


def test_a_run_records_its_tasks(mixed: dict[str, Path], tmp_path: Path) -> None:
    resolved, _, _ = prepared(mixed)
    (tmp_path / CONFIG).write_text(render_resolved(resolved))
    run = read_run(tmp_path)
    assert (run.task, run.metric) == ("grounding+vqa", "reward")
    assert [run.truth_of({"task": task}) for task in (*BOTH, "")] == ["answers", "boxes", "boxes"]
    assert run.truths == {"answers", "boxes"}
    assert changes(run, resolved) == []
    with pytest.raises(UserError, match=r"holds a run of --task grounding\+vqa, not vqa"):
        changes(run, resolve_tasks(["vqa"], "cpu"))
    assert summarise(tmp_path, resolved.tasks, 0.0)["metric"] == "reward"
    assert yaml.safe_load((tmp_path / CONFIG).read_text())["task.truths.vqa"] == "answers"


def test_the_agent_is_that_of_the_row(mixed: dict[str, Path]) -> None:
    """What runners and workers call."""
    replies = {"vqa": "red", "grounding": "<bbox>[0.1, 0.1, 0.2, 0.2]</bbox>"}
    resolved = resolve_tasks(BOTH, "cpu")
    with fake_openai(lambda body: replies["grounding" if "<bbox>" in str(body["messages"]) else "vqa"]) as fake:
        for row in read_rows(mixed["both"]):
            settings = {**dataclasses.asdict(resolved.agents[row["task"]]), "image_transport": "data"}
            llm: Any = SimpleNamespace(endpoint=fake.url, model=MODEL, sampling_parameters={})
            reply, reward = asyncio.run(tasks.answer({**row, "settings": settings}, llm))
            assert reply == replies[row["task"]]
            assert ("iou" in reward.components) == (row["task"] == "grounding")


def test_agent_lightnings_agent_is_that_of_the_row_too(mixed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runners run, and the reward that they emit."""
    import agentlightning as agl

    from vision_rl.agent.lightning import agent_of

    emitted: list[dict[str, float]] = []
    monkeypatch.setattr(agl, "emit_reward", lambda reward, primary_key: emitted.append(reward))
    resolved, agent = resolve_tasks(BOTH, "cpu"), agent_of(BOTH)
    rollout: Any = SimpleNamespace(rollout_id="r", attempt=SimpleNamespace(attempt_id="a"))
    with fake_openai("<bbox>[0.1, 0.1, 0.3, 0.4]</bbox>") as fake:
        llm = agl.LLM(endpoint=fake.url, model=MODEL, sampling_parameters={})
        for row in read_rows(mixed["both"])[1:5]:
            settings = {**dataclasses.asdict(resolved.agents[row["task"]]), "image_transport": "data"}
            asyncio.run(agent.training_rollout_async({**row, "settings": settings}, {"main_llm": llm}, rollout))
    assert [sorted({"accuracy", "iou"} & reward.keys()) for reward in emitted] == [["accuracy"]] * 2 + [["iou"]] * 2


def test_a_mixed_file_is_evaluated_task_by_task_and_source_by_source(mixed: Any, tmp_path: Path) -> None:
    names = {"vqa": ("anls", "slake"), "grounding": ("acc_at_iou_0.5", "refcoco")}
    rows = [
        {**row, "metric": names[row["task"]][0] if number % 3 else "", "source": names[row["task"]][number % 3 > 1]}
        for number, row in enumerate(read_rows(mixed["both"]))
    ]
    write_rows(tmp_path / "rows.parquet", rows)
    with fake_openai("<bbox>[0.1, 0.1, 0.2, 0.2]</bbox>") as fake:
        command = ["--endpoint", fake.url, "--model", MODEL, "--data", str(tmp_path / "rows.parquet")]
        with pytest.raises(SystemExit) as exit_info:
            evaluate_agent.main([*command, "--output", str(tmp_path / "out")])
    assert exit_info.value.code == 0
    for task, (metric, source) in names.items():
        summary = json.loads((tmp_path / "out" / task / "summary.json").read_text())
        assert (summary["task"], summary["scored"], summary["failed"]) == (task, 3, 0)
        own = "accuracy" if task == "vqa" else "iou"
        assert {name: sorted(figures) for name, figures in summary["by_source"].items()} == {
            metric: sorted([own, metric]), source: [metric],
        }  # fmt: skip
        assert "## Each source by its own metric" in (tmp_path / "out" / task / "summary.md").read_text()


def test_a_trivial_baseline_answers_the_rows_of_its_kind(mixed: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        api_baseline.main(["--trivial", "centre-box", "--data", str(mixed["both"]), "--output", str(tmp_path / "out")])
    assert exit_info.value.code == 0
    assert json.loads((tmp_path / "out" / "grounding" / "summary.json").read_text())["scored"] == 3
