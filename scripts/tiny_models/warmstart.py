"""The tiny model's supervised warm start: it first learns to see, then to make mistakes.

1. *Look* (`alignment.py`): the vision tower learns to name what each visual token shows.
2. *Learn*: right answers to questions, mixed with descriptions of whole pictures, which teach much more per picture.
3. *Confuse*: a short phase in which the target is mostly the example's mistake, unless the question has its plainest
   wording. Greedy answers are then right one time in three, and both the right answer and the mistake keep enough
   probability for a group of eight samples to differ.

So reinforcement learning starts from a model that sees, and answers wrongly in a way that only shows in the picture.

Last, the vision placeholders are silenced (see `vision_rl.models.tokens`): Qwen2.5-VL's output head has no bias, but hidden
states share a direction, and the placeholders' rows of the head (untied for this) are set against it, so that their logits are
close to `SILENT_LOGIT` after any text. No sample contains one, and as their probability rounds to zero in float32, no
gradient moves the rows; weight decay alone would take millions of steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from scripts.tiny_models.alignment import Alignment
from scripts.tiny_models.model import END
from scripts.tiny_models.optimizer import adamw, schedule, update
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.tasks import get_task
from vision_rl.tiny.scenes import PLACES, TASKS, Box, Example, draw_example, place, unit_box

BATCH = 64
LOOK_STEPS, LOOK_RATE = 200, 3e-3
LEARN_STEPS, LEARN_RATE = 700, 2.5e-3
CONFUSE_STEPS, CONFUSE_RATE = 100, 5e-4
PLAIN_MISTAKES, OTHER_MISTAKES = 0.35, 0.68
WARM_UP_STEPS = 40
SILENT_LOGIT = -100.0
DESCRIBE_PROMPT = "Describe."

Progress = Callable[[int, int, float], None]


class Lesson(NamedTuple):
    """A picture, the user's text, the reply to learn, and a system message ("" for none)."""

    example: Example
    text: str
    reply: str
    system: str = ""


def user_text(example: Example) -> str:
    """The text that the task's agent sends after the picture."""
    task = "vqa" if isinstance(example.answer, str) else "grounding"
    prompt: str = get_task(task).part("prompt")
    return prompt.format(question=example.question, instruction=example.question)


def reply_text(answer: str | Box) -> str:
    """An answer in the words of its task: the word itself, or the box with two decimals."""
    if isinstance(answer, str):
        return answer
    return "<bbox>[" + ", ".join(f"{value:.2f}" for value in answer) + "]</bbox>"


def description(example: Example, rng: random.Random) -> str:
    """Every thing in the picture, in any order: its words in any order, or (on screens, mostly) its name and its box."""
    things = rng.sample(example.things, len(example.things))
    size = example.image.size
    if not isinstance(example.answer, str) and rng.random() < 0.6:
        return "".join(f"{thing.color} {thing.kind}{reply_text(unit_box(thing, size))}" for thing in things)
    phrases = []
    for thing in things:
        words = [
            thing.color,
            thing.kind,
            *(axis[third] for axis, third in zip(PLACES, place(thing, size), strict=True)),
        ]
        phrases.append(" ".join(rng.sample(words, len(words))))
    return ", ".join(phrases)


