"""Every metric of answers against an independent reading of its definition, and against what it must refuse."""

from __future__ import annotations

import multiprocessing
import random
import re
import string
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import complete_box_iou, distance_box_iou, generalized_box_iou

from tests.random_texts import random_text
from vision_rl.answers.boxes import DISTANCE_CEILING, distance, point_in_polygon
from vision_rl.answers.space import AnswerSpace
from vision_rl.data.row import METRICS as NAMED_BY_ROWS
from vision_rl.errors import UserError
from vision_rl.rewards import METRICS, math_equality, metric, vqa_reward
from vision_rl.rewards.grounding import KINDS as BOX_KINDS
from vision_rl.rewards.grounding import grounding_reward, point_score, ranked_score
from vision_rl.rewards.multiple_choice import alike, multiple_choice, named_choices
from vision_rl.rewards.text_metrics import chart_number
from vision_rl.rewards.vqa import KINDS, answer_metric
from vision_rl.tasks import get_task

WORDS = st.lists(st.sampled_from(["a", "The", "cat", "dog", "2", "2.5", "red,", "an", "cats", "."]), max_size=6)
TEXTS = WORDS.map(" ".join)


@pytest.mark.parametrize(
    ("name", "prediction", "answers", "score"),
    [
        ("exact_match", "The Cat.", ["cat"], 1.0),
        ("exact_match", "cats", ["cat"], 0.0),
        ("exact_match", "", ["the"], 0.0),
        ("exact_match", "A", ["A"], 1.0),
        ("exact_match", "the", ["A"], 0.0),
        ("exact_match", "cat", [], 0.0),
        ("anls", "Hello  World", ["hello world"], 1.0),
        ("anls", "helo world", ["hello world"], 1 - 1 / 11),
        ("anls", "hell", ["hello", "help"], 0.8),
        ("anls", "he", ["hell"], 0.0),  # a distance of exactly one half is too far
        ("anls", "", ["x"], 0.0),
        ("anls", "x" * 10_000_000, ["x"], 0.0),
        ("relaxed_accuracy", "105", ["100"], 1.0),
        ("relaxed_accuracy", "105.1", ["100"], 0.0),
        ("relaxed_accuracy", "1,050", ["1000"], 1.0),
        ("relaxed_accuracy", "$1.02", ["1"], 1.0),
        ("relaxed_accuracy", "45%", ["0.45"], 1.0),
        ("relaxed_accuracy", "45%", ["45%"], 1.0),
        ("relaxed_accuracy", "45", ["45%"], 0.0),  # as the published code has it
        ("relaxed_accuracy", "-10", ["10"], 0.0),
        ("relaxed_accuracy", "0", ["0"], 1.0),
        ("relaxed_accuracy", "0.01", ["0"], 0.0),
        ("relaxed_accuracy", "nan", ["10"], 0.0),
        ("relaxed_accuracy", "inf", ["10"], 0.0),
        ("relaxed_accuracy", "1e309", ["10"], 0.0),
        ("relaxed_accuracy", "yes.", ["Yes"], 1.0),
        ("relaxed_accuracy", "", [""], 0.0),
        ("relaxed_accuracy", "10 20", ["10"], 0.0),
        ("token_f1", "a red cat", ["red dog"], 0.5),
        ("token_f1", "red", ["red"], 1.0),
        ("token_f1", "", ["red"], 0.0),
        ("medical", "Yes, there is.", ["yes"], 1.0),
        ("medical", "No.", ["yes"], 0.0),
        ("medical", "yes or no", ["yes"], 0.0),
        ("medical", "yesterday", ["yes"], 0.0),
        ("medical", "The left lung", ["left lung"], 1.0),
        ("medical", "left lung and heart", ["left lung"], 0.0),
        ("math", "0.5", ["1/2"], 1.0),
        ("math", r"\boxed{\frac{1}{2}}", ["0.5"], 1.0),
        ("math", "1+x", ["x+1"], 1.0),
        ("math", "3", ["4"], 0.0),
        ("math", "(", ["1"], 0.0),
        ("math", "1, 2, 3", ["3"], 0.0),
        ("math", "1 or 2", ["1"], 0.0),
        ("math", "1,000", ["1000"], 1.0),
        ("math", "(1, 2)", ["(1,2)"], 1.0),
        ("math", "", ["1"], 0.0),
        ("math", "x" * 5000, ["1"], 0.0),
        ("math", "__import__('os').system('true')", ["1"], 0.0),
        ("math", "2", ["3 1/2"], 0.0),  # a mixed number
        ("math", "3.5", ["3 1/2"], 1.0),
        ("math", r"\frac{7}{2}", ["3 1/2"], 1.0),
        ("math", r"-3\frac{1}{2}", ["-3.5"], 1.0),
        ("math", "x + 5/2", ["2 1/2 + x"], 1.0),
        ("math", "4:10", ["12:30"], 0.0),  # a clock time
        ("math", "04:10", ["4:10"], 1.0),
        ("math", "4:10 am", ["4:10 pm"], 0.0),
        ("math", "4:6", ["2:3"], 1.0),  # no time: a ratio
        ("math", "6/8/2020", ["3/4/2020"], 0.0),  # a date
        ("math", "06/08/2020", ["6/8/2020"], 1.0),
        ("math", "seat", ["east"], 0.0),  # a word
        ("math", "East", ["east"], 1.0),
        ("math", r"\text{even}", ["even"], 1.0),
        ("math", "no", ["on"], 0.0),
        ("math", "yx", ["xy"], 1.0),  # two variables
        ("math", r"\boxed{50\%}", ["0.5"], 1.0),  # a percentage
        ("math", "0.50", [r"50\%"], 1.0),
        ("math", "50", ["50%"], 1.0),
        ("math", "5%", ["0.5"], 0.0),
        ("math", "1e3", ["1000"], 1.0),
        ("math", "x<3", ["x>3"], 0.0),
        ("relaxed_accuracy", "+3.5", ["3.5"], 1.0),
        ("relaxed_accuracy", "1e3", ["1000"], 1.0),
        ("relaxed_accuracy", "-1.5E-3", ["-0.0015"], 1.0),
        ("relaxed_accuracy", "1_000", ["1000"], 0.0),
        ("medical", "是的", ["是"], 1.0),
        ("medical", "没有。", ["否"], 1.0),
        ("medical", "不是", ["是"], 0.0),
        ("medical", "是的\uff0c有肿瘤", ["是"], 1.0),
        ("medical", "是\uff0c没有", ["是"], 0.0),
        ("medical", "左肺。", ["左肺"], 1.0),
        ("mmmu_open", "3.43", ["3.429"], 1.0),
        ("mmmu_open", "the voltage is 3.43 V", ["3.429"], 1.0),
        ("mmmu_open", "x = 1,200", ["1200"], 1.0),
        ("mmmu_open", "The answer is a red cat", ["Red Cat"], 1.0),
        ("mmmu_open", "3.44", ["3.429"], 0.0),
        ("mmmu_open", "-3.43", ["3.43"], 0.0),
        ("mmmu_open", "b", ["a"], 0.0),
        ("textvqa", "John's pizza", ["johns pizza"], 0.0),
        ("textvqa", "john 's pizza", ["John's, pizza"], 1.0),
        ("textvqa", "1,000", ["1000"], 1.0),
        ("squad_em", "-5", ["5"], 1.0),
        ("squad_f1", "x>0", ["x<0"], 1.0),
    ],
)
def test_answers(name: str, prediction: str, answers: list[str], score: float) -> None:
    assert metric(name).of_answer(prediction, answers) == pytest.approx(score)


