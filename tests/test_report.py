"""The report of a run: stands alone, shows what the files hold, draws boxes where they are, survives half a run."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.recorded_runs import PEAK, SIZE, STEPS, collapsed_run
from vision_rl import watch
from vision_rl.drawing import Chart, chart_uri, picture
from vision_rl.evaluation.cases import drawable
from vision_rl.parsing import parse_boxes
from vision_rl.recorded import read_run
from vision_rl.report import REPORT, component_table, main, phase_table, render_report
from vision_rl.report_charts import charts, moving_average
from vision_rl.report_rollouts import first_mid_last, sample
from vision_rl.telemetry import EVENTS, METRICS, ROLLOUTS, RunLog


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collapsed_run(tmp_path_factory.mktemp("report") / "grounding")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    main([str(run_dir)])
    return (run_dir / REPORT).read_text(encoding="utf-8")


def svg(title: str, page: str) -> str:
    """The chart of that title, decoded."""
    [uri] = re.findall(rf'<img src="data:image/svg\+xml;base64,([^"]+)" alt="{re.escape(title)} over the steps">', page)
    return base64.b64decode(uri).decode()


def test_the_page_stands_alone_and_runs_no_text(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', page) == []
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "the picture &lt;b&gt;cache&lt;/b&gt; is full" in page


def test_alarms_are_listed_and_stand_on_their_curves(page: str) -> None:
    for name, chart in {"reward falls": "Reward", "replies grow": "Reply length", "format fails": "Format"}.items():
        assert f"<b>{name}</b> from step 2" in page
        assert f">{name}</text>" in svg(chart, page)
    assert "reward falls" not in svg("Reply length", page)
    assert "equal groups" in svg("Reward", page)


def test_curves_without_a_measurement_are_left_out(page: str) -> None:
    titles = re.findall(r'alt="([^"]+) over the steps"', page)
    assert titles[0] == "Reward"
    assert {"Reward components, validation", "GPU memory", "Step time by phase", "Distance to the reference"} <= set(
        titles
    )
    assert not {"Confidence", "GPU utilisation"} & set(titles)


def test_rollouts_of_first_mid_and_last_step_have_pictures(page: str) -> None:
    sections = re.split(r"<h2>", page)
    shown = {section.split("</h2>")[0]: section for section in sections}
    for step in (1, STEPS // 2 + 1, STEPS):
        section = shown[f"Training rollouts of step {step}"]
        assert section.count('class="card"') == 3
        # one picture of the row, and one zoomed picture for every rollout of two turns
        assert section.count("data:image/png") + section.count("data:image/jpeg") >= 3 + 3
    over_time = shown["Validation rows over time"]
    assert all(f"<b>step {step}</b>" in over_time for step in (0, 20, 30))


def test_boxes_lie_where_they_belong(run_dir: Path, page: str) -> None:
    rows = {r["id"]: r for r in map(json.loads, (run_dir / ROLLOUTS).read_text().splitlines())}
    cards = re.findall(r'<article class="card" id="([^"]+)">(.*?)</article>', page, re.DOTALL)
    name, card = cards[0]
    [viewbox] = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)"', card)[:1]
    assert (int(viewbox[0]), int(viewbox[1])) == SIZE
    [true] = re.findall(r'class="box true" x="([\d.]+)" y="([\d.]+)"\s+width="([\d.]+)" height="([\d.]+)"', card)
    box = rows[name]["boxes"][0]
    expected = (box[0] * SIZE[0], box[1] * SIZE[1], (box[2] - box[0]) * SIZE[0], (box[3] - box[1]) * SIZE[1])
    assert tuple(map(float, true)) == pytest.approx(expected)
    assert "box predicted" in card


def test_an_answer_about_a_zoomed_picture_is_drawn_where_it_lies_in_the_first(tmp_path: Path) -> None:
    """Rollouts 0 and 2 zoom into the upper left quarter, 1 and 3 do not; validation always zooms."""
    run = collapsed_run(tmp_path / "run", steps=1, answer_view="last")
    over_time, training = render_report(read_run(run)).split("<h2>Training rollouts of step 1</h2>")
    assert training.count("box predicted") == 3 * 4
    rollouts = [json.loads(line) for line in (run / ROLLOUTS).read_text().splitlines()]
    cards = re.findall(r'<article class="card" id="([^"]+)">(.*?)</article>', over_time, re.DOTALL)
    for name, card in cards:
        [reply] = {r["replies"][-1] for r in rollouts if r["id"] == name and r["mode"] == "val"}
        x1, y1, x2, y2 = drawable(tuple(value / 2 for value in parse_boxes(reply, "bbox")[0]))  # type: ignore[arg-type]
        [drawn] = re.findall(r'box predicted" x="([\d.-]+)" y="([\d.-]+)"\s+width="([\d.]+)" height="([\d.]+)"', card)
        expected = (x1 * SIZE[0], y1 * SIZE[1], (x2 - x1) * SIZE[0], (y2 - y1) * SIZE[1])
        assert tuple(map(float, drawn)) == pytest.approx(expected, abs=0.01)


def test_failures_and_dropped_samples_are_listed_with_reasons(page: str) -> None:
    example = r"<div>screen-0 \(step 7, host-1\): no &lt;answer&gt; in 90 s</div>"
    assert re.search(rf"<td>timeout</td><td>3</td><td>7 to 7</td>\s*<td class=\"left\">{example}", page)
    assert re.search(r"<td>sample dropped: image_tokens_disagree</td><td>1</td>", page)


def test_only_chosen_settings_are_shown(page: str) -> None:
    assert "agent.reward: &#34;iou&#34;" in page
    assert "trainer.nnodes" not in page


def test_a_missing_picture_is_said_and_costs_nothing_else(tmp_path: Path) -> None:
    run = collapsed_run(tmp_path / "run", steps=3)
    (run / "rows" / "0.png").unlink()
    assert "0.png does not exist" in render_report(read_run(run))


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text('agent.reward: "official"  # task vqa\n')
    page = render_report(read_run(tmp_path))
    assert "No step is finished yet" in page and "0 failed" in page
    RunLog(tmp_path).metrics(0, {"val/reward": 0.2, "val/accuracy": 0.2})
    assert "validation accuracy<b>0.200</b>" in render_report(read_run(tmp_path))


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    run = collapsed_run(tmp_path / "run", steps=2)
    for name in (METRICS, ROLLOUTS):
        with open(run / name, "a") as file:
            file.write('{"step": 3, "mo')
    assert "2 of 40 steps" in render_report(read_run(run))


@pytest.mark.parametrize("name", [METRICS, ROLLOUTS, EVENTS])
@pytest.mark.parametrize("command", [main, lambda arguments: watch.main([*arguments, "--once"])])
def test_a_damaged_line_is_one_sentence_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], None], name: str
) -> None:
    run = collapsed_run(tmp_path / "run", steps=2)
    with open(run / name, "ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(SystemExit) as exit:
        command([str(run)])
    message = capsys.readouterr().err
    assert exit.value.code == 2 and message.startswith(f"error: {run / name} has a line that is not JSON")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"), [(None, "holds no run"), ("a: [1", "is damaged"), ("7", "not a list of settings")]
)
def test_what_is_no_run_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path)])
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


def test_one_pass_over_the_rollouts_keeps_what_is_shown(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / ROLLOUTS).read_text().splitlines()]
    sampled = sample(iter(lines), [1, 30])
    assert sampled.total == len(lines)
    assert {step: len(rollouts) for step, rollouts in sampled.chosen.items()} == {1: 12, 30: 12}
    assert sorted(sampled.validation) == [0, 10, 20, 30]
    assert "iou" in sampled.components and "reward" not in sampled.components


@pytest.mark.parametrize(
    ("steps", "chosen"), [([], []), ([4], [4]), ([1, 2], [1, 2]), (list(range(1, 31)), [1, 16, 30])]
)
def test_first_mid_last(steps: list[int], chosen: list[int]) -> None:
    assert first_mid_last(steps) == chosen


def test_tables_hold_the_means_and_medians(run_dir: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "train/reward": 0.2, "train/iou": 0.4, "timing_s/step": 4.0, "timing_s/generate": 3.0},
        {"step": 2, "train/reward": 0.4, "train/iou": None, "timing_s/step": 2.0, "timing_s/generate": 1.0},
        {"step": 2, "val/reward": 0.9},
    ]
    columns, rows = component_table(lines, ["iou"], window=2)
    assert columns == ["training, steps 1 to 2", "training, steps 1 to 2", "validation, step 2"]
    assert rows[0] == ("reward", pytest.approx([0.3, 0.3, 0.9]))
    assert rows[1] == ("iou", [0.4, 0.4, None])
    assert phase_table(lines[:2]) == [("rollouts", 2.0, pytest.approx(2 / 3)), ("whole step", 3.0, 1.0)]


def test_phases_add_up_to_the_step(run_dir: Path) -> None:
    run = read_run(run_dir)
    [chart] = [c for c in charts(run.metrics, [], [], 5) if c.title == "Step time by phase"]
    total = [sum(values[i] for _, values in chart.lines.values()) for i in range(STEPS)]
    assert total == pytest.approx([line["timing_s/step"] for line in run.steps()], abs=1e-6)
    assert PEAK < STEPS


def test_moving_average_uses_what_there_is() -> None:
    assert moving_average([1.0, 3.0, 5.0, 7.0], 3) == [1.0, 2.0, 3.0, 5.0]


def test_a_picture_says_which_part_it_shows() -> None:
    image = Image.effect_noise((900, 600), 80).convert("RGB")
    shown = picture(image, side=300, view=(0.5, 0.5, 1.0, 1.0))
    assert (shown.width, shown.height) == (300, 200)
    assert shown.view == (0.5, 0.5, 1.0, 1.0)
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2])))
    assert decoded.size == (300, 200)
    assert decoded.format == "JPEG"  # noise is shorter as JPEG, a flat screen as PNG
    assert "image/png" in picture(Image.new("RGB", (50, 50), "red")).uri


@pytest.mark.parametrize("lines", [{"a": ([1.0], [0.5])}, {"a": ([1.0, 2.0], [0.5, 0.6]), "b": ([2.0], [0.1])}])
def test_charts_are_the_same_every_time(lines: dict[str, Any]) -> None:
    chart = Chart("T", "u", lines, spans=[(1, 2, "alarm")])
    assert chart_uri(chart) == chart_uri(chart)
    assert base64.b64decode(chart_uri(chart).partition(",")[2]).startswith(b"<?xml")
