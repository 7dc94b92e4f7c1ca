"""The VQA accuracy and its strict form of 2021, each against a slow reading of its rules; similarity; the two terms."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.random_texts import random_text
from vision_rl.errors import UserError
from vision_rl.rewards import vqa_accuracy, vqa_reward
from vision_rl.rewards.vqa import answer_similarity, best_answer, by_frequency, normalise_answer, official_2021_accuracy
from vision_rl.rewards.vqa_accuracy import CONTRACTIONS
from vision_rl.settings import Terms
from vision_rl.types import Reward

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


def slow_normalise(text: str) -> str:
    """The rules of facts about the official code, one by one, without a short cut."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in MARKS:
        delete = f"{mark} " in text or f" {mark}" in text or re.search(r"(\d)(\,)(\d)", text) is not None
        out = out.replace(mark, "" if delete else " ")
    out = re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=32)
    words = [NUMBERS.get(word, word) for word in out.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def slow_accuracy(prediction: str, answers: list[str], *, strict: bool) -> float:
    """The mean over the humans of min(1, matches among the other nine / 3); strict: as the code of 2021 has it."""
    answers = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    prediction = prediction.replace("\n", " ").replace("\t", " ").strip()
    if strict and len(set(answers)) > 1:
        answers, prediction = [slow_normalise(answer) for answer in answers], slow_normalise(prediction)
    elif not strict:
        answers = [slow_normalise(answer) or answer.lower() for answer in answers]
        prediction = slow_normalise(prediction) or prediction.lower()
    scores = []
    for left_out in range(len(answers)):
        others = [answer for index, answer in enumerate(answers) if index != left_out]
        scores.append(min(1.0, others.count(prediction) / 3))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (9, 1.0), (10, 1.0)]
)
def test_accuracy_by_number_of_matches(matches: int, accuracy: float) -> None:
    answers = ["yes"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_accuracy("yes", answers) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Red", "red"),
        ("a red car", "red car"),
        ("the an a", ""),
        ("none", "0"),
        ("Zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # the key has a capital, the text has none any more
        ("let's", "let's"),
        ("t-shirt", "t shirt"),  # no space beside the mark: it becomes one
        ("t - shirt", "t shirt"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits deletes every mark
        ("x/-b c-d", "x b c d"),  # the space that the slash leaves behind is not beside the dash yet
        ("x-y and -", "xy and"),  # one dash beside a space deletes all dashes
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("u.s.a.", "usa"),
        ("." * 40, "." * 8),  # at most 32 periods go
        ("it's", "it's"),
        ("10:30", "10:30"),
        ("what?!", "what"),
        ("  a \n b\tc ", "b c"),
        ("ÉCOLE", "école"),
    ],
)
def test_quirks_of_the_normalisation(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal == slow_normalise(text)


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy", "strict"),
    [
        ("yes", ["yes"] * 10, 1.0, 1.0),
        ("yes\n", [" yes"] * 10, 1.0, 1.0),
        ("Yes", ["yes"] * 10, 1.0, 0.0),
        ("yes.", ["yes"] * 10, 1.0, 0.0),
        ("A dog", ["dog"] * 10, 1.0, 0.0),
        ("Two", ["2"] * 10, 1.0, 0.0),
        ("dog", ["a dog"] * 10, 1.0, 0.0),
        ("Yes.", ["yes"] * 9 + ["no"], 1.0, 1.0),
        ("no", ["yes"] * 10, 0.0, 0.0),
        # Where nothing is left after normalising, the letters decide.
        ("", ["a"] * 10, 0.0, 0.0),
        ("the", ["A"], 0.0, 0.0),
        ("a", ["A"], 1.0, 1.0),
        ("?", ["."], 0.0, 0.0),
    ],
)
def test_both_sides_are_normalised_always_but_in_the_strict_code(
    prediction: str, answers: list[str], accuracy: float, strict: float
) -> None:
    assert vqa_accuracy(prediction, answers) == accuracy
    assert official_2021_accuracy(prediction, answers) == strict
    assert vqa_reward(prediction or " ", answers).components["official_2021"] == strict
    assert vqa_reward(prediction, answers, kind="official_2021").components["accuracy"] == accuracy


def test_the_strict_code_is_a_reward_too() -> None:
    assert vqa_reward("Yes", ["yes"] * 10, kind="official_2021").value == 0.0
    assert vqa_reward("Yes", ["yes"] * 10).value == 1.0


def test_answers_that_normalise_alike_are_one() -> None:
    assert by_frequency(["Red"] * 3 + ["red."] * 3 + ["blue"] * 4) == [("Red", 6), ("blue", 4)]
    assert vqa_reward("red", ["Red"] * 3 + ["red."] * 3 + ["blue"] * 4, kind="similarity").value == 1.0


def test_the_contraction_table() -> None:
    assert len(CONTRACTIONS) == 120
    assert sum(key == value for key, value in CONTRACTIONS.items()) == 2
    assert all(key.replace("'", "") == value.replace("'", "") for key, value in CONTRACTIONS.items())
    assert {"couldntve", "ill", "cant"} & set(CONTRACTIONS) == {"cant"}


WORDS = [*list(CONTRACTIONS)[::7], *NUMBERS, *MARKS, "a", "The", "cat", "1,000", "3.5", "U.S.", "it's", ".", "\n", "É"]
answer_texts = st.lists(st.sampled_from([*WORDS, " ", "  "]), max_size=6).map("".join) | st.text(max_size=12)


@given(pool=st.lists(answer_texts, min_size=1, max_size=4), picks=st.lists(st.integers(0, 3), min_size=10, max_size=10))
def test_accuracy_equals_the_slow_reading(pool: list[str], picks: list[int]) -> None:
    answers = [pool[pick % len(pool)] for pick in picks]
    for prediction in [*pool, pool[0].upper(), f"{pool[0]}.", ""]:
        assert vqa_accuracy(prediction, answers) == pytest.approx(slow_accuracy(prediction, answers, strict=False))
        strict = slow_accuracy(prediction, answers, strict=True)
        assert official_2021_accuracy(prediction, answers) == pytest.approx(strict)


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("red", ["red"], 1.0),
        ("Red.", ["red"], 1.0),
        ("two", ["2", "a pair"], 1.0),
        ("pair", ["2", "a pair"], 1.0),
        ("three", ["2", "a pair"], 0.0),
        ("red", [], 0.0),
    ],
)
def test_fewer_than_ten_answers_are_alternatives(prediction: str, answers: list[str], accuracy: float) -> None:
    assert vqa_accuracy(prediction, answers) == accuracy


