"""The tiny model and its tasks: what the rest of the project, and the claim that only a seeing actor learns, rest on."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import vision_rl.tasks
from scripts.tiny_models import __main__ as recipe
from scripts.tiny_models import warmstart
from scripts.tiny_models.alignment import FACETS, token_labels
from scripts.tiny_models.model import SPECIAL_TOKENS, build_model, build_processor, round_weights, save_checkpoint
from scripts.tiny_models.warmstart import Lesson, chat_prompt, reply_text, supervised_batch, user_text
from vision_rl.answers.space import AnswerSpace
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.rewards import grounding_reward, vqa_accuracy, vqa_reward
from vision_rl.tasks import get_task
from vision_rl.tiny import checkpoint_dir, write_tasks
from vision_rl.tiny.scenes import (
    COLORS,
    COUNTS,
    ELEMENTS,
    PICTURE_SIZE,
    SCREEN_SIZE,
    SHAPES,
    TASKS,
    WORDINGS,
    draw_example,
    unit_box,
)

SIZES = {"train": 40, "val": 24, "test": 16}


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(checkpoint_dir())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint_dir(), dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=TASKS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Path]]:
    return request.param, write_tasks(tmp_path_factory.mktemp("tasks"), request.param, **SIZES)


def examples(task: str, number: int, seed: int = 5) -> list[Any]:
    rng = random.Random(seed)
    return [draw_example(task, rng) for _ in range(number)]


# The checkpoint


def test_the_checkpoint_is_small_and_says_what_it_is(model: Any) -> None:
    files = [path for path in checkpoint_dir().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    config = json.loads((checkpoint_dir() / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert config["dtype"] == "float32"


def test_weights_are_stored_in_bfloat16_and_upcast_exactly(model: Any) -> None:
    stored = load_file(checkpoint_dir() / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = model.state_dict()
    by_suffix = {name.removeprefix("model."): tensor for name, tensor in loaded.items()}
    for name, tensor in stored.items():
        suffix = name.removeprefix("model.")
        found = by_suffix.get(suffix, by_suffix.get("language_model." + suffix))
        assert found is not None, name
        assert torch.equal(tensor.float(), found)


def test_the_checkpoint_is_what_the_recipe_builds(processor: Any, model: Any) -> None:
    built = build_processor()
    assert built.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert built.chat_template == processor.chat_template
    shapes = {name: tuple(tensor.shape) for name, tensor in build_model(built.tokenizer, 0).state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_saving_keeps_rounded_weights_to_the_bit(tmp_path: Path) -> None:
    built = build_processor()
    fresh = build_model(built.tokenizer, 3)
    round_weights(fresh)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    save_checkpoint(fresh, built, tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)


# Tokens and chat


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("<bbox>[0.10, 0.25, 0.50, 1.00]</bbox>", 9), ("red", 1), (" triangle", 1), ("4", 1), ("0.00", 1), ("0.99", 1)],
)
def test_answers_take_few_tokens(processor: Any, text: str, tokens: int) -> None:
    assert len(processor.tokenizer(text).input_ids) == tokens


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = _tokenizer()
    if any(token in text for token in SPECIAL_TOKENS):
        return
    assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text


_TOKENIZERS: list[Any] = []


def _tokenizer() -> Any:
    if not _TOKENIZERS:
        _TOKENIZERS.append(build_processor().tokenizer)
    return _TOKENIZERS[0]


@pytest.mark.parametrize("task", TASKS)
def test_prompts_stay_within_eighty_tokens(processor: Any, task: str) -> None:
    for example in examples(task, 40):
        prompt = chat_prompt(processor, user_text(example))
        inputs = processor(text=[prompt], images=[example.image], return_tensors="pt")
        width, height = example.image.size
        assert inputs["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]
        assert inputs["input_ids"].shape[1] <= 80


IMAGE = {"type": "image"}
CHATS: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    (
        [{"role": "user", "content": [IMAGE, {"type": "text", "text": "Hi"}]}],
        {"add_generation_prompt": True},
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        {},
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    ),
    (
        [
            {"role": "user", "content": [IMAGE, {"type": "image_url", "image_url": {"url": "file:///x.png"}}]},
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": [{"type": "text", "text": "Again."}, {"type": "video"}]},
        ],
        {},
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
        "<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nAgain.<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n",
    ),
    (
        [
            {"role": "user", "content": "Zoom."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "zoom", "arguments": {"by": 2}}}],
            },
            {"role": "tool", "content": [IMAGE, {"type": "text", "text": "done"}]},
        ],
        {},
        "<|im_start|>user\nZoom.<|im_end|>\n<|im_start|>assistant\n"
        '\n<tool_call>\n{"name": "zoom", "arguments": {"by": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n<|vision_start|><|image_pad|><|vision_end|>done\n</tool_response><|im_end|>\n",
    ),
    (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        {"tools": [{"name": "zoom"}]},
        '<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n{"name": "zoom"}\n</tools>\n'
        'Reply <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call> to call one.<|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n",
    ),
]


@pytest.mark.parametrize(("messages", "options", "text"), CHATS, ids=["image", "system", "turns", "calls", "tools"])
def test_chat_template(processor: Any, messages: list[Any], options: dict[str, Any], text: str) -> None:
    assert processor.apply_chat_template(messages, tokenize=False, **options) == text


def test_vllm_hands_content_parts_to_the_template(processor: Any) -> None:
    hf = pytest.importorskip("vllm.renderers.hf", exc_type=ImportError)
    assert hf._detect_content_format(processor.chat_template, default="string") == "openai"


# Forbidden tokens


def test_forbidden_tokens_are_the_vision_placeholders(tiny_processor: Any) -> None:
    names = tiny_processor.tokenizer.convert_ids_to_tokens(forbidden_token_ids(tiny_processor))
    assert set(names) == {"<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"}


def forbidden_mass(model: Any, processor: Any, seed: int) -> float:
    """The largest probability of a forbidden token after any prefix of random text, and of both tasks' prompts."""
    forbidden = forbidden_token_ids(processor)
    generator = torch.Generator().manual_seed(seed)
    words = min(processor.tokenizer.all_special_ids)
    noise = torch.randint(0, words, (64, 48), generator=generator)
    lessons = [Lesson(e, user_text(e), reply_text(e.answer)) for task in TASKS for e in examples(task, 16, seed)]
    batch = supervised_batch(processor, lessons)
    with torch.no_grad():
        logits = [model(input_ids=noise).logits, model(**{k: v for k, v in batch.items() if k != "labels"}).logits]
    return max(part.softmax(-1)[..., forbidden].max().item() for part in logits)


