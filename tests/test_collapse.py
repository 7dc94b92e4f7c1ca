"""The collapse watch on the numbers of the Arc Vision report, on each sign by itself, and on runs that are well."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_rl.run.collapse import REMEDIES, Alarm, CollapseWatcher, episodes, restored_steps
from vision_rl.settings import CollapseWatch

# Arc Vision report, 2.1 and 2.2: (step, value), linear in between; after step 23 nothing came back.
REPORT_REWARD = [(1, 0.002), (5, 0.053), (10, 0.019), (20, 0.063), (23, 0.0), (30, 0.0)]
REPORT_LENGTH = [(1, 76.7), (23, 92.6), (30, 92.6)]
REPORT_CONFIDENCE = [(1, 0.87), (30, 0.92)]


def line(points: list[tuple[int, float]], step: int) -> float:
    steps, values = zip(*points, strict=True)
    return float(np.interp(step, steps, values))


def report_run(noise: float = 0.0) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {
            "step": step,
            "train/reward": max(0.0, line(REPORT_REWARD, step) + draw.gauss(0, noise)),
            "train/response_length": line(REPORT_LENGTH, step),
            "train/confidence": line(REPORT_CONFIDENCE, step),
        }
        for step in range(1, 31)
    ]


def feed(lines: Iterable[dict[str, Any]], **settings: Any) -> list[tuple[int, Alarm]]:
    """(step, alarm) of everything that the watcher raised."""
    watcher = CollapseWatcher(CollapseWatch(**settings))
    return [(entry["step"], alarm) for entry in lines for alarm in watcher.update(entry["step"], entry)]


def first(alarms: list[tuple[int, Alarm]], name: str, persistent: bool) -> int | None:
    return next((step for step, alarm in alarms if alarm.name == name and alarm.persistent is persistent), None)


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_the_reports_collapse_is_seen_when_it_happens(noise: float) -> None:
    alarms = feed(report_run(noise))
    begins = first(alarms, "reward falls", False)
    assert begins is not None and 23 <= begins <= 26
    assert first(alarms, "reward falls", True) == begins + 2
    [alarm] = [alarm for _, alarm in alarms if alarm.name == "reward falls" and alarm.persistent]
    assert alarm.since == begins
    assert "after a peak of 0.05" in alarm.seen and "around step 2" in alarm.seen
    assert alarm.cures == REMEDIES["reward falls"].cures


def test_the_reports_long_replies_are_reported_once_the_reward_is_lost() -> None:
    alarms = feed(report_run())
    begins = first(alarms, "replies grow", False)
    assert begins is not None and 20 < begins <= 24
    [alarm] = [alarm for _, alarm in alarms if alarm.name == "replies grow" and not alarm.persistent]
    assert "(+1" in alarm.seen or "(+2" in alarm.seen


def test_the_reports_overconfidence_is_reported_from_the_first_window_on() -> None:
    assert first(feed(report_run()), "overconfident", False) == 5


def test_every_alarm_is_reported_when_it_begins_and_when_it_persists() -> None:
    alarms = feed(report_run(), persist_steps=4)
    for name in {alarm.name for _, alarm in alarms}:
        steps = [step for step, alarm in alarms if alarm.name == name]
        assert steps == [steps[0], steps[0] + 3]
        assert [alarm.persistent for _, alarm in alarms if alarm.name == name] == [False, True]


def constant(
    name: str, value: float, reward: float = 0.3, steps: int = 12, early: float | None = None
) -> list[dict[str, Any]]:
    """A run in which one metric has `value` (for the first six steps `early`) and the reward is flat."""
    return [
        {"step": step, "train/reward": reward, name: value if early is None or step > 6 else early}
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(
    ("name", "metric", "well", "ill", "early"),
    [
        ("entropy vanishes", "actor/entropy", 0.25, 0.05, 1.0),
        ("far from reference", "train/kl", 0.9, 1.1, 0.0),
        ("equal groups", "train/groups_equal", 0.7, 0.85, None),
        ("format fails", "train/format/ok", 0.6, 0.4, None),
        ("wrong space", "train/format/wrong_space", 0.1, 0.3, None),
        ("overconfident", "train/confidence", 0.65, 0.75, None),
        ("actor and rollout drift", "mismatch/logprob_mean", 0.03, 0.05, 0.01),
        ("replies grow", "train/response_length", 110.0, 140.0, 100.0),
    ],
)
def test_each_sign_has_its_threshold(name: str, metric: str, well: float, ill: float, early: float | None) -> None:
    lines = constant(metric, ill, early=early, steps=20)
    alarms = feed(lines)
    assert first(alarms, name, True) is not None
    assert {alarm.name for _, alarm in alarms} == {name}
    assert all(alarm.metric == metric for _, alarm in alarms)
    assert feed(constant(metric, well, early=early, steps=20)) == []


def test_a_float32_mismatch_of_rounding_size_may_grow() -> None:
    assert feed(constant("mismatch/logprob_mean", 1e-4, early=1e-6, steps=20)) == []


@pytest.mark.parametrize(("metric", "value", "early"), [("actor/entropy", 0.01, 1.0), ("train/groups_equal", 1.0, 0.0)])
def test_a_solved_task_needs_neither_entropy_nor_spread(metric: str, value: float, early: float) -> None:
    assert feed(constant(metric, value, reward=0.95, early=early, steps=20)) == []
    assert feed(constant(metric, value, reward=0.5, early=early, steps=20)) != []


# The grounding demo of 2026-11-21: reward, entropy, groups without spread. The task is being solved; its reward, an IoU, ends
# below 0.9, where a few pixels are missing.
DEMO_REWARD = (
    0.32, 0.33, 0.40, 0.43, 0.35, 0.46, 0.40, 0.51, 0.49, 0.42, 0.52, 0.47, 0.27, 0.51, 0.52, 0.60, 0.56, 0.50, 0.57, 0.62,
    0.61, 0.56, 0.63, 0.71, 0.56, 0.65, 0.79, 0.76, 0.73, 0.83,
)  # fmt: skip
DEMO_ENTROPY = (
    0.15, 0.15, 0.13, 0.13, 0.13, 0.12, 0.13, 0.12, 0.12, 0.11, 0.13, 0.10, 0.12, 0.10, 0.10, 0.09, 0.09, 0.11, 0.10, 0.08,
    0.10, 0.10, 0.08, 0.07, 0.08, 0.08, 0.06, 0.06, 0.08, 0.05,
)  # fmt: skip
DEMO_EQUAL = (
    0.06, 0.19, 0.12, 0.12, 0.12, 0.19, 0.06, 0.19, 0.06, 0.31, 0.06, 0.12, 0.25, 0.06, 0.06, 0.06, 0.19, 0.12, 0.00, 0.06,
    0.12, 0.06, 0.19, 0.25, 0.25, 0.25, 0.44, 0.25, 0.25, 0.50,
)  # fmt: skip


def demo(reward_of_the_rest: float) -> list[dict[str, Any]]:
    """The demo, and thirty steps more of it: entropy and spread go on as they went, the reward stays at a value."""
    lines = [
        {"step": step, "train/reward": reward, "actor/entropy": entropy, "train/groups_equal": equal}
        for step, (reward, entropy, equal) in enumerate(
            zip(DEMO_REWARD, DEMO_ENTROPY, DEMO_EQUAL, strict=True), start=1
        )
    ]
    rest = {"train/reward": reward_of_the_rest, "train/groups_equal": 0.9}
    return lines + [{"step": 31 + i, "actor/entropy": 0.05 * 0.93**i, **rest} for i in range(30)]


def test_a_demo_that_is_being_solved_raises_nothing() -> None:
    assert feed(demo(0.83)) == []
    assert {alarm.name for _, alarm in feed(demo(0.45))} == {"entropy vanishes", "equal groups"}


def test_replies_may_grow_with_the_reward() -> None:
    rising = [{"step": s, "train/reward": 0.02 * s, "train/response_length": 100 + 5 * s} for s in range(1, 31)]
    assert feed(rising) == []
    flat = [{**entry, "train/reward": 0.3} for entry in rising]
    assert first(feed(flat), "replies grow", False) is not None


# runs on the tiny model that stayed where they were: reward, tokens, entropy of 30 steps (2 tokens, once a long reply)
NOISY_REWARD = (
    0.27, 0.22, 0.24, 0.19, 0.29, 0.09, 0.22, 0.22, 0.30, 0.31, 0.21, 0.18, 0.29, 0.33, 0.16, 0.09, 0.22, 0.23, 0.16,
    0.15, 0.33, 0.16, 0.19, 0.24, 0.21, 0.21, 0.34, 0.23, 0.25, 0.27,
)  # fmt: skip
NOISY_LENGTH = {5: 2.31, 14: 2.34, 16: 2.34, 24: 5.05, 25: 2.34}
NOISY_ENTROPY = {5: 1.14, 6: 0.9, 14: 1.14, 16: 1.23, 24: 2.68, 25: 1.24}


# A run on the tiny model that learnt to zoom: two replies instead of one, and more reward for it.
ZOOM_REWARD = (
    0.42, 0.34, 0.37, 0.38, 0.35, 0.44, 0.44, 0.61, 0.40, 0.43, 0.49, 0.47, 0.51, 0.52, 0.57, 0.52, 0.64, 0.57, 0.59, 0.55,
    0.60, 0.62, 0.52, 0.66, 0.65, 0.60, 0.61, 0.65, 0.59, 0.48,
)  # fmt: skip
ZOOM_LENGTH = (
    15.4, 13.8, 14.3, 16.4, 17.0, 17.9, 20.5, 19.8, 19.9, 19.2, 19.3, 19.1, 19.5, 18.4, 18.9, 18.7, 17.0, 19.2, 21.3, 15.7,
    17.3, 16.8, 19.9, 19.4, 15.8, 20.6, 14.3, 20.8, 18.8, 16.9,
)  # fmt: skip


def test_longer_replies_that_earn_more_raise_nothing() -> None:
    pairs = enumerate(zip(ZOOM_REWARD, ZOOM_LENGTH, strict=True), start=1)
    lines = [{"step": step, "train/reward": r, "train/response_length": length} for step, (r, length) in pairs]
    assert feed(lines) == []
    unpaid = [{**entry, "train/reward": 0.4} for entry in lines]
    assert first(feed(unpaid), "replies grow", True) is not None


def test_a_noisy_run_that_stays_level_raises_nothing() -> None:
    lines = [
        {
            "step": step,
            "train/reward": reward,
            "train/response_length": NOISY_LENGTH.get(step, 2.0),
            "actor/entropy": NOISY_ENTROPY.get(step, 0.75),
            "train/groups_equal": (0.125, 0.0, 0.5, 0.25)[step % 4],
            "train/format/ok": 1.0,
            "mismatch/logprob_mean": 6e-7,
        }
        for step, reward in enumerate(NOISY_REWARD, start=1)
    ]
    assert feed(lines) == []


@pytest.mark.parametrize("seed", range(40))
def test_runs_that_learn_with_noise_raise_nothing(seed: int) -> None:
    draw = random.Random(seed)
    lines = []
    for step in range(1, 121):
        level = 0.2 + 0.6 * (1 - math.exp(-step / 40))
        lines.append(
            {
                "step": step,
                "train/reward": min(1.0, max(0.0, draw.gauss(level, 0.08))),
                "train/response_length": draw.gauss(80, 6) + 0.1 * step,
                "actor/entropy": 0.8 * math.exp(-step / 120) + 0.1,
                "train/kl": 0.002 * step,
                "train/groups_equal": min(0.6, 0.1 + 0.005 * step),
                "train/format/ok": 0.98,
                "train/format/wrong_space": 0.02,
            }
        )
    assert feed(lines) == []


@pytest.mark.parametrize(("late", "falls"), [(-0.6, True), (-0.25, False)])
def test_a_reward_below_zero_falls_too(late: float, falls: bool) -> None:
    lines = [{"step": s, "train/reward": -0.2 if s < 15 else late} for s in range(1, 30)]
    assert (first(feed(lines), "reward falls", True) is not None) is falls


def test_an_alarm_ends_and_may_begin_again() -> None:
    values = [0.0] * 6 + [1.0] * 6 + [0.0] * 8 + [1.0] * 8
    lines = [{"step": s, "train/reward": 0.3, "train/format/wrong_space": v} for s, v in enumerate(values, start=1)]
    _, found = episodes(CollapseWatch(), lines)
    assert [(e.alarm.name, e.alarm.since, e.until, e.alarm.persistent) for e in found] == [
        ("wrong space", 7, 16, True),
        ("wrong space", 21, 28, True),
    ]


def test_a_replay_leaves_the_watcher_where_the_run_left_it() -> None:
    lines = report_run()
    live = CollapseWatcher(CollapseWatch())
    for entry in lines[:24]:
        live.update(entry["step"], entry)
    replayed, _ = episodes(CollapseWatch(), lines[:24])
    for entry in lines[24:]:
        assert replayed.update(entry["step"], entry) == live.update(entry["step"], entry)
    assert replayed.active == live.active


def test_after_going_back_the_watch_begins_anew() -> None:
    """The fall raises one alarm; after the return the peak is forgotten, in the run as in a replay of it."""
    lines = [{"step": s, "train/reward": 0.6 if s <= 10 else 0.11 if s <= 16 else 0.3} for s in range(1, 31)]
    watcher, found = episodes(CollapseWatch(), lines, restored=[16])
    assert [(e.alarm.name, e.alarm.since, e.until) for e in found] == [("reward falls", 14, 16)]
    assert watcher.active == {}
    assert len(episodes(CollapseWatch(), lines)[0].active) == 1


def test_a_return_that_a_resume_undid_is_forgotten() -> None:
    restored, resumed = [{"kind": "restored", "step": step} for step in (8, 20)], {"kind": "resumed", "step": 15}
    assert restored_steps([restored[0], {"kind": "phase"}, restored[1]]) == [8, 20]
    assert restored_steps([*restored, resumed]) == [8]
    assert restored_steps([*restored, resumed, {"kind": "restored", "step": 17}]) == [8, 17]


def test_validation_lines_and_gaps_are_passed_over() -> None:
    watcher = CollapseWatcher(CollapseWatch(window=2))
    assert watcher.update(0, {"val/reward": 0.1}) == []
    for step in range(1, 6):
        watcher.update(step, {"train/reward": 0.5, "train/format/wrong_space": 0.5})
    assert "wrong space" in watcher.active
    for broken in (None, float("nan"), float("inf")):
        assert watcher.update(6, {"train/reward": broken, "train/format/wrong_space": broken}) == []
    assert "wrong space" in watcher.active


NUMBER = st.one_of(st.none(), st.floats(), st.integers(-10, 10))
NAMES = ("train/reward", "train/response_length", "actor/entropy", "train/kl", "train/format/ok", "train/confidence")


@given(st.lists(st.fixed_dictionaries({name: NUMBER for name in NAMES}), max_size=25), st.integers(1, 6))
def test_no_metrics_break_the_watch(lines: list[dict[str, Any]], window: int) -> None:
    watcher = CollapseWatcher(CollapseWatch(window=window))
    for step, metrics in enumerate(lines):
        for alarm in watcher.update(step, metrics):
            assert alarm.since <= step and alarm.name in REMEDIES and alarm.seen
