"""The tool-using tiny model's supervised warm start: it learns to see, to call tools, and to answer in the last picture's space.

1. *Look*: the vision tower learns what each visual token shows, as in `alignment.py`.
2. *Name*: single pictures, whole screens and zoomed quarters: where the hatched tile stands.
3. *Talk*: conversations in the very texts that the agent sends: a single look; a look and an answer with the tool unused;
   a zoom and then the answer. The model does not learn *when* to zoom: it zooms on `ZOOM_SHARE` of all screens, large
   targets or small, and looks at the right place most of the time. The rest is left to reinforcement learning.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from scripts.tiny_models.model import END, PIXELS, build_processor
from scripts.tiny_models.optimizer import adamw, schedule, update
from scripts.tiny_models.zoom_scenes import INSTRUCTION, ZoomScene, draw_scene
from vision_rl.agent.grounding_prompts import LAST_TURN, request, results_text, system_text
from vision_rl.agent.tools import region_text
from vision_rl.answers.boxes import Box
from vision_rl.answers.zoom import WHOLE, SizeLimits, View, zoom
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.settings import AgentSettings

BATCH = 48
WARM_UP_STEPS = 30
FORBIDDEN_LOGIT, FORBIDDEN_SCALE = -10.0, 5.0
LOOK_STEPS, NAME_STEPS, TALK_STEPS = 100, 200, 300
LOOK_RATE, NAME_RATE, TALK_RATE = 3e-3, 1e-3, 1e-3
ZOOM_SHARE, AIM_SHARE = 0.3, 0.8
LIMITS = SizeLimits(28, 14, PIXELS["min_pixels"], PIXELS["max_pixels"])
QUARTERS: tuple[Box, ...] = tuple((x, y, x + 0.5, y + 0.5) for x in (0.0, 0.5) for y in (0.0, 0.5))
SETTINGS = AgentSettings(refusal=False)  # of the texts that the agent sends: boxes in unit space
GRID = 4
"""Visual tokens of a picture, each way."""
CALL = '<tool_call>{"name": "zoom_ui_element", "arguments": {"region": ', ', "zoom_factor": 2}}</tool_call>'
RESULT = "Picture 2 shows region {region} of picture 1."

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Dialogue:
    """A conversation to learn: messages with {"type": "image"} places, and its pictures in order."""

    messages: list[dict[str, Any]]
    pictures: list[Image.Image]


def zoom_processor() -> Qwen2_5_VLProcessor:
    """The tiny model's processor, whose tokenizer also has one token for each text that the agent always sends."""
    processor = build_processor()
    before, after = results_text([RESULT], True).split("{region}")
    constants = [
        system_text(True),
        request("", SETTINGS, view="last"),
        request("", SETTINGS),
        *(CALL[0] + "[", "]" + CALL[1]),
        *(before + "[", "]" + after),
        *("<answer>", "</answer>", LAST_TURN, INSTRUCTION),
    ]
    processor.tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in constants])
    return processor


def single_look(scene: ZoomScene) -> Dialogue:
    """A conversation of an agent without tools."""
    return Dialogue([_user(request(INSTRUCTION, SETTINGS)), _assistant(box_text(scene.box))], [scene.image])


def with_tools(scene: ZoomScene, region: Box | None) -> Dialogue:
    """A conversation with tools: one zoom into `region` (None: none), then the answer in the last picture's space."""
    messages = [{"role": "system", "content": system_text(True)}, _user(request(INSTRUCTION, SETTINGS, view="last"))]
    pictures, view = [scene.image], View(LIMITS.processed(scene.image.size))
    if region is not None:
        crop, view = zoom(scene.image, region, 2.0, LIMITS)
        pictures.append(crop)
        messages.append(_assistant(call_text(region)))
        messages.append(_user(results_text([RESULT.format(region=region_text(view.box))], True)))
    messages.append(_assistant(f"<answer>{box_text(view.from_picture(scene.box))}</answer>"))
    return Dialogue(messages, pictures)


def single_picture(rng: random.Random) -> Dialogue:
    """A screen, or a quarter of one as if it were the whole."""
    scene = draw_scene(rng)
    image, view = _shown(scene, rng, 0.8)
    reply = box_text(view.from_picture(scene.box))
    return Dialogue([_user(request(INSTRUCTION, SETTINGS)), _assistant(reply)], [image])


def _shown(scene: ZoomScene, rng: random.Random, share: float) -> tuple[Image.Image, View]:
    """A screen, or, for this share of those with small tiles, the quarter that holds them."""
    if scene.size == "small" and rng.random() < share:
        return zoom(scene.image, scene.region, 2.0, LIMITS)
    return scene.image, View(LIMITS.processed(scene.image.size))


def draw_dialogue(rng: random.Random, done: float) -> Dialogue:
    """A conversation when the share `done` of the last lesson lies behind.

    In its first half small targets are always zoomed into, and rightly, so that the model learns to read what it sees.
    """
    scene = draw_scene(rng)
    if rng.random() < 0.25:
        return single_look(scene)
    learning = done < 0.5 and scene.size == "small"
    if not learning and rng.random() >= ZOOM_SHARE:
        return with_tools(scene, None)
    return with_tools(scene, scene.region if learning or rng.random() < AIM_SHARE else rng.choice(QUARTERS))


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def box_text(box: Box) -> str:
    """A box with two decimals, cut at the borders: the tiny tokenizer's numbers."""
    return "<bbox>[" + ", ".join(f"{min(max(value, 0.0), 1.0):.2f}" for value in box) + "]</bbox>"


