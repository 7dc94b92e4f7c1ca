"""Box geometry against torchvision and scipy, its borders, and the agreement of the array and the plain versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.ops as ops
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from vision_rl.answers import boxes
from vision_rl.answers.boxes import SIMILARITIES, Box

NAMES = ["iou", "giou", "diou", "ciou"]
REFERENCES = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}


def random_boxes(seed: int, n: int, scale: float = 1.0) -> np.ndarray:
    corners = np.random.default_rng(seed).uniform(0, scale, (n, 2, 2))
    low, high = corners.min(axis=1), corners.max(axis=1) + 1e-3 * scale
    return np.concatenate([low, high], axis=1)


@st.composite
def real_boxes(draw: st.DrawFn) -> Box:
    side = st.floats(0.001, 1.0)
    x, y = draw(st.floats(-1, 1)), draw(st.floats(-1, 1))
    return x, y, x + draw(side), y + draw(side)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_pairwise_matches_torchvision(name: str, scale: float) -> None:
    a, b = random_boxes(1, 60, scale), random_boxes(2, 40, scale)
    expected = REFERENCES[name](torch.tensor(a), torch.tensor(b)).numpy()
    got = getattr(boxes, name)(a[:, None], b[None])
    assert got.shape == (60, 40)
    # torchvision adds 1e-7 to some denominators.
    np.testing.assert_allclose(got, expected, atol=2e-6 if scale == 1.0 else 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_touching_apart_and_equal_boxes_match_torchvision(name: str) -> None:
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 8.0], [0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.4, 0.9]]).double()
    expected = REFERENCES[name](a, b).numpy()[0]
    np.testing.assert_allclose(getattr(boxes, name)(a.numpy(), b.numpy()), expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(a=real_boxes(), b=real_boxes())
def test_plain_and_array_versions_agree_and_are_symmetric(name: str, a: Box, b: Box) -> None:
    value = SIMILARITIES[name](a, b)
    assert value == pytest.approx(float(getattr(boxes, name)(a, b)), abs=1e-9)
    assert value == pytest.approx(SIMILARITIES[name](b, a), abs=1e-9)
    assert -2 < value <= 1 + 1e-9
    assert SIMILARITIES[name](a, a) == pytest.approx(1.0, abs=1e-9)


@given(a=real_boxes(), b=real_boxes())
def test_order_of_the_iou_family(a: Box, b: Box) -> None:
    iou = boxes.iou_pair(a, b)
    assert 0 <= iou <= 1 + 1e-12
    assert boxes.giou_pair(a, b) <= iou + 1e-12
    assert boxes.ciou_pair(a, b) <= boxes.diou_pair(a, b) + 1e-12 <= iou + 2e-12


@given(a=real_boxes(), b=real_boxes(), factor=st.floats(0.01, 1000), shift=st.floats(-5, 5))
def test_similarities_do_not_depend_on_scale_and_place(a: Box, b: Box, factor: float, shift: float) -> None:
    def move(box: Box) -> Box:
        x1, y1, x2, y2 = ((n + shift) * factor for n in box)
        return x1, y1, x2, y2

    for name in ("iou", "giou", "diou", "ciou", "gaussian"):
        assert SIMILARITIES[name](move(a), move(b)) == pytest.approx(SIMILARITIES[name](a, b), abs=1e-6)


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize("a", [(0.5, 0.5, 0.5, 0.5), (0.2, 0.2, 0.2, 0.8), (0.1, 0.1, 0.9, 0.9)])
@pytest.mark.parametrize("b", [(0.5, 0.5, 0.5, 0.5), (0.3, 0.3, 0.3, 0.3)])
def test_boxes_without_area_give_finite_numbers(name: str, a: Box, b: Box) -> None:
    assert math.isfinite(SIMILARITIES[name](a, b))
    if name in NAMES:
        assert np.isfinite(getattr(boxes, name)(a, b))
    if name == "iou":
        assert SIMILARITIES[name](a, b) == 0.0


def test_area_of_swapped_corners_is_zero() -> None:
    assert boxes.area([[0, 0, 2, 3], [2, 3, 0, 0], [2, 0, 0, 3]]).tolist() == [6.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [(0.2, 0.2, True), (0.6, 0.8, True), (0.2, 0.8, True), (0.4, 0.5, True), (0.61, 0.5, False), (0.4, 0.19, False)],
)
def test_borders_belong_to_the_box(x: float, y: float, inside: bool) -> None:
    assert boxes.point_in_box(x, y, (0.2, 0.2, 0.6, 0.8)) is inside
    assert boxes.centre_in_box((x, y, x, y), (0.2, 0.2, 0.6, 0.8)) == inside


def test_gaussian_point_is_one_sigma_at_the_border() -> None:
    true = (0.2, 0.4, 0.6, 0.6)
    assert boxes.gaussian_point((0.3, 0.4, 0.5, 0.6), true) == pytest.approx(1.0)
    assert boxes.gaussian_point((0.6, 0.5, 0.6, 0.5), true) == pytest.approx(math.exp(-0.5))
    assert boxes.gaussian_point((0.6, 0.6, 0.6, 0.6), true) == pytest.approx(math.exp(-1.0))


@given(a=real_boxes(), b=real_boxes())
def test_gaussian_coverage_is_the_bhattacharyya_coefficient(a: Box, b: Box) -> None:
    def moments(box: Box) -> tuple[np.ndarray, np.ndarray]:
        mean = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        return mean, np.diag([((box[2] - box[0]) / 2) ** 2, ((box[3] - box[1]) / 2) ** 2])

    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    cov = (cov_a + cov_b) / 2
    difference = mean_a - mean_b
    distance = difference @ np.linalg.inv(cov) @ difference / 8
    distance += 0.5 * math.log(np.linalg.det(cov) / math.sqrt(np.linalg.det(cov_a) * np.linalg.det(cov_b)))
    assert boxes.gaussian_coverage(a, b) == pytest.approx(math.exp(-distance), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1), (3, 7), (7, 3), (12, 12)])
def test_matching_is_one_to_one_and_as_good_as_scipy(name: str, n: int, m: int) -> None:
    for seed in range(5):
        predicted = [tuple(row) for row in random_boxes(seed, n).tolist()]
        true = [tuple(row) for row in random_boxes(100 + seed, m).tolist()]
        pairs = boxes.match(predicted, true, name)  # type: ignore[arg-type]
        assert len(pairs) == len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == min(n, m)
        table = np.array([[SIMILARITIES[name](p, t) for t in true] for p in predicted])  # type: ignore[arg-type]
        for i, j, score in pairs:
            assert score == pytest.approx(table[i, j], abs=1e-9)
        best = table[linear_sum_assignment(table, maximize=True)].sum()
        assert sum(score for _, _, score in pairs) == pytest.approx(best, abs=1e-9)


def test_greedy_matching_would_be_worse() -> None:
    true: list[Box] = [(0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.6, 0.4)]
    predicted: list[Box] = [(0.0, 0.0, 0.5, 0.4), (0.0, 0.0, 0.4, 0.4)]
    assert {(i, j) for i, j, _ in boxes.match(predicted, true)} == {(0, 1), (1, 0)}


def test_nothing_matches_nothing() -> None:
    assert boxes.match([], [(0, 0, 1, 1)]) == boxes.match([(0, 0, 1, 1)], []) == boxes.match([], []) == []
