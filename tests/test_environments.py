"""Environments: the loop over turns, what rewards come to, which pictures a prompt holds, instances and their failures."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partialmethod
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import toy_environment
from tests.fake_openai import MODEL, fake_openai
from tests.toy_environment import SIDE, SQUARE, TASK, Squares
from vision_rl import tasks
from vision_rl.agent.client import LLM
from vision_rl.agent.environment import LEFT_OUT, NEXT, UNREAD, Environment, Environments
from vision_rl.agent.keeper import EnvironmentFailed, close_all
from vision_rl.agent.replay import episode_pictures, episode_strip, is_played
from vision_rl.data.row import normalise_row
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.report.cards import Source, group_cards
from vision_rl.rollout.trace import Turn
from vision_rl.settings import AgentSettings, Integrity
from vision_rl.tasks import Task, answer, is_episode
from vision_rl.training.rollouts import FinishedRollout
from vision_rl.training.samples import trajectory_samples
from vision_rl.training.steps import StepRecords
from worker import Worker

ROOT = Path(__file__).resolve().parents[1]
Server = Callable[[dict[str, Any]], str]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tasks, "_loaded", {"squares": TASK})
    for name in ("made", "closed", "resets"):
        monkeypatch.setattr(Squares, name, 0)
    yield
    close_all()


def use(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Environments:
    setup = dataclasses.replace(TASK.environment, **changes)
    monkeypatch.setattr(tasks, "_loaded", {"squares": dataclasses.replace(TASK, environment=setup)})
    return setup


def row(seed: int = 1, max_turns: int = 3, **meta: Any) -> dict[str, Any]:
    settings = {**asdict(AgentSettings()), "max_turns": max_turns, "max_tokens": 24}
    return {
        **normalise_row({"id": f"s{seed}", "task": "squares", "meta": {"seed": seed, **meta}}),
        "settings": settings,
    }


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    """Those of a request, in order."""
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def seeing(body: dict[str, Any]) -> str:
    """The box of the red square in the last picture: a model that looks."""
    picture = pictures(body)[-1]
    pixels: Any = picture.get_flattened_data()
    red = [n for n, (r, g, _) in enumerate(pixels) if r > 200 and g < 100]
    x, y = red[0] % SIDE, red[0] // SIDE
    corners = (x / SIDE, y / SIDE, (x + SQUARE) / SIDE, (y + SQUARE) / SIDE)
    return "<bbox>[" + ", ".join(f"{one:.2f}" for one in corners) + "]</bbox>"


def miss(body: dict[str, Any]) -> str:
    x1, y1, *_ = (float(one) for one in re.findall(r"\d\.\d+", seeing(body)))
    return f"<bbox>[{(x1 + 0.5) % 1:.2f}, {y1}, {(x1 + 0.5) % 1:.2f}, {y1}]</bbox>"


def outcome(server: Server, task: dict[str, Any]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(components with the reward, requests) of one episode."""
    with fake_openai(server) as fake:
        _, reward = asyncio.run(answer(task, LLM(fake.url, MODEL)))
    return {"value": reward.value, **reward.components}, fake.requests


@pytest.mark.parametrize(
    ("server", "meta", "value", "success", "requests"),
    [
        (seeing, {}, 1.0, 1.0, 1),
        (seeing, {"clicks": 2}, 1.0, 1.0, 2),
        (seeing, {"clicks": 3, "turns": 2}, 2 / 3, 0.0, 2),
        (miss, {}, 0.0, 0.0, 3),
        (miss, {"turns": 1}, 0.0, 0.0, 1),
        (lambda body: "I cannot say.", {}, -0.1, 0.0, 3),
        (lambda body: "<bbox>[1.2, 0, 1.4, 0.1]</bbox>", {"turns": 1}, -0.1, 0.0, 1),
    ],
)
def test_an_episode_ends_at_its_end_or_at_the_last_turn(
    server: Server, meta: dict[str, Any], value: float, success: float, requests: int
) -> None:
    found, asked = outcome(server, row(**meta))
    assert found["value"] == pytest.approx(value) and found["success"] == success and len(asked) == requests
    assert found["environment/steps"] == (0 if value < 0 else requests)