def call_text(region: Box) -> str:
    """The tool call as the tiny model writes it."""
    text = region_text(region).join(CALL)
    assert json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    return text


def dialogue_batch(processor: Qwen2_5_VLProcessor, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
    """Model inputs of (batch, length) token ids, padded on the right, with `labels` on the assistant's words only."""
    texts = [processor.apply_chat_template(dialogue.messages) for dialogue in dialogues]
    pictures = [picture for dialogue in dialogues for picture in dialogue.pictures]
    batch = processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
    tokenizer = processor.tokenizer
    start, end = tokenizer("<|im_start|>assistant\n").input_ids, tokenizer.convert_tokens_to_ids(END)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        for first in range(len(ids) - len(start)):
            if ids[first : first + len(start)] == start:
                begin = first + len(start)
                stop = ids.index(end, begin) + 1
                labels[row, begin:stop] = batch["input_ids"][row, begin:stop]
    return {**batch, "labels": labels}


class Looking(torch.nn.Module):
    """The first lesson's loss: each visual token tells whether it shows a tile, a hatched one, and in which place.

    The hatched tile's token shall be twice the embedding of the instruction, plus a vector for its column and one for its
    row. Attention starts out looking for what resembles the present token (`model.build_model`), so that the instruction
    then finds its tile.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        [word] = processor.tokenizer(INSTRUCTION).input_ids
        embedding = model.model.language_model.embed_tokens.weight.detach()
        places = 0.5 * torch.randn(2 + 2 * GRID, embedding.shape[1])
        self.seen = torch.cat([places[:2], 2 * embedding[word : word + 1]])
        self.columns = torch.cat([0 * places[:1], places[2 : 2 + GRID]])
        self.rows = torch.cat([0 * places[:1], places[2 + GRID :]])

    def forward(self, rng: random.Random) -> torch.Tensor:
        """Mean squared distance of all visual tokens of a fresh batch of pictures from what they shall be."""
        shown = [_look(draw_scene(rng), rng) for _ in range(BATCH)]
        inputs: Any = self.processor.image_processor(images=[picture for picture, _ in shown], return_tensors="pt")
        features = self.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        kind, column, row = torch.tensor([label for _, labels in shown for label in labels]).T
        return functional.mse_loss(features, self.seen[kind] + self.columns[column] + self.rows[row])


def _look(scene: ZoomScene, rng: random.Random) -> tuple[Image.Image, list[list[int]]]:
    """A picture and its visual tokens' classes in reading order: nothing, tile or hatched tile; column; row."""
    image, view = _shown(scene, rng, 0.7)
    legible = scene.size == "large" or view.box != WHOLE
    labels = [[0, 0, 0] for _ in range(GRID * GRID)]
    for number, tile in enumerate(scene.tiles):
        x1, y1, x2, y2 = view.from_picture(tile)
        column, row = int((x1 + x2) / 2 * GRID), int((y1 + y2) / 2 * GRID)
        labels[row * GRID + column] = [1 + int(legible and number == scene.target), 1 + column, 1 + row]
    return image, labels


def zoom_warm_start(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, seed: int, progress: Progress
) -> None:
    """Train `model` in place through the three lessons; `progress(step, steps, loss)` is called after each step."""
    rng = random.Random(seed)
    forbidden = torch.tensor(forbidden_token_ids(processor))
    steps = LOOK_STEPS + NAME_STEPS + TALK_STEPS
    model.train()
    looking = Looking(model, processor)
    optimizer = adamw(model.model.visual.parameters())
    for step in range(LOOK_STEPS):
        loss = looking(rng)
        update(optimizer, loss, LOOK_RATE * schedule(step, LOOK_STEPS, WARM_UP_STEPS))
        progress(step + 1, steps, loss.item())
    optimizer = adamw(model.parameters())
    for step in range(NAME_STEPS + TALK_STEPS):
        if step < NAME_STEPS:
            rate = NAME_RATE * schedule(step, NAME_STEPS, WARM_UP_STEPS)
            dialogues = [single_picture(rng) for _ in range(BATCH)]
        else:
            rate = TALK_RATE * schedule(step - NAME_STEPS, TALK_STEPS, WARM_UP_STEPS)
            dialogues = [draw_dialogue(rng, (step - NAME_STEPS) / TALK_STEPS) for _ in range(BATCH)]
        inputs: dict[str, Any] = dialogue_batch(processor, dialogues)
        output = model(**inputs)
        update(optimizer, output.loss + torch.relu(output.logits[..., forbidden] - FORBIDDEN_LOGIT).mean(), rate)
        progress(LOOK_STEPS + step + 1, steps, output.loss.item())
    with torch.no_grad():
        model.lm_head.weight[forbidden] *= FORBIDDEN_SCALE
    model.eval()
