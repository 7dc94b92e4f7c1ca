"""Run directories as the trainer leaves them, made without a trainer: a grounding run that learns and then collapses."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vision_rl.answers.parsing import format_boxes
from vision_rl.report.cards import advantages
from vision_rl.rewards.grounding import grounding_reward
from vision_rl.rollout.trace import Turn
from vision_rl.run.failures import RolloutFailure
from vision_rl.run.log import METRICS, ROLLOUTS, RunLog
from vision_rl.run.names import PHASES, STEP, phase_seconds
from vision_rl.settings import AgentSettings, CollapseWatch
from vision_rl.training.rollouts import FinishedRollout, rollout_metrics

SIZE = (336, 224)
STEPS, PEAK = 30, 18
COLOURS = ("firebrick", "seagreen", "royalblue", "darkorange")


def collapsed_run(
    run_dir: Path, *, steps: int = STEPS, groups: int = 3, n: int = 4, turns: int = 2, **agent: Any
) -> Path:
    """Boxes come closer to the truth until step PEAK, then replies grow and lose the format; some rollouts fail."""
    draw = random.Random(3)
    rows = [_row(run_dir, index) for index in range(groups)]
    log = RunLog(run_dir)
    settings = dataclasses.asdict(AgentSettings(reward="iou", max_turns=turns, family="qwen2_5_vl", **agent))
    config = {f"agent.{key}": value for key, value in settings.items()}
    config |= {f"app.collapse.{key}": value for key, value in dataclasses.asdict(CollapseWatch()).items()}
    config |= {"actor_rollout_ref.model.path": "models/tiny", "trainer.total_training_steps": 40}
    config |= {"task.name": "grounding", "task.truth": "boxes", "task.metric": "iou"}
    lines = [f"{key}: {json.dumps(value)}  # preset test" for key, value in config.items()]
    (run_dir / "config.yaml").write_text("\n".join([*lines, "trainer.nnodes: 1  # verl", ""]), encoding="utf-8")
    log.event("phase", text="first rollouts")
    log.event("queued", total=groups * n, mode="train")
    for step in range(steps + 1):
        metrics: dict[str, Any] = {}
        if step:
            metrics |= _mode(log, rows, step, "train", n, turns, draw) | _engine(step, draw)
        if step % 10 == 0:
            metrics |= _mode(log, rows, step, "val", 1, turns, draw) | {"timing_s/validate": 4.0}
        log.metrics(step, metrics)
    log.event("warning", text="the picture <b>cache</b> is full")
    log.event("finished", step=steps, reason="stopped by the user")
    return run_dir


def told_run(run_dir: Path, **options: Any) -> Path:
    """`collapsed_run` with all that today's trainer writes: advantages, prompts, sources, and why samples were dropped."""
    collapsed_run(run_dir, **options)
    records = [json.loads(line) for line in (run_dir / ROLLOUTS).read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["prompt"] = f"You see a screenshot. {record['question']}: answer with <bbox>[x1, y1, x2, y2]</bbox>."
        record["source"] = "web" if record["id"].endswith("0") else "mobile"
        if record["mode"] == "train" and not record["failure"]:
            index = int(record["rollout_id"].rpartition("-")[2])
            record["dropped"] = "image_tokens_disagree" if record["step"] == 9 and index == 1 else ""
            record["reason"] = "a.png gives 96 tokens, its prompt has 104" if record["dropped"] else ""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["mode"], record["step"], record["group"]), []).append(record)
    for (mode, _, _), group in groups.items():
        for record, advantage in zip(group, advantages(group), strict=True):
            if mode == "train" and advantage is not None:
                record["advantage"] = advantage
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (run_dir / ROLLOUTS).write_text("".join(lines), encoding="utf-8")
    return run_dir


HOSTILE = """</script></style></textarea><script>document.title='owned'</script><img src=x onerror="document.title='owned'">
{{ 711*713 }} {% raw %} "' onmouseover="document.title='owned'" javascript:alert(1) &lt;b&gt; \u202e \u2028 <!-- ]]>"""


def hostile_run(run_dir: Path) -> Path:
    """A run in which every text that models, data and workers bring tries to become part of the page."""
    told_run(run_dir, steps=10)
    records = [json.loads(line) for line in (run_dir / ROLLOUTS).read_text(encoding="utf-8").splitlines()]
    for record in records:
        for key in ("question", "prompt", "source", "worker", "reason", "id", "group"):
            record[key] = f"{record.get(key)} {HOSTILE}"
        record["replies"] = [f"{reply} {HOSTILE}" for reply in record["replies"]]
        record["failure"] = record["failure"] and HOSTILE
        record["dropped"] = record.get("dropped", "") and HOSTILE
        record["reward"][HOSTILE] = 0.5
        record["image_paths"] = record["image_paths"] if record["step"] % 2 else [f"/{HOSTILE}.png"]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (run_dir / ROLLOUTS).write_text("".join(lines), encoding="utf-8")
    log = RunLog(run_dir)
    log.event("error", text=HOSTILE)
    metrics = [json.loads(line) for line in (run_dir / METRICS).read_text(encoding="utf-8").splitlines()]
    kept = [{**line, f"train/{HOSTILE}": 0.5, f"train/dropped/{HOSTILE}": 3} for line in metrics]
    (run_dir / METRICS).write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    name = json.dumps(HOSTILE)
    config = config.replace('"models/tiny"', name)
    (run_dir / "config.yaml").write_text(config, encoding="utf-8")
    return run_dir