OPPOSITES = [
    *[("-5", "5"), ("1.5", "15"), (".5", "5"), ("x>0", "x<0"), ("x > 0", "x < 0"), ("x >= 1", "x <= 1"), ("1/2", "12")],
    *[("y = x - 3", "y = x + 3"), ("4:10", "410"), ("(1, 2)", "(1, -2)"), ("AB > CD", "AB < CD"), ("2^3", "23")],
    *[("H+", "H-"), ("A+", "A-"), ("it is -5 degrees", "it is 5 degrees"), ("\N{MINUS SIGN}5", "5"), ("5-10", "510")],
    *[("-$3", "$3"), ("3 - 2", "3 + 2"), (r"x \leq 5", r"x \geq 5"), ("-x", "x"), ("Cl-", "Cl"), ("2*3", "23")],
]
"""Answers that VQA's and SQuAD's normalisations make one: a mark of theirs changes the value."""


@pytest.mark.parametrize("pair", OPPOSITES)
@pytest.mark.parametrize("name", ["exact_match", "token_f1", "similarity", "medical"])
def test_a_sign_a_point_and_a_comparison_belong_to_the_answer(name: str, pair: tuple[str, str]) -> None:
    score = metric(name).of_answer
    for said, truth in (pair, pair[::-1]):
        assert score(said, [truth]) < 1.0 == score(said, [said]) == score(f"{said}.", [said])


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        *[
            ("+5", "5"),
            ("x>0", "x > 0"),
            ("5 - 10", "5\N{EN DASH}10"),
            ("1,234", "1234"),
            ("\uff0d\uff15", "-5"),
            ("0.5", ".5"),
        ],
        *[
            ("X-ray.", "x-ray"),
            ("Yes!", "yes"),
            ("- cat", "cat"),
            ("> cat", "cat"),
            ("F16", "F-16"),
            ("(1,2)", "(1, 2)"),
        ],
        *[("well-known", "Well-Known"), ("salt + pepper", "salt pepper"), ("**cat**", "cat"), ("U.S.", "us")],
    ],
)
def test_prose_marks_and_ways_of_writing_make_no_difference(said: str, truth: str) -> None:
    assert metric("exact_match").of_answer(said, [truth]) == metric("token_f1").of_answer(said, [truth]) == 1.0


