"""Turn finished rollouts into rows of verl's queue: the trace's token ids, pictures by reference, position ids.

Agent Lightning 0.3.0's own batch (agentlightning/verl/daemon.py:866) never adds `multi_modal_inputs`, so that actor and
reference compute the log-probabilities of a model that cannot see (issues 559, 441, 482, 334 there), keeps rewards in
bfloat16 and cuts prompts through their images. verl's own agent loop copies the pixels of a picture into every row of its
group (verl issue 7391). Here a row names its pictures; the rank that trains on it opens them (`actor/engine.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels, count_of
from vision_rl.models.positions import position_ids
from vision_rl.models.processor import vision_token_ids
from vision_rl.run.failures import SampleDrop
from vision_rl.training.samples import Sample


@dataclass(frozen=True)
class Drop:
    """Why a sample is not trained on. text: the sentence, which names the picture where there is one."""

    reason: SampleDrop
    text: str


@dataclass(frozen=True)
class RowKey:
    """The name of a row in verl's queue, by which verl and we find its group (`uid`), its rollout, and its sample of that."""

    uid: str
    rollout: int
    sample: int

    def __str__(self) -> str:
        return f"{self.rollout_key}_{self.sample}"

    @property
    def rollout_key(self) -> str:
        """What the rows of one rollout share."""
        return f"{self.uid}_{self.rollout}"

    @classmethod
    def parse(cls, key: str) -> RowKey:
        """The inverse of `str`."""
        uid, rollout, sample = key.rsplit("_", 2)
        return cls(uid, int(rollout), int(sample))


class RowBuilder:
    """Turns samples into rows; what cannot be trained on is dropped with its reason, never repaired.

    temperature: the run's, at which the server samples what a request says nothing about.
    """

    def __init__(
        self,
        processor: Any,
        pixels: Pixels,
        *,
        max_prompt_length: int,
        max_response_length: int,
        temperature: float = 1.0,
    ) -> None:
        self.processor = processor
        self.pixels = pixels
        self.max_prompt_length = max_prompt_length
        self.max_response_length = max_response_length
        self.temperature = temperature
        self._prompt: tuple[Any, torch.Tensor] | None = None

    def row(self, sample: Sample) -> dict[str, Any] | Drop:
        """The fields of one sequence, unpadded, as verl's V1 trainer reads them (verl/trainer/ppo/v1/agent_loop_tq.py).

        `prompts`, `responses`, `response_mask`, `rollout_log_probs`, `rm_scores`: (length,). `position_ids`: (length,), or
        (4, length) for M-RoPE. The reward stands on the last token, in float32, less what an
        environment gave at earlier turns, which stands at their ends. `sampling_temperature` is what the
        rank divides this row's logits by (`actor/rank.py`).
        """
        drop = self._refused(sample)
        if drop is not None:
            return drop
        try:
            inputs = self.pixels.inputs(sample.image_refs)
        except UserError as error:
            return Drop(SampleDrop.UNREADABLE_IMAGE, str(error))
        prompts = torch.tensor(sample.prompt_ids, dtype=torch.long)
        responses = torch.tensor(sample.response_ids[: self.max_response_length], dtype=torch.long)
        input_ids = torch.cat([prompts, responses])
        drop = self._disagreement(sample, input_ids)
        if drop is not None:
            return drop
        mask = torch.tensor(sample.response_mask[: len(responses)], dtype=torch.long)
        scores = torch.zeros(len(responses))
        scores[-1] = sample.reward
        for place, earned in sample.placed:
            if place < len(scores) - 1:
                scores[place] += earned
                scores[-1] -= earned
        return {
            "uid": sample.data_id,
            "prompts": prompts,
            "responses": responses,
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": input_ids,
            "position_ids": self._positions(sample, input_ids, inputs),
            "rollout_log_probs": torch.tensor(sample.rollout_log_probs[: len(responses)]),
            "rm_scores": scores,
            "num_turns": sample.turn_index + 1,
            "multi_modal_inputs": {"refs": list(sample.image_refs)},
            "sampling_temperature": float(self.temperature if sample.temperature is None else sample.temperature),
        }

    def _positions(self, sample: Sample, input_ids: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`position_ids` of a row. A reply of text counts on from its prompt, whose own are computed once for its group."""
        start = len(sample.prompt_ids)
        if count_of(input_ids[start:], vision_token_ids(self.processor)):
            return position_ids(self.processor, input_ids, torch.ones_like(input_ids), inputs)
        key = (sample.prompt_ids, sample.image_refs)
        if self._prompt is None or self._prompt[0] != key:
            begun = input_ids[: start + 1]  # the reply's first token says where text goes on
            self._prompt = key, position_ids(self.processor, begun, torch.ones_like(begun), inputs)
        begun = self._prompt[1]
        return torch.cat([begun, begun[..., -1:] + torch.arange(1, len(input_ids) - start)], dim=-1)

    def _refused(self, sample: Sample) -> Drop | None:
        """What can be said without opening a picture."""
        if not sample.prompt_ids or not sample.response_ids:
            return Drop(SampleDrop.EMPTY, "the model server returned no tokens")
        if len(sample.rollout_log_probs) != len(sample.response_ids):
            text = f"{len(sample.rollout_log_probs)} log-probabilities for {len(sample.response_ids)} response tokens"
            return Drop(SampleDrop.NO_LOGPROBS, text)
        if len(sample.prompt_ids) > self.max_prompt_length:  # a cut could run through an image
            text = (
                f"the prompt has {len(sample.prompt_ids)} tokens, data.max_prompt_length={self.max_prompt_length}; "
                "raise it, or lower agent.max_pixels"
            )
            return Drop(SampleDrop.PROMPT_TOO_LONG, text)
        return None

    def _disagreement(self, sample: Sample, input_ids: torch.Tensor) -> Drop | None:
        """Whether picture tokens and pictures belong together: a row where they do not would be trained blind."""
        found = count_of(input_ids, vision_token_ids(self.processor))
        expected = self.pixels.placeholders(sample.image_refs)
        if found != expected:
            text = f"{found} picture tokens where {', '.join(sample.image_refs) or 'no picture'} gives {expected}"
            return Drop(SampleDrop.IMAGE_TOKENS_DISAGREE, text)
        return None


def tag_of(row: dict[str, Any], *, queued_at: int, first_version: int, last_version: int) -> dict[str, Any]:
    """What verl's replay buffer reads of a row without its contents. Versions count weight updates."""
    prompt, response = len(row["prompts"]), len(row["responses"])
    return {
        "status": "success",
        "prompt_len": prompt,
        "response_len": response,
        "seq_len": prompt + response,
        "pictures": len(row["multi_modal_inputs"]["refs"]),
        "global_steps": queued_at,
        "min_global_steps": first_version,
        "max_global_steps": last_version,
    }


def truncated(samples: Iterable[Sample], limit: int) -> int:
    """How many responses are longer than what is trained on of them."""
    return sum(len(sample.response_ids) > limit for sample in samples)
