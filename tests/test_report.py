"""The page of a run: stands alone, shows what the files hold, draws boxes where they are, survives half a run."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from benchmarks.report_picture import of_nobodys_machine
from tests.recorded_runs import PEAK, SIZE, STEPS, collapsed_run, hostile_run, told_run
from vision_rl.answers.parsing import read_boxes
from vision_rl.errors import UserError
from vision_rl.report.__main__ import main, page_of
from vision_rl.report.cards import Card, advantages
from vision_rl.report.charts import VALIDATION, Chart, Curves, Line, charts, figure, laid_over, legend, moving_average
from vision_rl.report.index import RolloutIndex
from vision_rl.report.page import Page, components, facet_values, render
from vision_rl.report.pictures import Mark, picture, row_pictures
from vision_rl.report.run import COMPUTED, REPORT, Choice, component_table, phase_table, run_names, run_page, state
from vision_rl.report.serve import application
from vision_rl.run.log import EVENTS, METRICS, ROLLOUTS, RunLog
from vision_rl.run.names import PHASES, phase_seconds, tables
from vision_rl.run.reader import RecordedRun, first_mid_last, read_run


class Elements(HTMLParser):
    """The elements of a page as (tag, attributes), its text outside of scripts, and the scripts' texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._script = tag in ("script", "style")
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told_run(tmp_path_factory.mktemp("report") / "grounding")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return run_page([run_dir])


@pytest.fixture(scope="module")
def html(run_dir: Path) -> Elements:
    main([str(run_dir)])
    return Elements((run_dir / REPORT).read_text(encoding="utf-8"))


def curves(run_dir: Path) -> Curves:
    run = read_run(run_dir)
    index = RolloutIndex(run_dir)
    index.update()
    return Curves(run.metrics, index.components, run.alarms()[1], run.collapse.window, run_dir.name)


def marks_of(card: Card, kind: str) -> list[Mark]:
    return [mark for mark in card.pictures[0].marks if mark.kind == kind]


def test_the_contents_lead_to_parts_and_the_rollouts_come_before_the_curves(html: Elements) -> None:
    ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]
    links = [link["href"].removeprefix("#") for link in html.all("a") if "=" not in link["href"]]
    assert links == ["alarms", "rollouts", "curves", "tables", "events", "settings"]
    assert [name for name in ids if name in links] == links