CATS = ["cat", "dark red", "red", "2"]
PETS = ["dog", "cat", "bird"]
LISTED = "A. dog\nB. cat\nC. bird\n"


@pytest.mark.parametrize(
    ("reply", "choices", "named"),
    [
        *[
            (form, CATS, "B")
            for form in ("B", "b", "(B)", "B.", "**B**", "(b)", r"\boxed{B}", "B) dark red", "dark red")
        ],
        *[
            (form, CATS, "B")
            for form in ("The answer is B.", "Answer: B", "B. Dark red", "option B", "The dark red one")
        ],
        ("red", CATS, "C"),
        ("2", CATS, "D"),
        ("A cat", CATS, "A"),
        ("A dog", ["cat", "dog"], "B"),
        ("A cat or a dog", ["cat", "dog"], "AB"),
        ("I think a dog", ["cat", "dog", *"34567", "9", "8"], "B"),
        ("A or B", CATS, "AB"),
        ("A, B, C, D", CATS, "ABCD"),
        ("B, not C", CATS, "BC"),
        ("B. cat", CATS, "AB"),
        ("red or dark red", CATS, "BC"),
        ("E", CATS, ""),
        ("AB", CATS, ""),
        ("", CATS, ""),
        ("B's", CATS, ""),
        ("U.S.A.", CATS, ""),
        ("C", [], "C"),
        ("either C or D", [], "CD"),
        ("a", ["b", "a"], "A"),  # a lone letter is a letter
        *[
            (form, PETS, "B")
            for form in (
                *(
                    "B.cat",
                    "Answer: B.cat",
                    "b.cat",
                    "**B.cat**",
                    "'B'",
                    '"B"',
                    "`B`",
                    "<B>",
                    "\uff22",
                    "\uff08\uff22\uff09",
                    "B\u3002",
                ),
                *(
                    "答案是B",
                    "答案\uff1aB",
                    "选B",
                    "应选B。",
                    "故选 B",
                    "选项B",
                    "B\uff0ccat",
                    "答案是B\uff0c因为",
                    "정답은 B",
                    "답: B",
                    "答えはB",
                ),
                *(
                    r"\boxed{\text{(B)}}",
                    r"$\boxed{B}$",
                    "**Answer:** B",
                    "Answer: **(B)**",
                    "the answer is b.",
                    "I choose B",
                ),
                *("The correct option is (B).", "The answer is B because a dog has no whiskers", "b) cat", "(b) cat"),
                *(f"{LISTED}The answer is (B).", f"{LISTED}\nB", "(A) dog (B) cat (C) bird\nAnswer: B. cat"),
                *("B\n\nExplanation: A cat has whiskers.", "Therefore, the answer is cat."),
            )
        ],
        ("B、dark red", CATS, "B"),
        ("B、red", ["green", "red", "dark red"], "B"),
        (LISTED, PETS, "ABC"),
        ("A, B", ["w", "x", "y", "z"], "AB"),
        ("A, B", ["A", "B", "C", "D"], "AB"),  # without articles it would be "b"
        ("A and B", PETS, "AB"),
        ("The answer is A or B", PETS, "AB"),
        ("The answer is A. The answer is B.", PETS, "AB"),
        ("答案是A或B", PETS, "AB"),
        ("The answer is a bird", PETS, "C"),
        ("The answer is not A but B", PETS, "B"),
    ],
)
def test_which_choices_a_reply_names(reply: str, choices: list[str], named: str) -> None:
    assert named_choices(reply, choices) == set(named)


