"""GRPO on the tiny model in one process: does it learn, and only with sight? `python benchmarks/tiny_grpo.py --task vqa`.

The same update as verl's with its defaults (group-normalised advantages, token mean, AdamW, gradients clipped to 1, no KL),
without Ray, vLLM and Agent Lightning, so that the recipe of the tiny model and the learning rate can be judged in minutes.
Each batch makes one update; the ratio to the sampling policy is then 1 and its clip does nothing, so both are left out.
`--blind` gives the *actor* zeros for pixels, as a trainer does that forgets them; samples still come from a policy that
sees. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vision_rl.agent.prompts import GROUNDING_PROMPT, VQA_PROMPT
from vision_rl.data.schema import read_rows
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.rewards import grounding_reward, vqa_reward
from vision_rl.tiny import checkpoint_dir, write_tasks
from vision_rl.tiny.scenes import TASKS
from vision_rl.tiny.warmstart import chat_prompt

NEW_TOKENS = {"vqa": 6, "grounding": 14}


class Learner:
    """The model, its processor and the update. Rows are those of `read_rows`."""

    def __init__(self, checkpoint: Path, task: str, rate: float) -> None:
        self.task = task
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=0.01)
        self.end = self.processor.tokenizer.eos_token_id
        self.pad = self.processor.tokenizer.pad_token_id

    def prompts(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Model inputs of the rows' prompts, padded on the left."""
        template = (
            (lambda row: VQA_PROMPT.format(question=row["question"]))
            if self.task == "vqa"
            else (lambda row: GROUNDING_PROMPT.format(instruction=row["question"]))
        )
        texts = [chat_prompt(self.processor, template(row)) for row in rows]
        images = [Image.open(row["image_paths"][0]).convert("RGB") for row in rows]
        return dict(self.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"))

    @torch.no_grad()
    def sample(self, inputs: dict[str, torch.Tensor], n: int, greedy: bool = False) -> torch.Tensor:
        """Replies as (rows * n, length) token ids, padded after their end."""
        tokens = self.model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS[self.task],
            num_return_sequences=n,
            pad_token_id=self.pad,
            **({"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        )
        return tokens[:, inputs["input_ids"].shape[1] :]

    def rewards(self, rows: list[dict[str, Any]], replies: torch.Tensor) -> torch.Tensor:
        """One reward per reply; the replies of a row stand together."""
        texts = self.processor.tokenizer.batch_decode(replies, skip_special_tokens=True)
        per_row = len(texts) // len(rows)
        return torch.tensor([self._reward(rows[number // per_row], text) for number, text in enumerate(texts)])

    def _reward(self, row: dict[str, Any], text: str) -> float:
        if self.task == "vqa":
            return vqa_reward(text, row["answers"]).value
        return grounding_reward(text, row["boxes"]).value

    def evaluate(self, rows: list[dict[str, Any]], greedy: bool = True) -> float:
        """Mean reward of one reply per row."""
        return self.rewards(rows, self.sample(self.prompts(rows), 1, greedy)).mean().item()

    def step(self, rows: list[dict[str, Any]], n: int, blind: bool) -> tuple[float, float]:
        """One GRPO step; returns the mean reward and the share of rows whose replies differed in reward."""
        inputs = self.prompts(rows)
        replies = self.sample(inputs, n)
        rewards = self.rewards(rows, replies).view(len(rows), n)
        spread = rewards.std(1, keepdim=True)
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-6)).view(-1, 1)
        mask = (replies == self.end).cumsum(1) - (replies == self.end).int() == 0
        logits = self._logits(inputs, replies, n, blind)
        chosen = logits.log_softmax(-1).gather(-1, replies[..., None])[..., 0]
        loss = -(advantages * chosen * mask).sum() / mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return rewards.mean().item(), (spread > 1e-6).float().mean().item()

    def _logits(self, inputs: dict[str, torch.Tensor], replies: torch.Tensor, n: int, blind: bool) -> torch.Tensor:
        """(rows * n, length, vocabulary): what the actor says before each token of the replies."""
        patches = inputs["image_grid_thw"].prod(1).tolist()
        pixels = [part for part in inputs["pixel_values"].split(patches) for _ in range(n)]
        pixel_values = torch.cat(pixels)
        repeated = {name: inputs[name].repeat_interleave(n, 0) for name in ("input_ids", "attention_mask")}
        output = self.model(
            input_ids=torch.cat([repeated["input_ids"], replies], 1),
            attention_mask=torch.cat([repeated["attention_mask"], torch.ones_like(replies)], 1),
            pixel_values=torch.zeros_like(pixel_values) if blind else pixel_values,
            image_grid_thw=inputs["image_grid_thw"].repeat_interleave(n, 0),
        )
        return output.logits[:, -replies.shape[1] - 1 : -1]

    @torch.no_grad()
    def forbidden_mass(self, rows: list[dict[str, Any]]) -> float:
        """The largest probability of a vision placeholder at any position of the rows' prompts and sampled replies."""
        inputs = self.prompts(rows)
        logits = self._logits(inputs, self.sample(inputs, 1), 1, blind=False)
        return logits.softmax(-1)[..., forbidden_token_ids(self.processor)].max().item()


def main() -> None:
    """Train once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="vqa")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_dir(), help="(default: the one that ships)")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="rows per step (default: %(default)s)")
    parser.add_argument("--n", type=int, default=8, help="replies per row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and of the order of rows")
    parser.add_argument("--blind", action="store_true", help="zeros for pixels in the actor")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_tasks(folder, arguments.task)
        train, validation = read_rows(paths["train"]), read_rows(paths["val"])
        learner = Learner(arguments.checkpoint, arguments.task, arguments.lr)
        curve = {0: round(learner.evaluate(validation), 3)}
        sampled = learner.evaluate(validation, greedy=False)
        rewards, started = [], time.perf_counter()
        order: list[int] = []
        for step in track(range(1, arguments.steps + 1), description="GRPO"):
            if len(order) < arguments.prompts:
                order = torch.randperm(len(train)).tolist()
            rows = [train[order.pop()] for _ in range(arguments.prompts)]
            rewards.append(learner.step(rows, arguments.n, arguments.blind))
            if step % 20 == 0 or step == arguments.steps:
                curve[step] = round(learner.evaluate(validation), 3)
        result = {
            "task": arguments.task,
            "blind": arguments.blind,
            "seed": arguments.seed,
            "lr": arguments.lr,
            "val_sampled_before": round(sampled, 3),
            "val_greedy": curve,
            "train_reward_first_last_10": [
                round(sum(r for r, _ in part) / len(part), 3) for part in (rewards[:10], rewards[-10:])
            ],
            "rows_with_spread_first_10": round(sum(s for _, s in rewards[:10]) / len(rewards[:10]), 3),
            "forbidden_mass_max": learner.forbidden_mass(validation),
            "step_seconds": round((time.perf_counter() - started) / arguments.steps, 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