def test_nobody_looks_after_the_last_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screenshot costs as much as the click before it."""
    asked: list[str] = []
    step = Squares.step

    def called(self: Squares, action: Any, name: str) -> Any:
        asked.append(name)
        return step(self, action)

    monkeypatch.setattr(Squares, "step", partialmethod(called, name="step"))
    monkeypatch.setattr(Squares, "last_step", partialmethod(called, name="last_step"))
    outcome(miss, row(turns=2))
    assert asked == ["step", "last_step"]


@pytest.mark.parametrize(
    ("server", "meta", "rewards"),
    [
        (seeing, {"clicks": 2}, [0.5, 0.5]),  # it came to its end
        (miss, {"turns": 2}, [0.0, -1.0]),
        (seeing, {"clicks": 3, "turns": 1}, [1 / 3 - 1]),
        (lambda body: "I cannot say.", {"turns": 2}, [0.0, -1.0]),  # is worth no more than a wrong click
    ],
)
def test_an_environment_says_what_an_episode_without_an_end_is_worth(
    server: Server, meta: dict[str, Any], rewards: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Squares, "out_of_turns", lambda self: -1.0)
    found, _ = outcome(server, row(**meta))
    assert [found[f"step_reward/{turn}"] for turn in range(1, len(rewards) + 1)] == pytest.approx(rewards)
    assert found["environment/return"] == pytest.approx(sum(rewards)) and f"step_reward/{len(rewards) + 1}" not in found


def test_what_is_said_goes_on_from_what_was_said() -> None:
    """Each request begins with the one before, so that the turns of a rollout can be one sequence."""
    _, asked = outcome(seeing, row(clicks=3))
    texts = [
        [message["content"][-1]["text"] for message in body["messages"] if message["role"] == "user"] for body in asked
    ]
    assert texts[0][0].startswith("Click the red square.\nAnswer with <bbox>") and texts[2][1:] == [NEXT, NEXT]
    for before, after in pairwise(asked):
        assert after["messages"][: len(before["messages"])] == before["messages"]
    unread, asked = outcome(lambda body: "?", row())
    assert asked[1]["messages"][-1]["content"][0]["text"].startswith(UNREAD) and len(pictures(asked[2])) == 1
    assert unread["format/ok"] == 0


@pytest.mark.parametrize(
    ("history", "limits", "shown"),
    [("all", {}, [1, 2, 3]), (1, {}, [1, 1, 1]), (2, {}, [1, 2, 2]), ("all", {"max_images": 2}, [1, 2, 2]),
     ("all", {"max_total_pixels": 84 * 84 + 1}, [1, 1, 1]), ("all", {"max_total_pixels": 10}, [1, 1, 1])],
)  # fmt: skip
def test_only_the_latest_pictures_are_shown_where_not_all_may(
    history: Any, limits: dict[str, int], shown: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, history=history)
    task = row(clicks=3)
    task["settings"] |= limits
    found, asked = outcome(seeing, task)
    assert [len(pictures(body)) for body in asked] == shown and found["success"] == 1
    text = asked[-1]["messages"][0]["content"][-1]["text"]
    assert text.startswith(LEFT_OUT) == (shown[-1] < 3) and "Click the red square." in text


@pytest.mark.parametrize(
    ("reward", "value", "prefix"),
    [("sum", 2 / 3, "step_reward/"), ("last", 1 / 3, "step_reward/"), ("turns", 2 / 3, "turn_reward/")],
)
def test_what_the_steps_earned_is_the_reward_and_stands_in_the_record(
    reward: str, value: float, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, reward=reward)
    answers = iter((miss, seeing, seeing))
    found, _ = outcome(lambda body: next(answers)(body), row(clicks=3))
    assert found["value"] == pytest.approx(value) and found["environment/return"] == pytest.approx(2 / 3)
    assert [found[f"{prefix}{turn}"] for turn in (1, 2, 3)] == pytest.approx([0, 1 / 3, 1 / 3])


def finished(rewards: dict[str, float], refs: str = "sha256:a", turns: int = 2) -> FinishedRollout:
    made, prompt = [], [1, 2]
    for turn in range(turns):
        made.append(Turn(prompt, [7, 8, 9], [0.0] * 3, [refs] * (turn + 1), "", "stop"))
        prompt = [*prompt, 7, 8, 9, 3]
    return FinishedRollout("r", "g", row(), turns=made, reward=rewards)


def test_rewards_of_turns_stand_at_their_ends() -> None:
    one = finished({"reward": 0.9, "turn_reward/1": 0.5, "turn_reward/2": 0.4})
    [sample] = trajectory_samples([one], max_prompt_length=9, max_response_length=9).samples
    assert sample.placed == ((2, 0.5), (6, 0.4)) and sample.reward == 0.9
    cut = trajectory_samples([one], max_prompt_length=9, max_response_length=4).samples
    assert [each.placed for each in cut] == [(), ()], "turns that are samples of their own have the rollout's reward"


def test_groups_that_begin_differently_are_counted_and_too_many_end_the_run() -> None:
    def group(*refs: str) -> Any:
        return SimpleNamespace(
            task=row(), finished={str(n): finished({"reward": 0.0}, ref) for n, ref in enumerate(refs)}
        )

    same, other = group("sha256:a", "sha256:a"), group("sha256:a", "sha256:b")
    records = StepRecords(None, None, Integrity(group_pictures=0.25))  # type: ignore[arg-type]
    assert records._same_pictures([same] * 3 + [other]) == {"environment/groups_differ": 1}
    with pytest.raises(
        UserError, match=r"1 of 2 groups do not begin with the same picture, s1 for one, .*group_pictures=0.25"
    ):
        records._same_pictures([same, other])
    rowed = SimpleNamespace(task={"image_paths": ["a.png"], "meta": {"seed": 1}}, finished={})
    assert records._same_pictures([rowed]) == {}  # type: ignore[list-item]


# --- instances -----------------------------------------------------------------------------------------------------


async def several(fake_url: str, episodes: list[dict[str, Any]]) -> list[Any]:
    results = await asyncio.gather(*(answer(one, LLM(fake_url, MODEL)) for one in episodes), return_exceptions=True)
    return [one if isinstance(one, BaseException) else one[1].components["success"] for one in results]


def test_instances_are_shared_replaced_after_a_failure_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, instances=2)
    with fake_openai(seeing, delay=0.02) as fake:
        assert asyncio.run(several(fake.url, [row(n) for n in range(6)])) == [1.0] * 6
        assert Squares.made == 2
        died, lived = asyncio.run(several(fake.url, [row(7, fault="death"), row(8)]))
        assert isinstance(died, EnvironmentFailed) and "the browser has ended" in str(died) and lived == 1.0
        assert asyncio.run(several(fake.url, [row(n) for n in range(4)])) == [1.0] * 4, "and in another event loop"
        assert Squares.made == 3
    close_all()
    assert Squares.closed == 3


def test_an_instance_that_dies_before_the_episode_is_replaced_at_once() -> None:
    with fake_openai(seeing) as fake:
        assert asyncio.run(several(fake.url, [row(fault="start")])) == [1.0]
    assert Squares.made == 2


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, seconds=0.5, instances=1)
    with fake_openai(seeing) as fake:
        hung, after = asyncio.run(several(fake.url, [row(1, fault="hang"), row(2)]))
    assert str(hung) == "no answer to step within 0.5 s" and after == 1.0


def test_a_group_shares_a_picture_where_the_environment_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, instances=1)
    monkeypatch.setattr(Squares, "repeats", lambda self, options: True)
    monkeypatch.setattr(
        Squares, "restore", lambda self, *, seed, options: Squares.reset(self, seed=seed, options=options)
    )
    with fake_openai(seeing) as fake:
        assert asyncio.run(several(fake.url, [row(5)] * 4)) == [1.0] * 4
        monkeypatch.setattr(Squares, "restore", lambda self, *, seed, options: 1 / 0)
        [failed] = asyncio.run(several(fake.url, [row(5)]))
    assert "ZeroDivisionError" in str(failed), "what fails while the model thinks fails the episode"


@pytest.mark.parametrize(
    "start", ["work()", "p = multiprocessing.get_context('fork').Process(target=work); p.start(); p.join()"]
)
def test_what_an_agent_made_is_closed_at_the_end_of_its_process(start: str) -> None:
    """A worker's process ends by itself; a runner's is forked, and knows nothing of `atexit`."""
    script = f"""