def chat_prompt(processor: Qwen2_5_VLProcessor, text: str, system: str = "") -> str:
    """The chat template around one picture and `text`, up to where the reply begins."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def supervised_batch(processor: Qwen2_5_VLProcessor, lessons: Sequence[Lesson]) -> dict[str, torch.Tensor]:
    """Model inputs for (batch, length) token ids, padded on the right, with `labels` on the replies only."""
    replies = [lesson.reply + END for lesson in lessons]
    prompts = [chat_prompt(processor, lesson.text, lesson.system) for lesson in lessons]
    texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    batch: dict[str, Any] = dict(
        processor(
            text=texts,
            images=[lesson.example.image for lesson in lessons],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
    )
    labels = torch.full_like(batch["input_ids"], -100)
    for row, reply in enumerate(replies):
        end = int(batch["attention_mask"][row].sum())
        start = end - len(processor.tokenizer(reply).input_ids)
        labels[row, start:end] = batch["input_ids"][row, start:end]
    return {**batch, "labels": labels}


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, seed: int, progress: Progress
) -> None:
    """Train `model` in place through the three phases; `progress(step, steps, loss)` is called after each step."""
    rng = random.Random(seed)
    steps = LOOK_STEPS + LEARN_STEPS + CONFUSE_STEPS
    model.train()
    alignment = Alignment(model, processor)
    optimizer = adamw(alignment.learning())
    for step in range(LOOK_STEPS):
        loss = alignment(rng, BATCH)
        update(optimizer, loss, LOOK_RATE * schedule(step, LOOK_STEPS, WARM_UP_STEPS))
        progress(step + 1, steps, loss.item())
    model.model.visual.requires_grad_(False)
    optimizer = adamw([parameter for parameter in model.parameters() if parameter.requires_grad])
    for step in range(LEARN_STEPS + CONFUSE_STEPS):
        if step < LEARN_STEPS:
            rate = LEARN_RATE * schedule(step, LEARN_STEPS, WARM_UP_STEPS)
            lessons = _lessons(step / LEARN_STEPS, rng)
        else:
            rate = CONFUSE_RATE
            lessons = [_confused(draw_example(TASKS[row % len(TASKS)], rng), rng) for row in range(BATCH)]
        loss = lesson_loss(model, supervised_batch(processor, lessons))
        update(optimizer, loss, rate)
        progress(LOOK_STEPS + step + 1, steps, loss.item())
    model.model.visual.requires_grad_(True)
    model.eval()
    silence(model, processor, rng)


def _lessons(done: float, rng: random.Random) -> list[Lesson]:
    """A batch when the share `done` of the phase lies behind: descriptions first, then more and more questions.

    Questions come without their constant suffix at first, at half the cost.
    """
    describe = 1.0 if done < 0.1 else 0.4 if done < 0.6 else 0.1
    lessons = []
    for row in range(BATCH):
        example = draw_example(TASKS[row % len(TASKS)], rng)
        if rng.random() < describe:
            lessons.append(Lesson(example, DESCRIBE_PROMPT, description(example, rng)))
        else:
            text = user_text(example) if done >= 0.6 else example.question
            lessons.append(Lesson(example, text, reply_text(example.answer)))
    return lessons


def _confused(example: Example, rng: random.Random) -> Lesson:
    mistaken = rng.random() < (PLAIN_MISTAKES if example.plain else OTHER_MISTAKES)
    return Lesson(example, user_text(example), reply_text(example.mistake if mistaken else example.answer))


@torch.no_grad()
def silence(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, rng: random.Random) -> None:
    """Set the head's rows of the vision placeholders so that their logits are about `SILENT_LOGIT` everywhere.

    Least squares over the hidden states of lessons and of random tokens, with a ridge that keeps the rows short.
    """
    batch = supervised_batch(processor, _lessons(0.9, rng))
    words = [rng.randrange(min(processor.tokenizer.all_special_ids)) for _ in range(BATCH * 32)]
    inputs = [{name: value for name, value in batch.items() if name != "labels"}]
    inputs.append({"input_ids": torch.tensor(words).view(BATCH, 32)})
    hidden = torch.cat([model.model(**part).last_hidden_state.flatten(0, 1) for part in inputs])
    moments = hidden.T @ hidden / len(hidden) + 0.01 * torch.eye(hidden.shape[1])
    row = torch.linalg.solve(moments, hidden.mean(0)) * SILENT_LOGIT
    model.lm_head.weight[forbidden_token_ids(processor)] = row


def lesson_loss(model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over replies of the mean over their tokens, so that a word counts as much as a box."""
    labels = batch["labels"][:, 1:]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return 2 * (losses.sum(1) / (labels != -100).sum(1)).mean()