def test_forbidden_tokens_are_never_sampled(model: Any, processor: Any) -> None:
    assert forbidden_mass(model, processor, seed=1) < 1e-9


# Tasks on disk


def test_rows_are_valid_and_point_to_their_pictures(written: tuple[str, dict[str, Path]]) -> None:
    task, paths = written
    for split, path in paths.items():
        rows = read_rows(path, task=task)
        assert len(rows) == SIZES[split]
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            with Image.open(row["image_paths"][0]) as image:
                assert image.format == "PNG"
                assert [list(image.size)] == row["image_sizes"]


def test_no_picture_appears_twice(written: tuple[str, dict[str, Path]]) -> None:
    pixels = []
    for path in written[1].values():
        for row in read_rows(path):
            with Image.open(row["image_paths"][0]) as image:
                pixels.append(hashlib.sha256(image.tobytes()).hexdigest())
    assert len(set(pixels)) == len(pixels) == sum(SIZES.values())


def test_equal_pictures_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = examples("vqa", 6)
    monkeypatch.setattr("vision_rl.tiny.tasks.draw_example", lambda task, rng: pool[rng.randrange(len(pool))])
    paths = write_tasks(tmp_path, "vqa", train=2, val=2, test=2)
    images = [Path(row["image_paths"][0]).read_bytes() for path in paths.values() for row in read_rows(path)]
    assert len(set(images)) == 6


TASK_FILE = """
import random
import re
from pathlib import Path
from PIL import Image
from vision_rl.tasks import Task

async def answer(task, llm):
    raise NotImplementedError

def draw(rng):
    {drawing}

TASK = Task(name="{name}", answer=answer, synthetic=draw)
"""
DOTS = 'return Image.new("L", (1 + rng.randrange({pictures}), 8)), {{"question": "{question}", "answers": ["a"]}}'
"""Pictures that differ in their width alone."""


def task_file(folder: Path, name: str, drawing: str) -> str:
    """The spec of a task of the test's own, loaded anew."""
    vision_rl.tasks._loaded.pop(name, None)
    (folder / f"{name}.py").write_text(TASK_FILE.format(name=name, drawing=drawing))
    return get_task(str(folder / f"{name}.py")).name