import asyncio, multiprocessing
from tests.toy_environment import TASK, Squares
from vision_rl.agent.keeper import at_end
Squares.close = lambda self: print("closed", flush=True)
async def begun():
    async with TASK.environment.keeper().episode(1, {{}}):
        pass
def work():
    at_end(lambda: print("ended", flush=True))
    asyncio.run(begun())
{start}
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.split()) == ["closed", "ended"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reader": "telepathy"}, "choose one of click"),
        ({"reward": "mean"}, "choose one of sum"),
        ({"history": 0}, "history is 0"),
        ({"turns": 0}, "at least one turn"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Environments(Squares, **wrong)
    with pytest.raises(UserError, match="give `answer` or `environment`"):
        Task(name="nothing")


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"meta": {}}, "no whole number `seed`"),
        ({"meta": {"seed": "7"}}, "no whole number `seed`"),
        ({"meta": {"seed": True}}, "no whole number `seed`"),
        ({"image_path": "a.png", "meta": {"seed": 1}}, "names pictures"),
        ({"answers": ["yes"], "meta": {"seed": 1}}, "a squares row has answers"),
    ],
)
def test_a_row_that_is_no_episode_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        normalise_row({"task": "squares", **fields})


def test_a_row_needs_a_seed_and_nothing_else() -> None:
    made = normalise_row({"seed": 7, "env": "easy"}, task="squares")
    assert made["question"] == "easy, seed 7" and made["meta"] == {"seed": 7, "env": "easy"} and is_episode(made)
    with pytest.raises(ValueError, match="it names no image"):
        normalise_row({"seed": 7, "question": "?"}, task="vqa")