@pytest.mark.parametrize(
    "choices",
    [
        *[["-5", "5"], ["x>0", "x<0"], ["+1", "-1"], ["(1, 2)", "(1, -2)"], ["AB > CD", "AB < CD"], ["5!", "5"]],
        *[["y = x - 3", "y = x + 3"], ["H+", "H-"], ["1.5", "15"], ["x\u00b2", "x2"], ["mL", "ML"], ["$x>0$", "$x<0$"]],
        *[
            ["[0, 1]", "(0, 1)"],
            ["f'(x)", "f(x)"],
            ["A+", "A-"],
            ["10", "-10", "100"],
            ["none", "0"],
            ["the cat", "cat"],
        ],
        *[["x = -1", "x = 1"], ["I and II only", "II and III only", "I, II and III"], ["5%", "5"], ["Aa", "aa", "AA"]],
    ],
)
def test_choices_that_a_normalisation_makes_one_are_kept_apart(choices: list[str]) -> None:
    for letter, choice in zip("ABC", choices, strict=False):
        for form in (
            choice,
            f"{letter}. {choice}",
            f"{letter}.{choice}",
            f"({letter}) {choice}",
            f"**{letter}. {choice}**",
        ):
            assert named_choices(form, choices) == {letter}, form
            assert named_choices(f"The answer is {form}.", choices) == {letter}, form
        assert multiple_choice(choice, [choice], choices) == multiple_choice(letter, [choice], choices) == 1.0
        others = [multiple_choice(choice, [other], choices) for other in choices if other != choice]
        assert not any(others)
    assert alike(choices) == [] and alike(["cat", "dog", "cat"]) == ["A", "C"]
    assert named_choices("cat", ["cat", "dog", "cat"]) == set() and named_choices("C", ["cat", "dog", "cat"]) == {"C"}


def test_multiple_choice_pays_one_choice_only() -> None:
    score = METRICS["multiple_choice"].of_answer
    assert score("B", ["B"], CATS) == score("dark red", ["B"], CATS) == score("b", ["dark red"], CATS) == 1.0
    assert score("A or B", ["B"], CATS) == score("A", ["B"], CATS) == score("", ["B"], CATS) == 0.0
    assert score("A or B", ["A", "B"], CATS) == 0.0  # alternatives are no licence to name both
    assert score("yes", ["Yes"], []) == 1.0
    reward = vqa_reward("A dog", ["B"], metric="multiple_choice", choices=["cat", "dog"])
    assert reward.value == reward.components["multiple_choice"] == 1.0


def squad(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, truth: str) -> float:
    left, right = squad(prediction).split(), squad(truth).split()
    same = sum((Counter(left) & Counter(right)).values())
    return 0.0 if not same else 2 * (same / len(left)) * (same / len(right)) / (same / len(left) + same / len(right))


def levenshtein(a: str, b: str) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j]))
    return int(table[-1, -1])


