"""Log-probabilities by transformers alone. Usage: reference_log_probs.py MODEL < [[prompt, response, images, temperature], ...].

Without a temperature it is 1.
"""

from __future__ import annotations

import json
import sys

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="sdpa").eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])


def log_probs(prompt: list[int], response: list[int], images: list[str], temperature: float = 1.0) -> list[float]:
    ids = torch.tensor([prompt + response])
    pictures = [Image.open(path).convert("RGB") for path in images]
    vision = processor.image_processor(images=pictures, return_tensors="pt") if pictures else {}
    types = (ids == model.config.image_token_id).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **vision)
    logits = (output.logits[0] / temperature).log_softmax(-1)
    return [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]


print(json.dumps([log_probs(*one) for one in json.load(sys.stdin)]))
