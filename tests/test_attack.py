"""The attack suite as a command: what it finds in a naive reward, and that it finds nothing in the project's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vision_rl.preflight.attack import attack, cases_of, main, reward_of, shortened
from vision_rl.rewards import METRICS
from vision_rl.rewards.vqa import KINDS as ANSWER_KINDS

NAIVE = """
def reward(reply, row):
    return float(any(answer in reply for answer in row["answers"]))

def boxes(reply, row):
    if not reply:
        raise ValueError("no boxes")
    return float("nan") if "nan" in reply else 0.5 + (len(reply) > 200)

def iou(reply, row):
    from vision_rl.rewards.grounding import grounding_reward
    return grounding_reward(reply, row["boxes"], kind="iou")

def nothing(reply, row):
    return 0

number = 3
"""


@pytest.fixture()
def naive(tmp_path: Path) -> Path:
    (tmp_path / "naive.py").write_text(NAIVE)
    return tmp_path / "naive.py"


def test_a_naive_reward_is_found_out(naive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(naive)]) == 1
    shown = capsys.readouterr().out
    listed = "`1 or 2 or 3 or 4 or 5` | 0.400 (one at random) | 1.000 | listing pays more than naming one at random |"
    assert "naive.py on rows of vqa:" in shown and f"| every candidate (or) | 2 | {listed}" in shown
    assert main([f"{naive}:boxes", "--task", "grounding"]) == 1
    shown = capsys.readouterr().out
    assert "| empty reply | large | `` | 0.500 | 0.000 | raises ValueError |" in shown
    assert re.search(r"\| nan \| large \| `.*nan.*` \| 0.500 \| nan \| is not finite \|", shown)
    points = r"\| 100 points \| large \| `.{60}\.\.\. \([\d,]+ characters\)` \| 0.500 \| 1.500 \| pays more \|"
    assert re.search(points, shown), shown


def test_the_rows_are_those_whose_honest_answers_the_reward_pays(naive: Path) -> None:
    """A list of answers is empty in a row of boxes: a reward that raises there is none of boxes."""
    assert reward_of(str(naive), "")[1] == "vqa"
    assert reward_of(f"{naive}:iou", "")[1] == "grounding"


@pytest.mark.parametrize(
    ("reply", "shown"),
    [("two", "two"), ("a\nb\0", "a\\nb\\x00"), ("1" * 2000, "1" * 60 + "... (2,000 characters)"), ("é|", "é|")],
)
def test_a_reply_is_shown_on_one_line(reply: str, shown: str) -> None:
    assert shortened(reply) == shown


# The others are in test_attacks.py, under the same attacks.
@pytest.mark.parametrize("name", ["vqa", "math", "multiple_choice", "iou", "distance"])
@pytest.mark.slow
def test_the_projects_own_rewards_hold(name: str) -> None:
    reward, task = reward_of(name, "")
    assert attack(reward, cases_of(task)) == []


@pytest.mark.parametrize("name", ["point", "gaussian"])
def test_point_rewards_hold_for_points(name: str) -> None:
    assert attack(reward_of(name, "")[0], cases_of("grounding", "point")) == []


@pytest.mark.slow
def test_known_holes_are_shown_under_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("max_iou", "ranked", *(kind for kind in ANSWER_KINDS if METRICS[kind].hole)):
        assert main([name]) == 1
        assert "listing pays more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}:boxes"], "both short answers and boxes.* add --task vqa"),
        (["{}:nothing"], "neither short answers nor boxes.* add --task vqa"),
        (["nowhere.py", "--task", "vqa"], "nowhere.py does not exist"),
        (["{}:number", "--task", "vqa"], "has no function number"),
        (["no.such:thing", "--task", "vqa"], "cannot be imported"),
    ],
)
def test_bad_names_end_in_a_sentence(
    arguments: list[str], message: str, naive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([argument.format(naive) for argument in arguments])
    assert ended.value.code == 2 and re.search(message, capsys.readouterr().err.replace("\n", " "))
