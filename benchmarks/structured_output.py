"""Which trains: a form that is asked for in words, or one that a grammar forces? GRPO on the tiny model, three times.

    python benchmarks/structured_output.py [--steps 8]

The tiny model is taught to write its answer as JSON half of the time, and is then trained on VQA with a JSON schema in the
prompt, by the reward of a reply that fits the schema, from the same weights and pictures:

- words: it samples freely, as under `agent.structured_output=prompt`;
- grammar: it samples under xgrammar's mask, which is vLLM's, and the actor computes log-probabilities without it, as a run's
  would (a run refuses such a request);
- mask on both sides: the actor applies the mask of every token, which vLLM would have to send (a bit for each word of the
  vocabulary and each token).

In one process, without server and trainer: what is compared is what the gradient is of.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Sequence
from typing import Any

import torch
import xgrammar
from transformers import Qwen2_5_VLForConditionalGeneration as Model
from transformers import Qwen2_5_VLProcessor as Processor
from xgrammar.contrib.hf import LogitsProcessor

from scripts.tiny_models.optimizer import adamw, schedule, update
from scripts.tiny_models.warmstart import Lesson, chat_prompt, lesson_loss, supervised_batch, user_text
from vision_rl.rollout.structured_output import Wanted, flaw
from vision_rl.tiny import checkpoint_dir
from vision_rl.tiny.scenes import Example, draw_example

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
WANTED = Wanted(schema=SCHEMA)
ARMS = ("words", "grammar", "mask on both sides")
LESSONS, LESSON_RATE = 12, 1e-3
QUESTIONS, GROUP, RATE, LONGEST = 6, 6, 4e-4, 16


class Grammar(LogitsProcessor):  # type: ignore[misc]
    """xgrammar's mask of one batch; keeps what it allowed at each token, (rows, vocabulary) each."""

    def __init__(self, compiled: Any) -> None:
        super().__init__(compiled)
        self.allowed: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked: torch.Tensor = super().__call__(input_ids, scores)
        self.allowed.append(~masked.isinf())
        return masked


def compiled_schema(processor: Processor, model: Model) -> Any:
    tokenizer = processor.tokenizer
    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=model.config.text_config.vocab_size, stop_token_ids=[tokenizer.eos_token_id]
    )
    return xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(SCHEMA), any_whitespace=False)


def teach(model: Model, processor: Processor, steps: int) -> float:
    """Half of the replies as JSON, half of the answers wrong; returns the last loss."""
    optimizer, rng, loss = adamw([one for one in model.parameters() if one.requires_grad]), random.Random(1), 0.0
    for step in range(steps):
        lessons = []
        for _ in range(LESSONS):
            example = draw_example("vqa", rng)
            word = str(example.mistake if rng.random() < 0.5 else example.answer)
            reply = json.dumps({"answer": word}) if rng.random() < 0.5 else word
            lessons.append(Lesson(example, user_text(example), reply, WANTED.words))
        now = lesson_loss(model, supervised_batch(processor, lessons))
        update(optimizer, now, LESSON_RATE * schedule(step, steps, 10))
        loss = now.item()
    return loss


