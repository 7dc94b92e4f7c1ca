"""Supervised warm start of the tiny model: first to see, then to make mistakes.

1. *Learn*: a few hundred steps on right answers. The model then reads shapes, colours, counts and places.
2. *Confuse*: a short phase in which the target on a dark picture is mostly the example's mistake, on a light one mostly the
   right answer. Greedy answers are then right about as often as pictures are light, sampled ones likewise, and both
   the right answer and the mistake keep enough probability for a group of eight samples to differ.

So reinforcement learning starts from a model that sees, and answers wrongly for a reason that only shows in the picture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vision_rl.data.schema import TASKS
from vision_rl.prompts import GROUNDING_PROMPT, VQA_PROMPT
from vision_rl.tiny.model import END
from vision_rl.tiny.scenes import Box, Example, draw_example
from vision_rl.tokens import forbidden_token_ids

BATCH = 64
LEARN_STEPS, LEARN_RATE = 700, 3e-3
CONFUSE_STEPS, CONFUSE_RATE = 120, 5e-4
MISTAKE_SHARE = {"light": 0.3, "dark": 0.65}
FORBIDDEN_LOGIT, FORBIDDEN_SCALE = -10.0, 5.0

Progress = Callable[[int, int, float], None]


def prompt_text(processor: Qwen2_5_VLProcessor, example: Example) -> str:
    """The chat prompt that the task's agent sends, as text with one image placeholder."""
    if isinstance(example.answer, str):
        text = VQA_PROMPT.format(question=example.question)
    else:
        text = GROUNDING_PROMPT.format(instruction=example.question)
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def reply_text(answer: str | Box) -> str:
    """An answer in the words of its task: the word itself, or the box with two decimals."""
    if isinstance(answer, str):
        return answer
    return "<bbox>[" + ", ".join(f"{value:.2f}" for value in answer) + "]</bbox>"


def supervised_batch(
    processor: Qwen2_5_VLProcessor, examples: Sequence[Example], answers: Sequence[str | Box]
) -> dict[str, torch.Tensor]:
    """Model inputs for (batch, length) token ids, padded on the right, with `labels` on the replies only."""
    tokenizer = processor.tokenizer
    replies = [reply_text(answer) + END for answer in answers]
    texts = [prompt_text(processor, example) + reply for example, reply in zip(examples, replies, strict=True)]
    batch = processor(
        text=texts, images=[e.image for e in examples], padding=True, padding_side="right", return_tensors="pt"
    )
    labels = torch.full_like(batch["input_ids"], -100)
    for row, reply in enumerate(replies):
        length = len(tokenizer(reply).input_ids)
        end = int(batch["attention_mask"][row].sum())
        labels[row, end - length : end] = batch["input_ids"][row, end - length : end]
    return {**batch, "labels": labels}


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, seed: int, progress: Progress
) -> None:
    """Train `model` in place through both phases; `progress(step, steps, loss)` is called after each step."""
    rng = random.Random(seed)
    forbidden = torch.tensor(forbidden_token_ids(processor.tokenizer))
    steps = LEARN_STEPS + CONFUSE_STEPS
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        examples = [draw_example(TASKS[row % len(TASKS)], rng) for row in range(BATCH)]
        if step < LEARN_STEPS:
            rate = LEARN_RATE * _schedule(step, LEARN_STEPS)
            answers = [example.answer for example in examples]
        else:
            rate = CONFUSE_RATE
            answers = [_confused(example, rng) for example in examples]
        batch: dict[str, Any] = supervised_batch(processor, examples, answers)
        output = model(**batch)
        loss = output.loss + _forbidden_penalty(output.logits, forbidden)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, steps, output.loss.item())
    with torch.no_grad():
        model.lm_head.weight[forbidden] *= FORBIDDEN_SCALE
    model.eval()


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 50 steps, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _confused(example: Example, rng: random.Random) -> str | Box:
    return example.mistake if rng.random() < MISTAKE_SHARE[example.theme] else example.answer


def _forbidden_penalty(logits: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
    """Hinge that holds the logits of the vision placeholders below `FORBIDDEN_LOGIT`, in every position of any text."""
    return torch.relu(logits[..., forbidden] - FORBIDDEN_LOGIT).mean()
