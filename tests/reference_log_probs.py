"""Log-probabilities by transformers alone. Usage: reference_log_probs.py MODEL < {"prompt", "response", "images"}."""

from __future__ import annotations

import json
import sys

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

asked = json.load(sys.stdin)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="sdpa").eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
ids = torch.tensor([asked["prompt"] + asked["response"]])
pictures = [Image.open(path).convert("RGB") for path in asked["images"]]
vision = processor.image_processor(images=pictures, return_tensors="pt") if pictures else {}
types = (ids == model.config.image_token_id).long()
with torch.no_grad():
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **vision)
logits = output.logits[0].log_softmax(-1)
start = len(asked["prompt"]) - 1
print(json.dumps([float(logits[start + i, token]) for i, token in enumerate(asked["response"])]))
