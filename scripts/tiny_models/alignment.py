"""The first phase of the warm start: the vision tower learns to name what it sees.

Each visual token that shows part of a thing shall resemble the embeddings of the words for it: its colour, its kind and its
place. Answering questions then only takes attention and copying. Without this lesson the language model's loss gives the
tower nothing to go by, and hundreds of steps pass before anything is learnt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vision_rl.tiny.scenes import CELL, COLORS, ELEMENTS, PLACES, SHAPES, TASKS, Example, draw_example, place

FACETS = (tuple(COLORS), (*SHAPES, *ELEMENTS), *PLACES)
"""What is to be named, and the words for it: colour, kind, place across, place down."""
_VISIBLE = 5
"""Pixels of a thing, each way, that a visual token must show to be asked for it."""


class Alignment(torch.nn.Module):
    """The loss of the lesson, with one "nothing here" vector per facet of its own."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
        super().__init__()
        tokenizer = processor.tokenizer
        self.model, self.processor = model, processor
        self.words = [[tokenizer(f" {word}").input_ids[0] for word in words] for words in FACETS]
        self.nothing = torch.nn.Parameter(0.5 * torch.randn(len(FACETS), model.config.text_config.hidden_size))

    def learning(self) -> list[torch.nn.Parameter]:
        """The parameters that the lesson changes: the vision tower, the word embeddings and its own."""
        embedding = self.model.model.language_model.embed_tokens.weight
        return [*self.model.model.visual.parameters(), embedding, self.nothing]

    def forward(self, rng: random.Random, pictures: int) -> torch.Tensor:
        """Summed cross-entropy of the facets over all visual tokens of a fresh batch of pictures."""
        examples = [draw_example(TASKS[row % len(TASKS)], rng) for row in range(pictures)]
        inputs: Any = self.processor.image_processor(images=[e.image for e in examples], return_tensors="pt")
        features = self.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        targets = torch.tensor([label for example in examples for label in token_labels(example)])
        embedding = self.model.model.language_model.embed_tokens.weight
        loss = features.new_zeros(())
        for facet, words in enumerate(self.words):
            candidates = torch.cat([self.nothing[facet : facet + 1], embedding[words]])
            loss = loss + functional.cross_entropy(features @ candidates.T, targets[:, facet])
        return loss


def token_labels(example: Example) -> Sequence[list[int]]:
    """For each visual token in reading order, one class per facet: 0 for nothing, else 1 + the word's number."""
    columns, rows = (side // CELL for side in example.image.size)
    labels = [[0] * len(FACETS) for _ in range(columns * rows)]
    for thing in example.things:
        left, top, right, bottom = thing.box
        words = (
            thing.color,
            thing.kind,
            *(axis[third] for axis, third in zip(PLACES, place(thing, example.image.size), strict=True)),
        )
        classes = [1 + facet.index(word) for facet, word in zip(FACETS, words, strict=True)]
        for token in range(columns * rows):
            x, y = token % columns * CELL, token // columns * CELL
            wide, high = min(right, x + CELL) - max(left, x), min(bottom, y + CELL) - max(top, y)
            if min(wide, high) >= _VISIBLE:
                labels[token] = classes
    return labels