def _mode(
    log: RunLog, rows: list[Any], step: int, mode: str, n: int, turns: int, draw: random.Random
) -> dict[str, Any]:
    rollouts = [_rollout(row, step, index, turns, draw) for row in rows for index in range(n)]
    log.rollouts(rollout.record(step, mode) for rollout in rollouts)
    return rollout_metrics(rollouts, mode)


def _row(run_dir: Path, index: int) -> dict[str, Any]:
    """A screen with a button, a zoomed view of it kept by its hash, and the button's box."""
    image = Image.new("RGB", SIZE, "whitesmoke")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, SIZE[0], 24), fill="lightsteelblue")
    left, top = 40 + 70 * index, 60 + 30 * index
    pen.rectangle((left, top, left + 80, top + 36), fill=COLOURS[index % 4])
    path = run_dir / "rows" / f"{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    buffer = io.BytesIO()
    image.crop((left - 20, top - 20, left + 100, top + 56)).resize((240, 152)).save(buffer, "PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    (run_dir / "pictures").mkdir(exist_ok=True)
    (run_dir / "pictures" / digest).write_bytes(buffer.getvalue())
    box = [left / SIZE[0], top / SIZE[1], (left + 80) / SIZE[0], (top + 36) / SIZE[1]]
    return {
        "id": f"screen-{index}",
        "question": f"click the {COLOURS[index % 4]} button",
        "image_paths": [str(path)],
        "answers": [],
        "boxes": [box],
        "zoom": digest,
    }


def _rollout(row: dict[str, Any], step: int, index: int, turns: int, draw: random.Random) -> FinishedRollout:
    name = f"ro-{step}-{row['id']}-{index}"
    if step == 7 and index == 0:
        return FinishedRollout(
            name,
            row["id"],
            row,
            failure=RolloutFailure.TIMEOUT,
            reason="no <answer> in 90 s",
            seconds=90.0,
            worker="host-1",
        )
    away = 0.2 * (1 - step / PEAK) if step <= PEAK else 0.0
    box = [value + draw.uniform(-1, 1) * away for value in row["boxes"][0]]
    box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
    lost = step > PEAK + 3 and draw.random() < 0.9
    answer = "I think it is somewhere on the left. " * 4 if lost else format_boxes([box], "bbox")
    if lost and index == 1:
        answer = f"<bbox>[{box[0] * SIZE[0]:.0f}, {box[1] * SIZE[1]:.0f}, {box[2] * SIZE[0]:.0f}, {box[3] * SIZE[1]:.0f}]</bbox>"
    reply = f"<think>looking for it, step {step} <script>alert(1)</script></think>{answer}"
    reward = grounding_reward(reply, row["boxes"])
    refs = [Path(row["image_paths"][0]).as_uri()]
    tokens = 40 + (step > PEAK) * 4 * (step - PEAK)
    turn = Turn(list(range(90)), list(range(tokens)), [-0.1] * tokens, refs, reply, "length" if lost else "stop")
    played = [turn]
    if turns > 1 and index % 2 == 0:
        call = '<tool_call>{"name": "zoom_ui_element", "arguments": {"region": [0, 0, 0.5, 0.5], "zoom_factor": 2}}</tool_call>'
        first = Turn(list(range(90)), list(range(20)), [-0.1] * 20, refs, call, "stop")
        played = [first, dataclasses.replace(turn, image_refs=[*refs, f"sha256:{row['zoom']}"])]
    zooms = float(len(played) - 1)
    components = {"reward": reward.value, **reward.components, "tools/calls": zooms, "tools/zooms": zooms}
    return FinishedRollout(name, row["id"], row, played, components, seconds=1.5, worker="host-0")


def _engine(step: int, draw: random.Random) -> dict[str, Any]:
    """What the trainer measures beside the rollouts."""
    late = max(0, step - PEAK)
    timing = {name: 0.1 for name in PHASES} | {"timing_s/old_log_prob": 0.3}
    timing |= {"timing_s/gen": 2.0 + 0.1 * late, "timing_s/update_actor": 1.2}
    timing = {name: seconds * draw.uniform(0.9, 1.1) for name, seconds in timing.items()}
    return {
        **timing,
        STEP: 1.02 * sum(phase_seconds(timing).values()),
        "actor/entropy": max(0.05, 0.9 - 0.02 * step),
        "actor/grad_norm": draw.uniform(0.4, 1.5),
        "train/kl": 0.004 * step,
        "train/groups_equal": 0.2 if step < PEAK else 0.9,
        "mismatch/logprob_max": draw.uniform(2e-6, 6e-6),
        "mismatch/logprob_mean": 6e-7,
        "perf/throughput": draw.uniform(380, 480),
        "actor/perf/max_memory_allocated_gb": 31.0,
        "actor/perf/max_memory_reserved_gb": 36.5,
        "perf/mfu/actor": 0.18,
        "actor/perf/cpu_memory_used_gb": 7.2 + 0.01 * step,
        "train/dropped/image_tokens_disagree": 1 if step == 9 else 0,
    }