def pix2struct_relaxed(target: str, prediction: str) -> bool:
    def number(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
        except ValueError:
            return None

    said, truth = number(prediction), number(target)
    if said is not None and truth:
        return abs(said - truth) / abs(truth) <= 0.05
    return prediction.lower() == target.lower()


@given(prediction=TEXTS, truths=st.lists(TEXTS, min_size=1, max_size=3))
def test_text_metrics_equal_their_definitions(prediction: str, truths: list[str]) -> None:
    if all(squad(text) for text in (prediction, *truths)):
        assert METRICS["squad_em"].score(prediction, truths) == float(squad(prediction) in map(squad, truths))
        expected = max(squad_f1(prediction, truth) for truth in truths)
        assert METRICS["squad_f1"].score(prediction, truths) == pytest.approx(expected)
    scores = []
    for truth in truths:
        left, right = (" ".join(text.strip().lower().split()) for text in (prediction, truth))
        away = levenshtein(left, right) / max(len(left), len(right)) if left or right else 1.0
        scores.append(1 - away if away < 0.5 else 0.0)
    assert METRICS["anls"].score(prediction, truths) == pytest.approx(max(scores))


@given(
    said=st.decimals(-999, 999, places=2).map(str),
    truth=st.decimals(-999, 999, places=2).map(str),
    percent=st.booleans(),
)
def test_relaxed_accuracy_equals_pix2struct(said: str, truth: str, percent: bool) -> None:
    said, truth = (f"{said}%", f"{truth}%") if percent else (said, truth)
    a, b = float(said.rstrip("%")), float(truth.rstrip("%"))
    if b and abs(abs(a - b) - 0.05 * abs(b)) > 1e-9:  # off the border, where floating point decides
        assert METRICS["relaxed_accuracy"].score(said, [truth]) == pix2struct_relaxed(truth, said)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("12", 12.0),
            ("-0.5", -0.5),
            ("1,234.5", 1234.5),
            ("$ 3.20", 3.2),
            ("-$3", -3.0),
            ("45 %", 0.45),
            ("\N{MINUS SIGN}2", -2.0),
            ("+3.5", 3.5),
            ("1e3", 1000.0),  # pix2struct reads it as float() does
        ],
        *[
            (text, None)
            for text in ("1,23", "12 m", "--1", "1e309", "nan", "inf", "1_0", "%", "", "5%%", "$-3", "٣", "1" * 40)
        ],
    ],
)
def test_number_forms_of_chartqa(text: str, value: float | None) -> None:
    assert chart_number(text) == (None if value is None else pytest.approx(value))


@given(boxes=st.lists(st.tuples(*[st.floats(0.1, 0.4)] * 4), min_size=2, max_size=2))
def test_the_iou_family_equals_torchvision(boxes: list[tuple[float, float, float, float]]) -> None:
    a, b = ((x, y, x + w, y + h) for x, y, w, h in boxes)
    first, second = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    for name, reference in (("giou", generalized_box_iou), ("diou", distance_box_iou), ("ciou", complete_box_iou)):
        expected = max(float(reference(first, second)[0, 0]), -1.0)
        assert METRICS[name].score([a], [b]) == pytest.approx(expected, abs=1e-4)  # torchvision adds an epsilon


def test_referring_expressions_and_points() -> None:
    true = [(0.0, 0.0, 0.4, 0.4)]
    assert METRICS["acc_at_iou_0.5"].score([(0.0, 0.0, 0.4, 0.2)], true) == 1.0
    assert METRICS["acc_at_iou_0.5"].score([(0.0, 0.0, 0.4, 0.19)], true) == 0.0
    assert METRICS["point_in_box"].score([(0.4, 0.4, 0.4, 0.4)], true) == 1.0
    assert METRICS["point_in_box"].score([(0.41, 0.4, 0.41, 0.4)], true) == 0.0
    assert grounding_reward(AnswerSpace().write(true), true, kind="acc_at_iou_0.5").value == 1.0