class Sampler:
    """Replies of a model to questions, with or without the grammar."""

    def __init__(self, model: Model, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.compiled = compiled_schema(processor, model)

    def __call__(
        self, examples: Sequence[Example], by_grammar: bool, greedy: bool
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]:
        """(inputs of the prompts, padded on the left; (rows, length) prompt and reply; (rows, reply, vocabulary) allowed)."""
        inputs = self.processor(
            text=[chat_prompt(self.processor, user_text(one), WANTED.words) for one in examples],
            images=[one.image for one in examples],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        grammar = Grammar(self.compiled) if by_grammar else None
        sampling: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0}
        ids = self.model.generate(
            **inputs, **sampling, max_new_tokens=LONGEST, logits_processor=[grammar] if grammar else []
        )
        return dict(inputs), ids, torch.stack(grammar.allowed, 1) if grammar else None

    def rewards(self, examples: Sequence[Example], ids: torch.Tensor, start: int) -> tuple[torch.Tensor, float]:
        """(rows,) 1 for a reply that fits the schema and is right, else 0; and the share that fits."""
        texts = self.processor.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        fits = [not flaw({"content": text}, WANTED) for text in texts]
        right = [
            fit and json.loads(text)["answer"] == one.answer
            for fit, text, one in zip(fits, texts, examples, strict=True)
        ]
        return torch.tensor(right, dtype=torch.float32), sum(fits) / len(fits)

    def validate(self, examples: Sequence[Example]) -> str:
        figures = []
        for name, by_grammar in (("words", False), ("grammar", True)):
            inputs, ids, _ = self(examples, by_grammar, greedy=True)
            rewards, fits = self.rewards(examples, ids, inputs["input_ids"].shape[1])
            figures.append(f"by {name} {rewards.mean():.2f} (fits {fits:.2f})")
        return ", ".join(figures)


def train(arm: str, model: Model, processor: Processor, steps: int, held_out: Sequence[Example]) -> None:
    """GRPO, one update a step; prints what it sampled, the mismatch, and the validation at the end."""
    sampler, rng = Sampler(model, processor), random.Random(2)
    optimizer = adamw([one for one in model.parameters() if one.requires_grad])
    torch.manual_seed(0)
    for step in range(1, steps + 1):
        examples = [one for one in (draw_example("vqa", rng) for _ in range(QUESTIONS)) for _ in range(GROUP)]
        with torch.no_grad():
            inputs, ids, allowed = sampler(examples, arm != "words", greedy=False)
        start = inputs.pop("input_ids").shape[1]
        rewards, fits = sampler.rewards(examples, ids, start)
        groups = rewards.view(QUESTIONS, GROUP)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(-1, 1)
        reply = ids[:, start:]
        mask = (reply == processor.tokenizer.eos_token_id).cumsum(1).cumsum(1) <= 1  # the first end is part of it
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask.long()], 1)
        inputs.pop("mm_token_type_ids", None)
        types = (ids == model.config.image_token_id).long()
        logits = model(input_ids=ids, mm_token_type_ids=types, **inputs).logits[:, start - 1 : -1]
        own = logits.log_softmax(-1)
        sampled = own if allowed is None else logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        at = reply.unsqueeze(-1)
        chosen, served = own.gather(-1, at).squeeze(-1), sampled.gather(-1, at).squeeze(-1)
        mismatch = (chosen - served).abs()[mask].detach()
        learned = served if arm == ARMS[2] else chosen
        loss = -(advantages * learned.masked_fill(~mask, 0.0)).sum() / mask.sum()
        update(optimizer, loss, RATE)
        print(
            f"{arm}: step {step}, sampled {rewards.mean():.2f} (fits {fits:.2f}), |actor - rollout| mean {mismatch.mean():.3f}, "
            f"largest {mismatch.max():.1f}",
            flush=True,
        )
    print(f"{arm}: validation {sampler.validate(held_out)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--taught", type=int, default=60, help="supervised steps before")
    args = parser.parse_args()
    torch.set_num_threads(1)  # beside other work, two threads of so small a model wait for each other most of the time
    processor = Processor.from_pretrained(checkpoint_dir())
    model = Model.from_pretrained(checkpoint_dir(), attn_implementation="sdpa")
    model.model.visual.requires_grad_(False)
    print(f"taught to write JSON half of the time: loss {teach(model, processor, args.taught):.2f}", flush=True)
    rng = random.Random(3)
    held_out = [draw_example("vqa", rng) for _ in range(32)]
    print(f"before: validation {Sampler(model, processor).validate(held_out)}", flush=True)
    for arm in ARMS:
        train(arm, copy.deepcopy(model), processor, args.steps, held_out)


if __name__ == "__main__":
    main()