def command(*arguments: Any, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "data_utils.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_episodes_are_written_opened_and_played(tmp_path: Path) -> None:
    spec, sizes = toy_environment.__file__, ("--train", 6, "--val", 4, "--output", tmp_path)
    command("episodes", spec, "--envs", "a:1", "b", "--option", "clicks=2", *sizes)
    train, val = (read_rows(tmp_path / f"{split}.parquet") for split in ("train", "val"))
    assert [one["meta"] for one in val][1:3] == [
        {"env": "a", "seed": 10_000_001, "turns": 1, "clicks": 2}, {"env": "b", "seed": 10_000_002, "clicks": 2},
    ]  # fmt: skip
    assert len({one["meta"]["seed"] for one in train + val}) == 10
    said = command(
        "verify", "--task", spec, "--file", tmp_path / "val.parquet", "--against", tmp_path / "train.parquet"
    )
    assert (
        "4 episodes were opened (2 of a 84 x 84 pixels, 2 of b 84 x 84 pixels)" in said and "solves 4 of them" in said
    )
    said = command(
        "verify", "--task", spec, "--file", tmp_path / "val.parquet", "--against", tmp_path / "val.parquet", code=1
    )
    assert said.count("its episode is also in") == 4
    table = pq.read_table(tmp_path / "val.parquet").to_pylist()
    assert all(one["image_paths"] == [] for one in table)
    command("episodes", spec, "--option", 'fault="chance"', *sizes)
    assert "look different when they are opened again" in command(
        "verify", "--task", spec, "--file", tmp_path / "val.parquet"
    )
    assert "has no environment" in command("episodes", "vqa", code=2)
    assert "less than one episode for each of 2" in command("episodes", spec, "--envs", "a", "b", "--val", 1, code=2)


# --- what is shown of an episode -----------------------------------------------------------------------------------


def recorded(tmp_path: Path, refs: list[list[str]], replies: list[str]) -> dict[str, Any]:
    """A line of rollouts.jsonl whose pictures lie in the run's folder."""
    (tmp_path / "pictures").mkdir(exist_ok=True)
    for number, ref in enumerate(dict.fromkeys(ref for turn in refs for ref in turn)):
        Image.new("RGB", (40, 20), (10 * number, 0, 0)).save(
            tmp_path / "pictures" / ref.removeprefix("sha256:"), format="PNG"
        )
    turns = [Turn([1], [2], [0.0], turn, reply, "stop") for turn, reply in zip(refs, replies, strict=True)]
    return FinishedRollout("r", "g", row(), turns=turns, reward={"reward": 1.0, "success": 1.0}).record(1, "train")


A, B, C = ("sha256:" + letter * 64 for letter in "abc")


@pytest.mark.parametrize(
    ("refs", "new"),
    [
        ([[A], [A, B], [A, B, C]], ["a", "b", "c"]),
        ([[A], [B], [C]], ["a", "b", "c"]),
        ([[A], [A, B], [B, C]], ["a", "b", "c"]),
        ([[A], [A, A], [A, A, B]], ["a", "a", "b"]),
        ([[A], [A]], ["a", "a"]),
        ([[A, B], [A, B, C]], ["ab", "c"]),
    ],
)
def test_each_turn_has_its_own_pictures(refs: list[list[str]], new: list[str], tmp_path: Path) -> None:
    record = recorded(tmp_path, refs, ["?"] * len(refs))
    assert is_played(record)
    assert ["".join(file.name[0] for file in files) for files in episode_pictures(tmp_path, record)] == new


def test_a_strip_and_a_card_show_every_turn_with_its_click(tmp_path: Path) -> None:
    replies = ["<bbox>[0.4, 0.4, 0.6, 0.6]</bbox>", "click(0.25, 0.75)", "wait()"]
    record = recorded(tmp_path, [[A], [A, B], [A, B, C]], replies)
    whole = episode_strip(tmp_path, record, AgentSettings.of(row()))
    assert whole.size == (3 * 320 + 2 * 6, 160)
    pixels: Any = whole.get_flattened_data()
    red = [n for n, (r, g, _) in enumerate(pixels) if r > 200 and g < 60]
    columns = {n % whole.width for n in red}
    assert {160, 326 + 80} <= columns and max(columns) < 652, "two crosses, and none where nothing was pointed at"
    source = Source(tmp_path, AgentSettings.of(row()), lambda record: "environment")
    [card] = group_cards([{**record, "step": 1}], source, 1)
    turns = card.answers[0].turns
    marks = [[(mark.x / 2, mark.y / 2) for picture in turn.pictures for mark in picture.marks] for turn in turns]
    assert [turn.reply for turn in turns] == replies and card.pictures == () and card.problem == ""
    assert [len(turn.pictures) for turn in turns] == [1, 1, 1]
    shown = turns[0].pictures[0]
    assert marks[0] == [(shown.width / 4, shown.height / 4)] and len(marks[1]) == 1 and marks[2] == []
    (tmp_path / "pictures" / ("b" * 64)).unlink()
    with pytest.raises(UserError):
        episode_strip(tmp_path, record, AgentSettings.of(row()))
    [card] = group_cards([{**record, "step": 1}], source, 1)
    assert [len(turn.pictures) for turn in card.answers[0].turns] == [1, 0, 1], (
        "what is gone is left out, its reply stays"
    )


@pytest.mark.slow
def test_an_evaluation_keeps_a_strip_of_each_episode(tmp_path: Path) -> None:
    spec, out = toy_environment.__file__, tmp_path / "out"
    command("episodes", spec, "--option", "clicks=2", "--train", 1, "--val", 3, "--output", tmp_path)
    with fake_openai(seeing) as fake:
        arguments = (
            "--task",
            spec,
            "--data",
            tmp_path / "val.parquet",
            "--endpoint",
            fake.url,
            "--model",
            MODEL,
            "--output",
            out,
        )
        done = subprocess.run(
            [sys.executable, "evaluate_agent.py", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["success"]["value"] == 1.0 and summary["scored"] == 3
    strips = [Image.open(file).size for file in sorted((out / "episodes").glob("*.png"))]
    assert strips == [(2 * 160 + 6, 160)] * 3
    page = (out / "report.html").read_text()
    assert "the environment&#39;s own: seed 10000000" in page or "the environment's own: seed 10000000" in page
    assert page.count("data:image/") >= 3


# --- gymnasium -----------------------------------------------------------------------------------------------------


def grid(**changes: Any) -> Any:
    given = {
        "prompt": "Reach the green square: {mission}.",
        "actions": ("left", "right", "forward"),
        "package": "minigrid",
    }
    return Environment.of("MiniGrid-Empty-5x5-v0", **{**given, "turns": 12, **changes})


def test_an_environment_of_gymnasium_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minigrid", reason="pip install minigrid")
    monkeypatch.setattr(tasks, "_loaded", {"squares": Task(name="squares", environment=grid())})
    way = iter(["forward", "Forward.", "I turn right", "up?", "forward", "forward"])
    found, asked = outcome(lambda body: next(way), row(max_turns=12))
    text = asked[0]["messages"][0]["content"][-1]["text"]
    assert text.startswith(
        "Reach the green square: get to the green goal square.\nAnswer with one word: left, right, forward."
    )
    assert found["success"] == 1 and found["environment/return"] > 0.9 and found["environment/steps"] == 5
    first, second = (pictures(body)[-1] for body in asked[:2])
    assert first.tobytes() != second.tobytes()
    monkeypatch.setattr(tasks, "_loaded", {"squares": Task(name="squares", environment=grid(make={"max_steps": 3}))})
    cut, _ = outcome(lambda body: "left", row(max_turns=12))
    assert cut["environment/truncated"] == 1 and cut["success"] == 0 and cut["environment/terminated"] == 0


def test_the_same_seed_is_the_same_picture() -> None:
    pytest.importorskip("minigrid", reason="pip install minigrid")
    rooms = Environment.of(
        "MiniGrid-FourRooms-v0", prompt="{mission}", actions=("left", "right", "forward"), package="minigrid"
    ).make()
    first, other, again = (rooms.reset(seed=seed, options={}).pictures[0].tobytes() for seed in (1, 2, 1))
    assert first == again != other
    rooms.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "{missing}"}, r"cannot be filled in \('missing'\); there are \['mission'\]"),
        ({"package": "no_such_package"}, "needs a package that is not installed"),
        ({"actions": ()}, "give the words of its `actions`, or a `reader`"),
    ],
)
def test_a_wrong_environment_of_gymnasium_is_named(changes: dict[str, Any], said: str) -> None:
    pytest.importorskip("minigrid", reason="pip install minigrid")
    with pytest.raises(UserError, match=said):
        grid(**changes).make().reset(seed=1, options={})
    with pytest.raises(UserError, match="cannot make 'NoSuch-v0'"):
        Environment.of("NoSuch-v0", prompt="", actions=("a",)).make().reset(seed=1, options={})


def test_a_worker_plays_an_episode_and_sends_its_pictures_along() -> None:
    """It needs no file of the trainer's: the environment runs where the worker does."""
    rollout = {"task": row(clicks=2), "path": "/v1", "api_key": "key", "model": MODEL, "sampling_parameters": {}}
    with fake_openai(seeing) as fake:
        reward = asyncio.run(Worker(answer, fake.url, "key")._reward({**rollout, "rollout_id": "r", "attempt_id": "a"}))
    assert reward.components["success"] == 1 and Squares.made == 1
    parts = [part for body in fake.requests for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(parts) == 2 and all(part["image_url"]["url"].startswith("data:image/png") for part in parts)