def test_distance_pays_a_hit_fully_and_a_miss_below_its_ceiling() -> None:
    true = (0.4, 0.4, 0.6, 0.6)
    points = {(0.4, 0.6): 1.0, (0.5, 0.5): 1.0, (0.3, 0.5): DISTANCE_CEILING * (1 - 0.1 / 2**0.5)}
    for (x, y), value in points.items():
        assert distance((x, y, x, y), true) == pytest.approx(value)
    assert distance((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("points", "value"),
    [
        ([(0.2, 0.2)], 1.0),
        ([(0.9, 0.1)], -1.0),
        ([(0.2, 0.2), (0.9, 0.1)], 1 / 2**0.5),
        ([(0.9, 0.1), (0.2, 0.2)], 0.5),
        ([(0.9, 0.1), (0.9, 0.9), (0.2, 0.2), (0.5, 0.6)], 1 / 12**0.5),
        ([(0.9, 0.1), (0.9, 0.9), (0.6, 0.6)], -1 / 3),
        ([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], -1.0),
        ([(0.2, 0.2)] * 3, -1.0),
    ],
)
def test_points_by_rank_as_infigui_g1(points: list[tuple[float, float]], value: float) -> None:
    boxes = [(x, y, x, y) for x, y in points]
    assert ranked_score(boxes, [(0.15, 0.15, 0.25, 0.25)]) == pytest.approx(value)


def test_polygons_are_the_targets_of_points() -> None:
    triangle = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert point_in_polygon(0.2, 0.2, triangle) and point_in_polygon(0.5, 0.5, triangle)
    assert not point_in_polygon(0.6, 0.6, triangle)
    box, hit, miss = (0.0, 0.0, 1.0, 1.0), (0.2,) * 4, (0.6,) * 4
    for point, value in ((hit, 1.0), (miss, 0.0)):
        reply = AnswerSpace("point").write([point])
        scored = grounding_reward(reply, [box], AnswerSpace("point"), kind="point", polygons=[triangle])
        assert scored.value == value
    assert point_score([hit, miss], [box], 0, [triangle]) == 0.5
    assert point_score([], [box], 1, [triangle]) == 0.0


def test_metrics_are_found_by_name() -> None:
    with pytest.raises(UserError, match=r"metric 'anlz' does not exist; did you mean anls\?"):
        metric("anlz")
    assert set(NAMED_BY_ROWS) <= set(METRICS)
    assert set(KINDS) <= set(get_task("vqa").rewards) and set(BOX_KINDS) == set(get_task("grounding").rewards)
    assert answer_metric("vqa", "anls") == "anls" and answer_metric("similarity", "anls") == "similarity"
    reward = vqa_reward("helo", ["hello"], metric="anls")
    assert reward.value == reward.components["anls"] == 0.8 and reward.components["accuracy"] == 0.0


@pytest.mark.slow
def test_every_metric_is_total_and_bounded() -> None:
    generator = random.Random(3)
    quick = [name for name in KINDS if name != "math"]
    for i in range(10_000):
        text, answers = random_text(generator), [random_text(generator) for _ in range(i % 3)]
        for name in quick:
            assert 0.0 <= metric(name).of_answer(text, answers, answers) <= 1.0
    for _ in range(200):
        assert metric("math").of_answer(random_text(generator), [random_text(generator)]) in (0.0, 1.0)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("token_f1", "squad_f1", "mmmu_open")])
