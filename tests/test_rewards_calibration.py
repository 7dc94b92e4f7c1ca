"""Calibration metrics: values worked out by hand, limits, agreement with numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_rl.rewards.calibration import brier_score, correlation, expected_calibration_error

units = st.floats(0, 1)


@pytest.mark.parametrize(
    ("confidences", "outcomes", "ece"),
    [
        ([], [], 0.0),
        ([1.0, 1.0], [1, 1], 0.0),
        ([1.0, 1.0], [0, 0], 1.0),
        ([0.9, 0.9, 0.9, 0.9], [1, 1, 0, 0], 0.4),
        ([0.5, 0.5], [1, 0], 0.0),
        ([0.05, 0.95], [1, 0], 0.95),  # two bins: their errors do not cancel out
        ([0.85, 0.95], [1, 0], 0.55),
        ([0.71, 0.79], [0, 1], 0.25),  # one bin: they do
    ],
)
def test_ece(confidences: list[float], outcomes: list[float], ece: float) -> None:
    assert expected_calibration_error(confidences, outcomes) == pytest.approx(ece)


def test_bins_and_their_borders() -> None:
    assert expected_calibration_error([0.71, 0.79], [0, 1], bins=100) == pytest.approx(0.46)
    assert expected_calibration_error([0.5, 1.0], [0, 1], bins=2) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("confidences", "outcomes", "brier"), [([], [], 0.0), ([1.0, 0.0], [1, 0], 0.0), ([0.8, 0.6], [1, 0], 0.2)]
)
def test_brier(confidences: list[float], outcomes: list[float], brier: float) -> None:
    assert brier_score(confidences, outcomes) == pytest.approx(brier)


@given(pairs=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=30))
def test_correlation_agrees_with_numpy(pairs: list[tuple[int, int]]) -> None:
    a, b = [x / 1000 for x, _ in pairs], [y / 1000 for _, y in pairs]
    expected = 0.0 if len(set(a)) == 1 or len(set(b)) == 1 else float(np.corrcoef(a, b)[0, 1])
    assert correlation(a, b) == pytest.approx(expected, abs=1e-9)


@given(a=st.lists(units, max_size=20), data=st.data())
def test_everything_is_finite_and_bounded(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(units, min_size=len(a), max_size=len(a)))
    assert -1 <= correlation(a, b) <= 1
    assert 0 <= expected_calibration_error(a, b) <= 1 + 1e-9
    assert 0 <= brier_score(a, b) <= 1


def test_unequal_lengths_are_refused() -> None:
    for function in (expected_calibration_error, brier_score, correlation):
        with pytest.raises(ValueError, match=r"shorter|longer|correlation"):
            function([0.1, 0.2], [0.1])
