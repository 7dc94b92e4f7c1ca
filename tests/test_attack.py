"""The attack suite as a command: what it finds in a naive reward, and that it finds nothing in the project's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision_rl.preflight.attack import attack, cases_of, main, reward_of
from vision_rl.rewards import METRICS
from vision_rl.rewards.vqa import KINDS as ANSWER_KINDS

NAIVE = """
def reward(reply, row):
    return float(any(answer in reply for answer in row["answers"]))

def boxes(reply, row):
    if not reply:
        raise ValueError("no boxes")
    return float("nan") if "nan" in reply else 0.5 + (len(reply) > 200)

number = 3
"""


@pytest.fixture()
def naive(tmp_path: Path) -> Path:
    (tmp_path / "naive.py").write_text(NAIVE)
    return tmp_path / "naive.py"


def test_a_naive_reward_is_found_out(naive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(naive), "--task", "vqa"]) == 1
    shown = capsys.readouterr().out
    assert "| every candidate (or) | 2 | 0.400 | 1.000 | listing pays more than naming one at random |" in shown
    assert main([f"{naive}:boxes", "--task", "grounding"]) == 1
    shown = capsys.readouterr().out
    assert "| empty reply | large | 0.500 | 0.000 | raises ValueError |" in shown
    assert "| nan | large | 0.500 | nan | is not finite |" in shown
    assert "| 100 points | large | 0.500 | 1.500 | pays more |" in shown


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
        (["{}"], "name --task vqa or --task grounding"),
        (["nowhere.py", "--task", "vqa"], "nowhere.py does not exist"),
        (["{}:number", "--task", "vqa"], "has no function number"),
        (["no.such:thing", "--task", "vqa"], "cannot be imported"),
    ],
)
def test_bad_names_end_in_a_sentence(arguments: list[str], message: str, naive: Path) -> None:
    from vision_rl.errors import UserError

    with pytest.raises(UserError, match=message):
        main([argument.format(naive) for argument in arguments])
