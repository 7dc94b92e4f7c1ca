"""SGLang's arguments for the device at hand; a module of its own, because SGLang's scheduler processes import it."""

from __future__ import annotations

import dataclasses

import torch
from sglang.srt.server_args import ServerArgs

_HOPPER = 9  # major compute capability
_CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "sampling_backend": "pytorch",
    "disable_overlap_schedule": True,
    "enable_memory_saver": False,
}
_CPU_TOKENS = 65_536
"""Of the KV cache. SGLang would take `mem_fraction_static` of the main memory, as if it were a GPU's."""


@dataclasses.dataclass
class DeviceArguments(ServerArgs):
    """What verl asks for, where the device has it.

    verl asks for FlashAttention 3 unless the configuration names another backend; that needs a Hopper GPU.
    """

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            self.__dict__.update(_CPU, max_total_tokens=self.max_total_tokens or _CPU_TOKENS)
        elif torch.cuda.get_device_capability()[0] != _HOPPER:
            for name in ("attention_backend", "mm_attention_backend"):
                if getattr(self, name) == "fa3":
                    setattr(self, name, None)  # SGLang's own choice for this GPU
        super().__post_init__()