@pytest.mark.parametrize(
    ("pictures", "shares"), [(640, (384, 128, 128)), (381, (229, 76, 76)), (21, (13, 4, 4)), (20, (12, 4, 4))]
)
def test_a_task_with_few_pictures_trains_on_what_there_is(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    pictures: int,
    shares: tuple[int, ...],
) -> None:
    """With no bound this drew for ever; here the width is counted, so that every picture there is comes up."""
    monkeypatch.setattr("vision_rl.tiny.tasks.PATIENCE", 20 * pictures)
    task = task_file(tmp_path, "few", DOTS.format(pictures=pictures, question="q"))
    for _ in range(2):  # the second time it is read from the disk, and said again
        paths = write_tasks(tmp_path / "data", task)
        rows = {split: read_rows(path) for split, path in paths.items()}
        assert tuple(map(len, rows.values())) == shares
        widths = [row["image_sizes"][0][0] for part in rows.values() for row in part]
        assert sorted(widths) == list(range(1, pictures + 1)), "each picture once, in one split"
        said = capsys.readouterr().err
        assert (said == "") == (pictures == 640)
        if said:
            assert f"draws {pictures} different pictures, 640 were wanted: {' / '.join(map(str, shares))} rows" in said


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        (
            DOTS.format(pictures=19, question="q"),
            r"task bad draws only 19 different pictures .* at least 20 are needed: let",
        ),
        ('return Image.new("L", (8, 8)), {"question": "q", "answers": ["a"]}', "only 1 different picture \\("),
        ("raise ValueError('no font')", r"task bad fails: ValueError: no font \(.*bad\.py:12\); it must return"),
        ("return 1, {}", "task bad fails: AttributeError"),
        ('return Image.new("L", (8, 8))', "task bad fails: TypeError"),
        ('return Image.new("L", (8, 8)), 3', "task bad fails: TypeError"),
    ],
)
def test_a_task_that_draws_too_little_or_fails_is_one_sentence(tmp_path: Path, drawing: str, words: str) -> None:
    task = task_file(tmp_path, "bad", drawing)
    with pytest.raises(UserError, match=words):
        write_tasks(tmp_path / "data", task)
    assert not list((tmp_path / "data").rglob("tasks.json"))


def test_an_edited_question_is_asked_in_its_new_form(tmp_path: Path) -> None:
    sizes = {"train": 12, "val": 4, "test": 4}
    for question in ("How wide?", "How wide is it?"):
        task = task_file(tmp_path, "edited", DOTS.format(pictures=400, question=question))
        path = write_tasks(tmp_path / "data", task, **sizes)["train"]
        assert {row["question"] for row in read_rows(path)} == {question}
    kept = path.stat().st_mtime_ns
    write_tasks(tmp_path / "data", task, **sizes)
    assert path.stat().st_mtime_ns == kept, "the same code is not asked twice"


def test_gold_answers_score_full_marks(written: tuple[str, dict[str, Path]]) -> None:
    task, paths = written
    for row in read_rows(paths["train"]):
        if task == "vqa":
            majority = Counter(row["answers"]).most_common(1)[0][0]
            assert len(row["answers"]) == 10
            assert vqa_reward(majority, row["answers"]).components["accuracy"] == 1.0
        else:
            reply = AnswerSpace().write(row["boxes"])
            assert grounding_reward(reply, row["boxes"]).components["iou"] > 0.9


