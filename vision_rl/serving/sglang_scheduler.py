"""SGLang's scheduler process with what it lacks for this project. SGLang starts `run_scheduler` by name.

- Qwen2.5-VL under transformers 5.10: SGLang 0.5.12 was written for 5.6 and calls transformers' rotary embedding of the vision
  tower with a length, where 5.10 takes positions ("IndexError: Dimension out of range"). SGLang's own for Qwen2-VL, the same
  formula, takes a length. Can go with a release of SGLang that allows transformers 5.10.
- The tokens that the actor gives no probability (banned_tokens.py): verl masks them in vLLM only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.models import qwen2_5_vl, qwen2_vl

from vision_rl.serving.banned_tokens import BANNED_LOGIT


def run_scheduler(banned: Sequence[int], *arguments: Any) -> None:
    """As `run_scheduler_process(*arguments)`. banned: ids that are never sampled. Changes this process."""
    qwen2_5_vl.Qwen2_5_VisionRotaryEmbedding = qwen2_vl.Qwen2VisionRotaryEmbedding
    preprocess = Sampler._preprocess_logits
    ids = torch.tensor(banned, dtype=torch.long)

    def without_banned(self: Any, logits: torch.Tensor, sampling_info: Any) -> torch.Tensor:
        """logits: (requests, vocabulary); written in place, as SGLang's own processors do."""
        return preprocess(self, logits.index_fill_(-1, ids.to(logits.device), BANNED_LOGIT), sampling_info)

    Sampler._preprocess_logits = without_banned
    run_scheduler_process(*arguments)