def test_listing_candidates_never_beats_naming_one(name: str) -> None:
    words = ["red", "blue", "green", "yellow"]
    score = metric(name).of_answer
    for mark in (" ", ", ", " or ", "/", "\n"):
        listed = [score(mark.join(words), [word], words) for word in words]
        assert sum(listed) / len(words) <= 1 / len(words) + 1e-9, mark
    for gamed in ("token_f1", "squad_f1", "mmmu_open"):
        assert METRICS[gamed].hole and METRICS[gamed].score(" ".join(words), ["red"]) > 1 / len(words)


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["SECONDS", "WALL_SECONDS"])
def test_math_is_stopped_in_time_in_threads_and_goes_on(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the helper's own clock, or by its end; the second limit leaves the helper no time for the first."""
    math_equality._HELPER.stop()
    assert metric("math").of_answer("2/8", ["0.25"]) == 1.0
    if limit == "SECONDS":
        math_equality._HELPER.stop()
    monkeypatch.setattr(math_equality, limit, 0.5)
    slow = "$(x+y+z+w)^{300}(x-y)^{99}$", ["$(x-y)^{99}(z+y+x+w)^{299}(x+y+z+w)+1$"]
    with ThreadPoolExecutor(2) as pool:
        assert pool.submit(metric("math").of_answer, *slow).result(timeout=120) == 0.0
        ended = math_equality._HELPER._process is None
        assert ended == (limit == "WALL_SECONDS")
        monkeypatch.undo()
        assert pool.submit(metric("math").of_answer, "2/4", ["0.5"]).result() == 1.0


def _in_child(queue: multiprocessing.Queue[float]) -> None:
    scores: list[float] = []
    thread = threading.Thread(target=lambda: scores.append(metric("math").of_answer("3/6", ["0.5"])))
    thread.start()
    thread.join()
    queue.put(scores[0])


def test_math_works_in_a_thread_of_a_forked_process() -> None:
    assert metric("math").of_answer("4/8", ["0.5"]) == 1.0  # the parent's helper is running
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[float] = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 1.0
    child.join(10)
    assert metric("math").of_answer("5/10", ["0.5"]) == 1.0


def mathvista_script(said: str, answer: str, choices: list[str], kind: str, precision: float | None) -> bool:
    """What `normalize_extracted_answer` and `safe_equal` of MathVista's calculate_score.py say, written from their text."""
    if choices:
        letters = re.findall(r"\(([a-zA-Z])\)", said)
        said = letters[0].upper() if letters else said.strip()
        options = string.ascii_uppercase[: len(choices)]
        said = choices[options.index(said)] if said in options else min(choices, key=lambda c: levenshtein(said, c))
        return said == choices[options.index(answer)]
    try:
        if kind == "integer":
            said = str(int(float(said)))
        elif kind == "float":
            said = str(round(float(said), int(precision or 0)))
    except (ValueError, OverflowError):
        return False
    return said == answer


def test_two_thousand_rows_score_as_mathvistas_script() -> None:
    generator = random.Random(7)
    words = ["triangle", "square", "12", "12.5", "yes", "no", "Tokyo", "Kyoto", "3/11", "8/11"]
    differing = []
    for _ in range(2000):
        kind = generator.choice(["integer", "float", "list", "choice"])
        choices, precision, answer = [], None, ""
        if kind == "choice":
            choices = generator.sample(words, 4)
            answer = generator.choice("ABCD")
            text = choices["ABCD".index(generator.choice("ABCD"))]
            said = generator.choice(
                [generator.choice("ABCD"), f"({generator.choice('ABCD')}) {text}", text, text[:-1] + "x"]
            )
            if said.startswith("("):  # the letter decides there, the letter and its text here
                said = f"({'ABCD'[choices.index(text)]}) {text}"
        elif kind == "list":
            answer, said = (str(generator.sample(range(4), 2)) for _ in range(2))
        else:
            precision = float(generator.choice([1, 2]))
            number = generator.uniform(-20, 20)
            answer = str(int(number)) if kind == "integer" else str(round(number, int(precision)))
            near = number + generator.choice([0, 0.004, -0.04, 0.4, 1])
            said = generator.choice(
                [str(near), f"{near:.3f}", f"{near:.1f}", str(round(near)), f"{near:e}", "nan", "many"]
            )
        meta = {"answer_type": "text" if choices else kind, "precision": precision}
        got = METRICS["mathvista"].of_answer(said, [answer], choices, meta)
        if got != mathvista_script(said, answer, choices, kind, precision):
            differing.append((said, answer, choices, meta))
    assert not differing


@pytest.mark.parametrize(
    ("said", "answer", "meta", "score"),
    [
        ("1.26", "1.3", {"answer_type": "float", "precision": 1.0}, 1.0),
        ("1.2", "1.3", {"answer_type": "float", "precision": 1.0}, 0.0),
        ("5.7", "5", {"answer_type": "integer"}, 1.0),
        ("The answer is 5.", "5", {"answer_type": "integer"}, 1.0),
        ("$1,200", "1200", {"answer_type": "integer"}, 1.0),
        ("5 or 6", "5", {"answer_type": "integer"}, 0.0),  # two answers
        ("3 + 2 = 5", "5", {"answer_type": "integer"}, 1.0),
        ("[2007,2008]", "[2007, 2008]", {"answer_type": "list"}, 1.0),
        ("[2008, 2007]", "[2007, 2008]", {"answer_type": "list"}, 0.0),
        ("1.26", "1.3", {}, 1.0),  # the form of the true answer, where the row says none
        ("", "5", {"answer_type": "integer"}, 0.0),
    ],
)
def test_mathvista_rounds_as_its_rows_say(said: str, answer: str, meta: dict[str, object], score: float) -> None:
    assert vqa_reward(said, [answer], metric="mathvista", meta=meta).components["mathvista"] == score


def test_mathvista_takes_the_nearest_choice_and_no_two() -> None:
    score = METRICS["mathvista"].of_answer
    assert score("Tokio", ["B"], ["Osaka", "Tokyo"]) == score("(B) Tokyo", ["B"], ["Osaka", "Tokyo"]) == 1.0
    assert score("A or B", ["B"], ["Osaka", "Tokyo"]) == score("", ["A"], ["a", "Tokyo"]) == 0.0