def test_best_answer() -> None:
    assert best_answer(["a dog"] * 2 + ["cat"] * 3 + [f"x{i}" for i in range(5)]) == ("cat", pytest.approx(0.9))
    assert best_answer(["red"]) == ("red", 1.0)
    assert best_answer([]) == ("", 0.0)


@pytest.mark.parametrize(
    ("predicted", "expected", "similarity"),
    [
        ("black", "black", 1.0),
        ("The Black.", "black", 1.0),
        ("a black cat", "black", 0.8),
        ("blackboard", "black", 0.0),
        ("black", "black cat", 0.5),
        ("white cat", "black cat", 1 / 3),
        ("", "black", 0.0),
        ("black", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_similarity(predicted: str, expected: str, similarity: float) -> None:
    assert answer_similarity(predicted, expected) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("reply", "answers", "value"),
    [
        ("black", ["black"], 1.0),
        ("black cat", ["black"], 0.4),
        ("black white red green", ["black"], 0.2),
        ("black", ["white"] * 4 + ["black"] * 6, 1.0),
        ("white", ["white"] * 4 + ["black"] * 6, 0.0),
        ("white", ["white", "black"], 1.0),
    ],
)
def test_similarity_reward_is_cut_by_brevity(reply: str, answers: list[str], value: float) -> None:
    assert vqa_reward(reply, answers, kind="similarity").value == pytest.approx(value)


@given(
    predicted=st.lists(st.sampled_from(["red", "blue", "green", "cat", "dog"]), min_size=1, max_size=6),
    candidates=st.lists(st.sampled_from(["red", "blue", "green", "cat", "dog"]), min_size=1, max_size=5, unique=True),
)
def test_listing_never_beats_naming_one_at_random(predicted: list[str], candidates: list[str]) -> None:
    """Any list of words gets at most 1/k on average, if one of k candidates is right with equal chances."""
    for kind in ("vqa", "official_2021", "similarity"):
        rewards = [vqa_reward(" ".join(predicted), [right] * 10, kind=kind).value for right in candidates]
        assert sum(rewards) / len(candidates) <= 1 / len(candidates) + 1e-9


@pytest.mark.parametrize(
    ("reply", "ok"),
    [
        ("yes", True),
        ("<think>hm</think>yes", True),
        ("<answer>yes</answer>", True),
        ("", False),
        ("<think>yes</think>", False),
        ("<think>yes", False),
        ("yes <think>", False),
        ("<answer>no</answer><answer>yes</answer>", False),
    ],
)
def test_format_term(reply: str, ok: bool) -> None:
    reward = vqa_reward(reply, ["yes"] * 9 + ["no"])
    assert reward.components["format/ok"] == ok
    assert reward.value == pytest.approx(reward.components["accuracy"] - (0 if ok else 0.1))


def test_length_term_grows_from_free_to_limit() -> None:
    terms = Terms(length_price=0.5, free_chars=10, limit_chars=30)
    values = [vqa_reward("yes".ljust(n), ["yes"], terms=terms).value for n in (3, 10, 20, 30, 1000)]
    assert values == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])


def test_brief_well_formed_replies_get_the_metric_itself() -> None:
    answers = ["yes"] * 3 + ["no"] * 7
    assert vqa_reward("Yes", answers).value == vqa_accuracy("Yes", answers) == pytest.approx(0.9)


def test_stated_confidence_is_a_component() -> None:
    assert vqa_reward("yes <confidence>0.7</confidence>", ["yes"]).components["confidence"] == 0.7
    assert "confidence" not in vqa_reward("yes", ["yes"]).components


@pytest.mark.parametrize("kind", ["judge", "iou", ""])
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match="use vqa, official_2021, textvqa, exact_match"):
        vqa_reward("yes", ["yes"], kind=kind)


def test_rewards_must_be_finite() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Reward(bad)
        with pytest.raises(ValueError, match="finite"):
            Reward(0.0, {"x": bad})


@pytest.mark.slow
def test_ten_thousand_random_strings() -> None:
    generator = random.Random(1)
    for _ in range(10_000):
        text, answers = random_text(generator), [random_text(generator) for _ in range(generator.choice([0, 1, 3, 10]))]
        for kind in ("vqa", "official_2021", "similarity"):
            assert -0.3 <= vqa_reward(text, answers, kind=kind).value <= 1.0