def test_the_page_stands_alone(html: Elements) -> None:
    for _, attributes in html.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), attributes
    assert len(html.all("script")) == 3  # figures, Plotly, ours
    [policy] = [meta["content"] for meta in html.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert {script["nonce"] for script in html.all("script")} == {re.search(r"'nonce-([^']+)'", policy)[1]}  # type: ignore[index]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    """Replies, questions, ids, workers, sources, failures, components, model and file names, errors."""
    plain, hostile = told_run(tmp_path / "plain", steps=10), hostile_run(tmp_path / "<b>hostile")
    allowed = {tag for tag, _ in Elements(render(run_page([plain]))).elements}
    shown = Elements(render(run_page([hostile])))
    assert {tag for tag, _ in shown.elements} <= allowed
    assert len(shown.all("script")) == 3 and "owned" not in shown.scripts[-1]
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert shown.text.count("document.title='owned'") > 20  # it is shown, as text
    assert "506943" not in shown.text  # 711 * 713, which a template would calculate
    figures = json.loads(next(text for text in shown.scripts if text.startswith("[{")))
    names = [trace["name"] for drawn in figures for trace in drawn["data"]]
    assert any("owned" in name for name in names) and not any("<" in name for name in names)


def test_alarms_are_listed_and_lead_to_rollouts(page: Page) -> None:
    found = {alarm.name: alarm for alarm in page.alarms}
    assert {"reward falls", "replies grow", "format fails", "timeout", "dropped: image_tokens_disagree"} <= set(found)
    values = facet_values(page.cards)
    for alarm in found.values():
        assert alarm.link, alarm.name
        fitting = [
            answer
            for card in page.cards
            for answer in card.answers
            if all((answer.facets or {})[name] == value for name, value in alarm.link.items())
        ]
        assert fitting, (alarm.name, alarm.link, values)
    assert int(found["reward falls"].link["step"]) > PEAK
    assert found["timeout"].link == {"failure": "timeout"}


def test_alarms_stand_on_their_curves(run_dir: Path) -> None:
    drawn = {chart.title: chart for chart in charts(curves(run_dir))}
    for name, title in {"reward falls": "Reward", "replies grow": "Reply length", "format fails": "Format"}.items():
        assert name in [span[2] for span in drawn[title].spans]
        marks = next(trace for trace in figure(drawn[title], 30)["data"] if trace["name"] == "alarms")
        assert name in marks["text"]
    assert "reward falls" not in [span[2] for span in drawn["Reply length"].spans]
    assert "equal groups" in [span[2] for span in drawn["Reward"].spans]


def test_curves_without_a_measurement_are_left_out(run_dir: Path) -> None:
    titles = [chart.title for chart in charts(curves(run_dir))]
    assert titles[0] == "Reward"
    expected = {"Reward components, validation", "GPU memory", "Step time by phase", "Distance to the reference"}
    assert expected <= set(titles) and not {"Confidence", "GPU utilisation"} & set(titles)


def test_no_curve_twice_no_zeros_hidden_no_characters_beside_tokens() -> None:
    lines = [
        {"step": n, "train/reward": n / 9, "train/accuracy": n / 9, "train/zero": 0.0, "train/length": 1.0 * n}
        for n in range(9)
    ]
    drawn = {chart.title: chart for chart in charts(Curves(lines, ["accuracy", "zero", "length"]))}
    assert [line.name for line in drawn["Reward components"].lines] == ["zero"]
    assert components({"reward": 1.0, "zero": 0.0, "length": 7.0}) == [("zero", 0.0), ("length (characters)", 7.0)]


def test_a_line_keeps_its_colour_from_chart_to_chart_and_two_runs_have_one_each(run_dir: Path) -> None:
    drawn = {chart.title: chart for chart in charts(curves(run_dir))}
    for title in ("Reward", "Reply length", "Format"):
        keys = {key.name: key for key in legend(drawn[title])}
        validation = next(key for name, key in keys.items() if "validation" in name)
        assert validation.colour == VALIDATION
        assert [key for key in keys.values() if key.colour == VALIDATION] == [validation]
    reward = {key.name: key for key in legend(drawn["Reward"])}
    assert reward["training, each step"].colour == reward["training, mean of 5"].colour
    [both] = [chart for chart in laid_over([curves(run_dir), curves(run_dir)]) if chart.title == "Reward"]
    assert len({look[0] for look in both.looks}) == 2 and both.looks[0][0] != both.looks[-1][0]
    assert len(legend(drawn["Reply length"])) == 3, "training, validation, alarms"
    assert [key.name for key in legend(drawn["Distance to the reference"])] == ["KL"]


@pytest.mark.parametrize(
    ("unit", "log", "values", "scale"),
    [
        ("share of replies", False, [1.0, 1.0], {"range": [0, 1.05]}),
        ("share of groups", False, [0.2, 0.4], {"range": [0, 1.05]}),
        ("mean", False, [-0.1, 0.4], {}),
        ("GB", False, [31.0, 31.0], {"range": [0, 62.0]}),
        ("GB", False, [31.0, 32.0], {}),
        ("nats", True, [2e-6, 6e-6], {"type": "log", "range": [-6, -5], "dtick": 1, "exponentformat": "power"}),
        ("nats", True, [0.0, 1e-6], {"type": "log", "range": [-6, -5], "dtick": 1, "exponentformat": "power"}),
        ("nats", True, [3e-9, 0.5], {"type": "log", "range": [-9, 0], "dtick": 2, "exponentformat": "power"}),
    ],
)
def test_an_axis_ends_where_its_unit_does(unit: str, log: bool, values: list[float], scale: dict[str, Any]) -> None:
    chart = Chart("one", unit, [Line("one", [1, 2], values)], log=log)
    axis = figure(chart, 2)["layout"]["yaxis"]
    assert {
        key: list(value) if key == "range" else value for key, value in axis.items() if key not in ("title", "zeroline")
    } == scale


def test_edges_of_all_charts_align(page: Page) -> None:
    layouts = [drawing.figure["layout"] for drawing in page.drawings]
    assert len({tuple(layout["margin"][side] for side in ("l", "r", "t", "autoexpand")) for layout in layouts}) == 1
    assert len({layout["height"] - layout["margin"]["b"] for layout in layouts}) == 1
    assert layouts[0]["margin"]["autoexpand"] is False
    assert len({tuple(layout["xaxis"]["range"]) for layout in layouts}) == 1


@pytest.mark.parametrize(("steps", "columns"), [(4, ["1 to 4"]), (5, ["1 to 5"]), (6, ["1 to 5", "2 to 6"])])
def test_no_steps_stand_in_two_columns_of_one_name(steps: int, columns: list[str]) -> None:
    lines = [{"step": n + 1, "train/reward": 0.5} for n in range(steps)]
    assert component_table(lines, [], 5)[0] == [f"training, steps {column}" for column in columns]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["sweep/seed0/run", "sweep/seed1/run"], ["seed0", "seed1"]),
        (["a/x/run", "b/x/run"], ["a", "b"]),
        (["run", "run"], ["run (1)", "run (2)"]),
        (["runs/a"], ["a"]),
    ],
)
def test_a_run_is_called_by_a_word_and_not_by_its_path(folders: list[str], names: list[str]) -> None:
    assert run_names([Path(folder) for folder in folders]) == names


