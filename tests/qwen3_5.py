"""A tiny Qwen3.5 with the chat template's own forms of calls and of thinking, taught to zoom once and to answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken

from scripts.tiny_models.families.parts import END, SEED, save
from scripts.tiny_models.families.qwen import qwen3_5
from scripts.tiny_models.optimizer import adamw, schedule, update
from scripts.tiny_models.zoom_scenes import INSTRUCTION, SIDE, draw_scene
from vision_rl.agent.grounding_prompts import request, results_text, system_text
from vision_rl.agent.tools import TOOLS, region_text
from vision_rl.answers.boxes import Box
from vision_rl.settings import AgentSettings

TEMPLATE = Path(__file__).parent / "data" / "qwen3_5.jinja"
REGION: Box = (0.0, 0.0, 0.5, 0.5)
ARGUMENTS = {"region": list(REGION), "zoom_factor": 2}
ANSWER = '[{"bbox_2d": [0, 0, 500, 500]}]'
"""In the family's own form and space: the quarter that it zoomed into."""
THOUGHT = "I look closer.\n</think>\n\n"
"""What it writes before the call where the template has opened the reply for thinking."""
_PARAMETERS = "".join(f"<parameter={name}>\n{json.dumps(value)}\n</parameter>\n" for name, value in ARGUMENTS.items())
_FUNCTION = f"<function=zoom_ui_element>\n{_PARAMETERS}</function>"
_CALL = f"<tool_call>\n{_FUNCTION}\n</tool_call>"
STEPS, RATE, SCREENS = 160, 3e-3, 8


def zooming(folder: Path) -> Path:
    """Write the checkpoint. Its tokenizer has one token for each of its constant texts, so that they are soon learnt."""
    from transformers import AutoModelForImageTextToText

    model, processor = qwen3_5()
    words = ("<think>", "</think>", "<tool_call>", "</tool_call>", _FUNCTION, ANSWER)
    processor.tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    model.resize_token_embeddings(len(processor.tokenizer))
    processor.chat_template = TEMPLATE.read_text(encoding="utf-8")
    save(model, processor, folder, SEED)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    _teach(model, processor)
    model.save_pretrained(folder)
    return folder


def _teach(model: Any, processor: Any) -> None:
    """The examples in turn: thinking on and off, the call and the answer, over screens of its own."""
    screens = [draw_scene(random.Random(f"taught-{number}")).image for number in range(SCREENS)]
    examples = [
        _example(processor, [screen, screen.crop((0, 0, SIDE // 2, SIDE // 2))][: 1 + answers], thinking)
        for screen in screens
        for answers in (False, True)
        for thinking in (False, True)
    ]
    optimizer = adamw(model.parameters())
    for step in range(STEPS):
        update(optimizer, model(**examples[step % len(examples)]).loss, RATE * schedule(step, STEPS, 10))


def _example(processor: Any, pictures: list[Image.Image], thinking: bool) -> dict[str, Any]:
    """The conversation of an agent with tools, over one picture before the call and over two after it; the loss is of the last
    reply alone."""
    settings = AgentSettings(family="qwen3_5", answer_format="native", refusal=False)
    thought = THOUGHT if thinking else ""
    messages = [
        {"role": "system", "content": system_text(False)},
        _shown(request(INSTRUCTION, settings, view=settings.answer_view)),
    ]
    if len(pictures) == 2:
        call = {"type": "function", "function": {"name": "zoom_ui_element", "arguments": ARGUMENTS}}
        result = f"Picture 2 shows region {region_text(REGION)} of picture 1."
        messages += [
            {"role": "assistant", "content": thought.strip(), "tool_calls": [call]},
            {"role": "tool", "content": result},
            _shown(results_text([], True)),
        ]
    prompt = processor.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, enable_thinking=thinking)
    reply = f"{thought}{ANSWER if len(pictures) == 2 else _CALL}{END}"
    inputs = dict(processor(text=[prompt + reply], images=pictures, return_tensors="pt"))
    labels = inputs["input_ids"].clone()
    labels[:, : -len(processor.tokenizer(reply, add_special_tokens=False).input_ids)] = -100
    return {**inputs, "labels": labels}


def _shown(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