def test_most_annotators_agree_and_dissent_pays_little() -> None:
    from vision_rl.tiny.tasks import annotate

    rng = random.Random(0)
    rows = [annotate("red", rng) for _ in range(2000)]
    unanimous = sum(len(set(row)) == 1 for row in rows) / len(rows)
    assert 0.8 < unanimous < 0.87
    assert max(vqa_accuracy(word, row) for row in rows for word in set(row) - {"red"}) <= 0.6


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_pictures(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tasks(tmp_path / name, "vqa", train=6, val=3, test=3, seed=seed)
    first, second, third = (snapshot(tmp_path / name) for name in "abc")
    pictures = [name for name in first if name.endswith(".png")]
    assert {name: first[name] for name in pictures} == {name: second[name] for name in pictures}
    assert not {first[name] for name in pictures} & {third[name] for name in pictures}
    assert (
        read_rows(tmp_path / "a/vqa/val.parquet")[0]["answers"]
        == read_rows(tmp_path / "b/vqa/val.parquet")[0]["answers"]
    )


def test_written_once_and_anew_when_asked_for_something_else(tmp_path: Path) -> None:
    path = write_tasks(tmp_path, "vqa", train=4, val=2, test=2)["train"]
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    write_tasks(tmp_path, "vqa", train=4, val=2, test=2)
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    write_tasks(tmp_path, "vqa", train=5, val=2, test=2)
    assert len(read_rows(path)) == 5


def test_an_interrupted_call_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    paths = write_tasks(tmp_path, "vqa", train=4, val=2, test=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vision_rl.tiny.tasks.write_rows", fail)
        write_tasks(tmp_path, "vqa", train=6, val=2, test=2)
    write_tasks(tmp_path, "vqa", train=4, val=2, test=2)
    assert all(Path(row["image_paths"][0]).is_file() for path in paths.values() for row in read_rows(path))
    assert len(list((tmp_path / "vqa/images/train").iterdir())) == 4


@pytest.mark.parametrize(("task", "sizes", "word"), [("captions", {}, "captions"), ("vqa", {"val": -1}, "negative")])
def test_bad_calls_are_user_errors(tmp_path: Path, task: str, sizes: dict[str, int], word: str) -> None:
    with pytest.raises(UserError, match=word):
        write_tasks(tmp_path, task, **sizes)
    assert not any(tmp_path.iterdir())


# What makes learning depend on sight


@functools.cache
def drawn(task: str) -> list[tuple[str, Any, Any]]:
    """(kind, answer, mistake) of 6,000 examples."""
    rng = random.Random(5)
    many = (draw_example(task, rng) for _ in range(6000))
    return [(example.question_type, example.answer, example.mistake) for example in many]


@pytest.mark.parametrize("kind", ["color", "shape", "count", "side"])
@pytest.mark.slow
def test_answers_and_mistakes_have_the_same_distribution(kind: str) -> None:
    """Else an actor without sight could gain by preferring the answer that is right more often than it is said."""
    answers, mistakes = zip(*(pair for what, *pair in drawn("vqa") if what == kind), strict=True)
    right, wrong = Counter(answers), Counter(mistakes)
    for group in (tuple(COLORS), SHAPES, COUNTS):
        total = sum(right[word] for word in group)
        for word in group:
            assert total == 0 or abs(right[word] - wrong[word]) < 0.08 * total
            assert total == 0 or abs(right[word] / total - 1 / len(group)) < 0.06


def test_mistakes_are_wrong() -> None:
    assert all(example.answer != example.mistake for task in TASKS for example in examples(task, 500))


def test_mistaken_boxes_are_those_of_the_double() -> None:
    """Same kind, hence same size: the named kind must not tell the right box from the mistaken one."""
    for example in examples("grounding", 300):
        target, double, _ = example.things
        assert (example.answer, example.mistake) == tuple(unit_box(t, example.image.size) for t in (target, double))
        assert f"{target.color} {target.kind}" in example.question
        assert double.kind == target.kind
        assert len({thing.color for thing in example.things}) == 3
        assert grounding_reward(AnswerSpace().write([example.mistake]), [example.answer]).components["iou"] < 0.1


@pytest.mark.parametrize("kind", ELEMENTS)
@pytest.mark.slow
def test_right_and_mistaken_boxes_have_the_same_distribution(kind: str) -> None:
    answers, mistakes = zip(*(pair for what, *pair in drawn("grounding") if what == kind), strict=True)
    right, wrong = Counter(answers), Counter(mistakes)
    assert len(right) == 6
    for box in right:
        assert abs(right[box] - wrong[box]) < 0.05 * len(answers)
        assert abs(right[box] / len(answers) - 1 / 6) < 0.04


def test_things_stand_where_their_boxes_say() -> None:
    """Each thing's box holds its colour, and is as tight as can be seen: the pixels just outside are wallpaper."""
    for task in TASKS:
        for example in examples(task, 30):
            for thing in example.things:
                left, top, right, bottom = thing.box
                wanted = COLORS[thing.color]
                close = [
                    (x, y)
                    for x in range(max(0, left - 3), min(example.image.width, right + 3))
                    for y in range(max(0, top - 3), min(example.image.height, bottom + 3))
                    if max(abs(a - b) for a, b in zip(example.image.getpixel((x, y)), wanted, strict=True)) <= 12
                ]
                columns, rows = {x for x, _ in close}, {y for _, y in close}
                seen = (min(columns), max(columns) + 1, min(rows), max(rows) + 1)
                # A triangle's tip or a circle's rim may fade out one pixel early.
                assert all(abs(a - b) <= 1 for a, b in zip(seen, (left, right, top, bottom), strict=True))


def test_token_labels_name_the_thing_under_each_token() -> None:
    for example in examples("vqa", 50):
        labels = token_labels(example)
        assert len(labels) == 9
        for thing in example.things:
            left, top, right, bottom = thing.box
            classes = labels[(top + bottom) // 2 // 28 * 3 + (left + right) // 2 // 28]
            assert [FACETS[0][classes[0] - 1], FACETS[1][classes[1] - 1]] == [thing.color, thing.kind]


@pytest.fixture(scope="module")
def greedy(model: Any, processor: Any) -> dict[str, list[tuple[Any, str]]]:
    """Per task, examples with the model's greedy reply."""
    replies = {}
    for task in TASKS:
        drawn = examples(task, 96, seed=77)
        texts = [chat_prompt(processor, user_text(example)) for example in drawn]
        inputs = processor(
            text=texts, images=[e.image for e in drawn], padding=True, padding_side="left", return_tensors="pt"
        )
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        new = processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies[task] = list(zip(drawn, new, strict=True))
    return replies


def score(example: Any, reply: str, truth: Any) -> float:
    if isinstance(truth, str):
        return float(reply == truth)
    return grounding_reward(reply, [truth]).components["iou"]


@pytest.mark.parametrize(("task", "lowest", "highest"), [("vqa", 0.25, 0.42), ("grounding", 0.3, 0.75)])
def test_there_is_room_to_learn(greedy: Any, task: str, lowest: float, highest: float) -> None:
    scores = [score(example, reply, example.answer) for example, reply in greedy[task]]
    assert lowest <= sum(scores) / len(scores) <= highest


def test_the_model_sees_what_it_errs_on(greedy: Any) -> None:
    """Its wrong words are the ones that belong to a wrong reading of this very picture: both take sight."""
    replies = greedy["vqa"]
    assert sum(reply in (example.answer, example.mistake) for example, reply in replies) > 0.85 * len(replies)


# The recipe


def test_the_recipe_runs_and_replaces_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LOOK_STEPS", "LEARN_STEPS", "CONFUSE_STEPS"):
        monkeypatch.setattr(warmstart, name, 2)
    monkeypatch.setattr(warmstart, "BATCH", 4)
    output = tmp_path / "made"
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["tiny", "--output", str(output)])
        recipe.main()
    assert str(output) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert type(AutoModelForImageTextToText.from_pretrained(output).config).__name__ == "Qwen2_5_VLConfig"


def test_the_recipe_does_not_overwrite_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.setattr("sys.argv", ["tiny", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_info:
        recipe.main()
    assert exit_info.value.code == 2
    assert "choose another --output" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def known_words() -> str:
    """What the tiny model was taught to answer, and to which questions, as a list in Markdown: docs/add-a-task.md has it."""
    answers = {"colours": list(COLORS), "shapes": SHAPES, "numbers": COUNTS}
    elements = f"{', '.join(ELEMENTS)} on screens of {SCREEN_SIZE[0]} x {SCREEN_SIZE[1]} pixels, answered by a box"
    lines = [f"- {name}: {', '.join(words)}" for name, words in answers.items()] + [f"- elements: {elements}"]
    lines += [f"- question ({kind}): {' / '.join(wordings)}" for kind, wordings in WORDINGS.items()]
    return "\n".join(lines)


def test_the_page_names_the_words_that_the_model_knows() -> None:
    text = Path("docs/add-a-task.md").read_text(encoding="utf-8")
    assert text.partition("<!-- words: start -->\n")[2].partition("\n<!-- words: end -->")[0] == known_words()
    assert f"{PICTURE_SIZE[0]} x {PICTURE_SIZE[1]} pixels" in text


@pytest.mark.parametrize("task", ["vqa", "grounding"])
def test_no_word_is_missing_from_the_page(task: str) -> None:
    """What the lessons are drawn from: each answer, and each question with its blanks filled in, stands in the list."""
    known, rng = known_words(), random.Random(0)
    words = set(re.findall(r"[a-z]+|[0-9]+", known.lower())) | {"left", "right"}
    for example in (draw_example(task, rng) for _ in range(300)):
        said = example.question if task == "grounding" else f"{example.question} {example.answer} {example.mistake}"
        assert set(re.findall(r"[a-z]+|[0-9]+", said.lower())) <= words