def test_labels_are_names(run_dir: Path, tmp_path: Path) -> None:
    main([str(run_dir), str(run_dir), "--labels", "GRPO", "DAPO", "-o", str(tmp_path / "both.html")])
    assert "<title>grounding: GRPO and DAPO</title>" in (tmp_path / "both.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main([str(run_dir), "--labels", "GRPO", "DAPO"])
    assert dataclasses.replace(read_run(run_dir), config={"actor_rollout_ref.model.path": "/a/b/c"}).model_name == "b/c"


@pytest.mark.slow
def test_two_runs_are_laid_over_each_other(run_dir: Path, tmp_path: Path) -> None:
    other = told_run(tmp_path / "other", steps=22)
    page = run_page([run_dir, other])
    [reward] = [chart for chart in laid_over([curves(run_dir), curves(other)]) if chart.title == "Reward"]
    assert {line.label.partition(":")[0] for line in reward.lines} == {"grounding", "other"}
    drawn = figure(reward, 30)["data"]
    looks = {tuple(trace["line"][part] for part in ("color", "dash", "width")) for trace in drawn if "line" in trace}
    assert len(looks) == len(reward.lines), "the run's colour, dashes for validation, a thin line for single steps"
    assert facet_values(page.cards)["run"] == ["grounding", "other"]
    assert {alarm.link.get("run") for alarm in page.alarms if alarm.link} == {"grounding", "other"}
    assert page.tables[0].title == "Settings that differ"
    twins = run_page([run_dir, run_dir])
    assert len(facet_values(twins.cards)["run"]) == 2


def test_groups_stand_side_by_side_with_their_advantages(page: Page) -> None:
    groups = [card for card in page.cards if card.heading == "step 1, training"]
    assert len(groups) == 3
    for card in groups:
        assert sum(answer.count for answer in card.answers) == 4
        by_reward = sorted(card.answers, key=lambda answer: -answer.reward["reward"])
        assert by_reward[0].push == "up" and by_reward[-1].push == "down"
        assert sum(answer.advantage or 0 for answer in card.answers) == pytest.approx(0)
        assert "answer with <bbox>" in card.prompt
        # one picture of the row; its close-up where the target is small; a zoomed one for every reply of two turns
        assert sum(len(turn.pictures) for answer in card.answers for turn in answer.turns) == 2
    assert COMPUTED not in page.selection


def test_advantages_are_those_of_verl_where_they_were_not_recorded(tmp_path: Path) -> None:
    rewards = [0.0, 0.25, 0.25, 1.0]
    group = [{"reward": {"reward": reward}, "failure": "", "group": "g"} for reward in rewards]
    for by_std in (True, False):
        expected, _ = compute_grpo_outcome_advantage(
            torch.tensor([[reward] for reward in rewards]),
            torch.ones(4, 1),
            np.array(["g"] * 4),
            norm_adv_by_std_in_grpo=by_std,
        )
        assert advantages(group, by_std) == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    lost = {"reward": {}, "failure": "timeout", "group": "g"}
    dropped = {"reward": {"reward": 1.0}, "failure": "", "dropped": "image_cut"}
    assert advantages([*group, lost, dropped])[:4] == advantages(group)
    assert advantages([*group, lost, dropped])[4:] == [None, None]
    assert advantages([{"reward": {"reward": 1.0}, "failure": "", "advantage": -2.0}]) == [-2.0]
    assert COMPUTED in run_page([collapsed_run(tmp_path / "run", steps=2)]).selection


def test_validation_rows_over_time(page: Page) -> None:
    over_time = [card for card in page.cards if card.heading == "validation over time"]
    assert len(over_time) == 3
    assert all([answer.when for answer in card.answers] == ["step 0", "step 20", "step 30"] for card in over_time)


def test_steps_of_alarms_and_losses_are_shown(page: Page) -> None:
    shown = {int((answer.facets or {})["step"]) for card in page.cards for answer in card.answers}
    assert {1, STEPS // 2 + 1, STEPS, 7, 9} <= shown
    assert facet_values(page.cards)["source"] == ["mobile", "web"]


def test_other_steps_can_be_chosen(run_dir: Path, tmp_path: Path) -> None:
    page = run_page([run_dir], Choice((3, 5, 999), 1))
    headings = [card.heading for card in page.cards if "training" in card.heading]
    assert headings == ["step 3, training", "step 5, training"]
    main([str(run_dir), "--steps", "3", "--groups", "2", "-o", str(tmp_path / "out.html")])
    assert (tmp_path / "out.html").read_text(encoding="utf-8").count('class="card"') == 2 + 3
    with pytest.raises(SystemExit):
        main([str(run_dir), "--steps", "3,x"])


def test_boxes_lie_where_they_belong(run_dir: Path, page: Page) -> None:
    rows = {r["id"]: r for r in map(json.loads, (run_dir / ROLLOUTS).read_text().splitlines())}
    card = page.cards[0]
    assert (card.pictures[0].width, card.pictures[0].height) == SIZE
    [true] = marks_of(card, "true")
    box = rows[card.id]["boxes"][0]
    expected = (box[0] * SIZE[0], box[1] * SIZE[1], (box[2] - box[0]) * SIZE[0], (box[3] - box[1]) * SIZE[1])
    assert (true.x, true.y, true.width, true.height) == pytest.approx(expected)
    assert marks_of(card, "predicted")


def test_an_answer_about_a_zoomed_picture_is_drawn_where_it_lies_in_the_first(tmp_path: Path) -> None:
    """Rollouts 0 and 2 zoom into the upper left quarter, 1 and 3 do not; validation always zooms."""
    run = collapsed_run(tmp_path / "run", steps=1, answer_view="last")
    page = run_page([run])
    training = [card for card in page.cards if "training" in card.heading]
    assert [len(marks_of(card, "predicted")) for card in training] == [4, 4, 4]
    rollouts = [json.loads(line) for line in (run / ROLLOUTS).read_text().splitlines()]
    for card in (card for card in page.cards if "validation" in card.heading):
        [reply] = {r["replies"][-1] for r in rollouts if r["id"] == card.id and r["mode"] == "val"}
        x1, y1, x2, y2 = (value / 2 for value in read_boxes(reply, "bbox").boxes[0])
        [drawn] = marks_of(card, "predicted")
        expected = (x1 * SIZE[0], y1 * SIZE[1], (x2 - x1) * SIZE[0], (y2 - y1) * SIZE[1])
        assert (drawn.x, drawn.y, drawn.width, drawn.height) == pytest.approx(expected, abs=SIZE[0] * 0.007)
        [looked] = marks_of(card, "zoom")
        assert (looked.width, looked.height) == pytest.approx((SIZE[0] / 2, SIZE[1] / 2))


def test_failures_and_dropped_samples_are_listed_with_reasons(page: Page) -> None:
    [table] = [table for table in page.tables if table.title == "Lost rollouts and samples"]
    rows = {row[0]: row for row in table.rows}
    assert rows["timeout"][1].value == 3 and rows["timeout"][2] == "7 to 7"  # type: ignore[union-attr]
    assert "screen-0 (step 7, host-1): no <answer> in 90 s" in str(rows["timeout"][3])
    assert "a.png gives 96 tokens" in str(rows["dropped: image_tokens_disagree"][3])
    lost = [answer for card in page.cards for answer in card.answers if answer.failure.startswith("dropped")]
    assert lost and all(answer.advantage is None and "104" in answer.reason for answer in lost)


def test_only_chosen_settings_are_shown(html: Elements) -> None:
    assert 'agent.reward: "iou"' in html.text and "trainer.nnodes" not in html.text


def test_a_missing_picture_is_said_and_costs_nothing_else(tmp_path: Path) -> None:
    run = collapsed_run(tmp_path / "run", steps=3)
    (run / "rows" / "0.png").unlink()
    problems = [card.problem for card in run_page([run]).cards]
    assert any("0.png does not exist" in problem for problem in problems) and "" in problems


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    config = 'task.name: "vqa"  # task\ntask.truth: "answers"  # task\ntask.metric: "accuracy"  # task\n'
    (tmp_path / "config.yaml").write_text(config)
    page = run_page([tmp_path])
    assert page.tiles[-1] == ("rollouts", "0", "0 lost") and "0 steps" in page.subtitle
    assert "None: reward" in Elements(render(page)).text
    RunLog(tmp_path).metrics(0, {"val/reward": 0.2, "val/accuracy": 0.2})
    assert run_page([tmp_path]).tiles[0] == ("validation accuracy", "0.200", "once")


def going_on(run: RecordedRun, *events: dict[str, Any]) -> RecordedRun:
    begun = [event for event in run.events if event["kind"] != "finished"]
    return dataclasses.replace(run, events=[*begun, *({"time": begun[-1]["time"], **event} for event in events)])


def test_a_running_run_says_what_it_does_and_how_long_it_takes(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert "ended: stopped by the user" in state(run) and "left" not in state(run)
    queued = {"kind": "queued", "total": 12, "mode": "train"}
    text = state(going_on(run, queued, {"kind": "collected", "done": 7, "total": 12}))
    assert "7 of 12 rollouts, last sign 20" in text and "about 1 min left" in text
    assert "validating on 12 rows" in state(going_on(run, {**queued, "mode": "val"}))


@pytest.mark.parametrize(
    ("kinds", "ended"),
    [
        ([], ""),
        (["phase", "finished"], "all steps done"),
        (["finished", "phase", "resumed"], ""),
        (["finished", "queued"], ""),
    ],
)
def test_a_resumed_run_has_not_ended(run_dir: Path, kinds: list[str], ended: str) -> None:
    assert dataclasses.replace(read_run(run_dir), events=[{"kind": kind} for kind in kinds]).ended == ended


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    run = collapsed_run(tmp_path / "run", steps=2)
    for name in (METRICS, ROLLOUTS):
        with open(run / name, "a") as file:
            file.write('{"step": 3, "mo')
    assert "2 of 40 steps" in run_page([run]).subtitle


@pytest.mark.parametrize("name", [METRICS, ROLLOUTS, EVENTS])
def test_a_damaged_line_is_one_sentence_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = collapsed_run(tmp_path / "run", steps=2)
    with open(run / name, "ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(SystemExit) as exit:
        main([str(run)])
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
    for options in ([], ["--serve"]):
        with pytest.raises(SystemExit) as exit:
            main([str(tmp_path), *options])
        assert exit.value.code == 2
        message = capsys.readouterr().err
        assert words in message and message.count("\n") == 1


def test_the_index_reads_only_what_is_new(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    lines = (run / ROLLOUTS).read_bytes().splitlines(keepends=True)
    (run / ROLLOUTS).write_bytes(b"".join(lines[:100]) + lines[100][:20])
    index = RolloutIndex(run)
    index.update()
    assert index.total == 100
    with open(run / ROLLOUTS, "ab") as file:
        file.write(lines[100][20:] + b"".join(lines[101:]))
    index.update()
    whole = RolloutIndex(run)
    whole.update()
    assert index.total == len(lines) == whole.total and index.failures == whole.failures
    assert index.read("train", 30) == whole.read("train", 30) and len(index.read("train", 30)) == 12
    assert index.steps("val") == [0, 10, 20, 30]
    RunLog(run).forget_after(5)  # as a resumed run does
    index.update()
    assert max(index.steps("train")) == 5 and index.read("train", 5) == whole.read("train", 5) != []


@pytest.mark.slow
def test_the_live_page_follows_the_run_on_this_machine_only(tmp_path: Path) -> None:
    run = told_run(tmp_path / "run", steps=12)
    client = TestClient(application([run], Choice(), page_of), base_url="http://127.0.0.1:8765")
    version = client.get("/version").text
    first = Elements(client.get("/").text)
    assert first.all("body") == [{"data-version": version}]
    assert {"src": "plotly.js"}.items() <= first.all("script")[1].items()
    assert len(client.get("/plotly.js").text) > 10**6
    RunLog(run).metrics(13, {"train/reward": 0.5, "timing_s/step": 1.0})
    assert client.get("/version").text != version
    assert "13 of 40 steps" in client.get("/").text
    assert "step 3, training" in client.get("/?steps=3").text
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    (run / METRICS).write_text("no json\n")
    broken = client.get("/")
    assert broken.status_code == 500 and "not JSON" in broken.text


def test_the_page_of_the_names_is_made_from_their_table() -> None:
    text = Path("docs/report.md").read_text(encoding="utf-8")
    assert text.partition("<!-- names: start -->\n")[2].partition("\n<!-- names: end -->")[0] == tables()


def test_phases_add_up_to_the_step(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert {row[0] for row in phase_table(run.steps())} == {*PHASES.values(), "other", "whole step"}
    assert sum(row[2] for row in phase_table(run.steps())[:-1]) == pytest.approx(1)
    seldom = [{"timing_s/step": 4.0}, {"timing_s/step": 6.0, "timing_s/sight": 2.0}]
    assert phase_table(seldom)[1] == ("look at black pictures", 1.0, 0.2), "a phase of one step in two"
    assert phase_seconds({"timing_s/sight": 0.2, "timing_s/old_log_prob": 0.3}) == pytest.approx(
        {"look at black pictures": 0.2, "log-probs": 0.1}
    )
    [chart] = [c for c in charts(Curves(run.metrics)) if c.title == "Step time by phase"]
    total = [sum(line.values[i] for line in chart.lines) for i in range(STEPS)]
    assert total == pytest.approx([line["timing_s/step"] for line in run.steps()], abs=1e-6)


def test_moving_average_uses_what_there_is() -> None:
    assert moving_average([1.0, 3.0, 5.0, 7.0], 3) == [1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize(("steps", "kept"), [([], []), ([4], [4]), ([1, 2], [1, 2]), (list(range(9)), [0, 4, 8])])
def test_first_mid_last(steps: list[int], kept: list[int]) -> None:
    assert first_mid_last(steps) == kept


def test_a_picture_says_which_part_it_shows() -> None:
    image = Image.effect_noise((900, 600), 80).convert("RGB")
    shown = picture(image, side=300, view=(0.5, 0.5, 1.0, 1.0))
    assert (shown.width, shown.height) == (300, 200)
    assert shown.view == (0.5, 0.5, 1.0, 1.0)
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2])))
    assert decoded.size == (300, 200)
    assert decoded.format == "JPEG"  # noise is shorter as JPEG, a flat screen as PNG
    assert "image/png" in picture(Image.new("RGB", (50, 50), "red")).uri


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((0.1, 0.2, 0.3, 0.4), (10, 40, 20, 40, False)),
        ((0.3, 0.4, 0.1, 0.2), (10, 40, 20, 40, False)),
        ((0.5, 0.5, 0.5, 0.5), (50, 100, 0.6, 1.2, True)),
        ((0.5, 0.2, 0.5, 0.4), (50, 40, 0.6, 40, False)),
    ],
)
def test_points_and_swapped_corners_can_be_seen(box: Any, shown: Any) -> None:
    [mark] = picture(Image.new("RGB", (100, 200))).marked([("predicted", 1, box)]).marks
    assert (mark.x, mark.y, mark.width, mark.height, mark.point) == pytest.approx(shown)


def test_a_small_target_gets_a_close_up(tmp_path: Path) -> None:
    image = Image.new("RGB", (3840, 2160), (20, 20, 40))
    small = (0.505, 0.51, 0.525, 0.545)
    corners = [round(value * side) for value, side in zip(small, (3840, 2160) * 2, strict=True)]
    image.paste("white", (corners[0], corners[1], corners[2], corners[3]))
    image.save(tmp_path / "a.png")
    _, close = [each.marked([("true", 0, small)]) for each in row_pictures([tmp_path / "a.png"], [small])]
    [mark] = close.marks
    pixels = Image.open(io.BytesIO(base64.b64decode(close.uri.partition(",")[2]))).convert("L")
    bright = pixels.point(lambda level: 255 * (level > 128)).getbbox()
    assert bright == pytest.approx((mark.x, mark.y, mark.x + mark.width, mark.y + mark.height), abs=1.5)


def test_an_evaluation_beside_a_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match=r"compare\.py"):
        page_of([run_dir, tmp_path], Choice(), {})
    with pytest.raises(UserError, match="evaluate again"):
        page_of([tmp_path], Choice(), {})


def test_a_page_for_others_names_no_folder(page: Page) -> None:
    settings = {'data.train_files: "/home/me/train.parquet"': "flag", "data.seed: 5": "override"}
    assert of_nobodys_machine(dataclasses.replace(page, settings=settings)).settings == {"data.seed: 5": "override"}
