"""Coordinate spaces: transformers' own smart_resize, round trips, the table of families, wrong spaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

from vision_rl.answers.coordinates import (
    FAMILIES,
    family_for,
    from_unit,
    get_family,
    in_space,
    smart_resize,
    space_size,
    to_unit,
)
from vision_rl.errors import UserError

sides = st.integers(1, 12000)


@given(height=sides, width=sides, factor=st.sampled_from([28, 32]), low=st.integers(1, 200), span=st.integers(0, 20000))
def test_smart_resize_equals_transformers(height: int, width: int, factor: int, low: int, span: int) -> None:
    low_pixels, high_pixels = low * factor**2, (low + span) * factor**2
    try:
        expected = reference(height, width, factor, low_pixels, high_pixels)
    except ValueError:
        with pytest.raises(UserError, match="aspect ratio over 200"):
            smart_resize(height, width, factor, low_pixels, high_pixels)
    else:
        assert smart_resize(height, width, factor, low_pixels, high_pixels) == expected


@pytest.mark.parametrize(
    ("height", "width"), [(1080, 1920), (2160, 3840), (28, 28), (10, 10), (14, 2800), (1, 200), (480, 640), (98, 70)]
)
def test_smart_resize_with_the_processors_defaults(height: int, width: int) -> None:
    args = (height, width, 28, 56 * 56, 14 * 14 * 4 * 1280)
    assert smart_resize(*args) == reference(*args)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-1, 5), (1, 201), (4020, 20)])
def test_smart_resize_refuses(height: int, width: int) -> None:
    with pytest.raises(UserError):
        smart_resize(height, width, 28, 3136, 1003520)


@given(family=st.sampled_from(sorted(FAMILIES)), box=st.tuples(*[st.floats(0, 1)] * 4), width=sides, height=sides)
def test_round_trip(family: str, box: tuple[float, float, float, float], width: int, height: int) -> None:
    sizes = ((width + 17, height + 3), (width, height))
    assert to_unit(from_unit(box, family, *sizes), family, *sizes) == pytest.approx(box, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "box"),
    [
        ("qwen2_vl", (100, 200, 500, 1000)),
        ("qwen3_vl", (100, 200, 500, 1000)),
        ("internvl", (100, 200, 500, 1000)),
        ("glm4v", (100, 200, 500, 1000)),
        ("qwen2_5_vl", (84, 112, 420, 560)),
        ("pixels", (90, 120, 450, 600)),
        ("unit", (0.1, 0.2, 0.5, 1.0)),
    ],
)
def test_each_family_reads_its_own_space(family: str, box: tuple[float, ...]) -> None:
    assert to_unit(box, family, (900, 600), (840, 560)) == pytest.approx((0.1, 0.2, 0.5, 1.0))
    assert from_unit((0.1, 0.2, 0.5, 1.0), family, (900, 600), (840, 560)) == pytest.approx(box)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen2_vl", "qwen2_vl"),
        ("qwen2_5_vl", "qwen2_5_vl"),
        ("qwen3_vl", "qwen3_vl"),
        ("qwen3_vl_moe", "qwen3_vl"),
        ("internvl", "internvl"),
        ("internvl_chat", "internvl"),
        ("glm4v", "glm4v"),
        ("glm4v_moe", "glm4v"),
    ],
)
def test_family_of_a_config(model_type: str, name: str) -> None:
    assert family_for(model_type).name == name


def test_families_agree_with_the_installed_models() -> None:
    from transformers import AutoConfig

    for family in FAMILIES.values():
        for model_type in family.model_types:
            if model_type in ("internvl_chat", "deepseek_vl_v2", "molmo", "kimi_vl"):
                continue  # remote code
            config = AutoConfig.for_model(model_type)
            if family.patch:
                assert config.vision_config.patch_size == family.patch
                merge = config.vision_config.spatial_merge_size
                assert family.factor == family.patch * merge


@pytest.mark.parametrize("model_type", ["llama", "", "QWEN2_VL"])
def test_unknown_model_types_are_not_guessed(model_type: str) -> None:
    with pytest.raises(UserError, match="family=unit"):
        family_for(model_type)


def test_unknown_family_and_missing_sizes() -> None:
    with pytest.raises(UserError, match="choose one of"):
        get_family("qwen9")
    for family, sizes in (
        ("qwen2_5_vl", ((10, 10), None)),
        ("pixels", (None, (10, 10))),
        ("qwen2_5_vl", (None, (0, 5))),
    ):
        with pytest.raises(UserError, match="above 0"):
            space_size(family, *sizes)
    assert space_size("unit") == (1.0, 1.0)


@pytest.mark.parametrize(
    ("box", "size", "ok"),
    [
        ((0.1, 0.1, 0.5, 0.5), (1.0, 1.0), True),
        ((0.1, 0.1, 1.01, 0.5), (1.0, 1.0), True),  # a pixel beyond the border
        ((100, 100, 500, 500), (1.0, 1.0), False),
        ((0.1, 0.1, 0.5, 1.5), (1.0, 1.0), False),
        ((100, 100, 500, 500), (1000.0, 1000.0), True),
        ((0.1, 0.1, 0.5, 0.5), (1000.0, 1000.0), False),
        ((0, 0, 1, 1), (1000.0, 1000.0), True),  # whole numbers: a tiny box at the corner
        ((100, 100, 1500, 500), (1000.0, 1000.0), False),
        ((100, 100, 500, 700), (840.0, 560.0), False),
        ((100, 100, 845, 560), (840.0, 560.0), True),
    ],
)
def test_wrong_spaces_are_recognised(box: tuple[float, ...], size: tuple[float, float], ok: bool) -> None:
    assert in_space(box, size) is ok
