"""Measure what sharing a group's prompt saves per update: seconds, FLOPs and bytes kept for the backward pass.

    python benchmarks/shared_prompt.py                                    # every shape and prompt below
    python benchmarks/shared_prompt.py --shapes tiny 0.5B --prompts 1300

Language models of Qwen2.5-VL's sizes with random weights and few layers, which are all alike: ratios are those of the layers and
of the output, not of the vision tower. The vocabulary is a ninth of the real one: row by row, logits of every token of prompts of
1,300 tokens would take 6 GB and more, which shared prompts do not compute at all. Rows go through the engine of a run
(`VisionEngine.prepare_model_inputs`, `prepare_model_outputs`), row by row and shared in turns; log-probabilities and gradients of
the two are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig
from verl.utils import tensordict_utils as tu
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.utils.padding import no_padding_2_padding

from vision_rl.actor.engine import mend_positions
from vision_rl.preflight.parity_actor import bare_engine

SHAPES = {  # hidden, intermediate, heads, key heads, vocabulary, layers that are run (of the real model)
    "tiny": (128, 256, 4, 2, 586, 3),
    "0.5B": (896, 4864, 14, 2, 16384, 2),
    "1.5B": (1536, 8960, 12, 2, 16384, 1),
    "3B": (2048, 11008, 16, 2, 16384, 1),
}
LAYERS = {"tiny": 3, "0.5B": 24, "1.5B": 28, "3B": 36}
GROUP = 8


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Shapes of (rows, heads, tokens, width). Two products of matrices; what a causal mask leaves out is counted too."""
    rows, heads, tokens, width = query
    return int(4 * rows * heads * tokens * width * key[2])


def _attention_backward(_gradient: Any, query: Any, key: Any, *rest: Any, **__: Any) -> int:
    """Five products."""
    return _attention(query, key) * 5 // 2


_OPS = torch.ops.aten
ATTENTION: Any = {
    _OPS._scaled_dot_product_flash_attention_for_cpu: _attention,
    _OPS._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operators that torch's own counter does not know."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--prompts", nargs="+", type=int, default=[32, 272, 1300], help="tokens of a prompt")
    parser.add_argument("--reply", type=int, default=8, help="tokens of a reply")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(
        f"{GROUP} replies of {args.reply} tokens; CPU seconds of one thread, median of {args.repeat}; load {load:.1f}"
    )
    for shape in args.shapes:
        engine = made(shape)
        for prompt in args.prompts:
            print(json.dumps(compared(engine, shape, prompt, args.reply, args.repeat)), flush=True)


def made(shape: str) -> Any:
    """A `VisionEngine` around a model of this shape, without process groups and optimizer."""
    hidden, intermediate, heads, key_heads, vocabulary, layers = SHAPES[shape]
    width = hidden // heads // 2
    section = [width - 2 * (3 * width // 8), 3 * width // 8, 3 * width // 8]
    text = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads, "vocab_size": vocabulary,
        "num_key_value_heads": key_heads, "num_hidden_layers": layers, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    tower = {"depth": 1, "hidden_size": 64, "num_heads": 2, "out_hidden_size": hidden}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").train()
    engine = bare_engine(model, None)
    engine.compute_entropy_from_logits = entropy_from_logits
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    return engine


def rows(vocabulary: int, prompt: int, reply: int) -> Any:
    """A micro-batch of one group."""
    torch.manual_seed(1)
    given = torch.randint(vocabulary, (prompt,))
    made = []
    for _ in range(GROUP):
        sampled = torch.randint(vocabulary, (reply,))
        ids = torch.cat([given, sampled])
        own = torch.ones_like(sampled)
        row = {"prompts": given, "responses": sampled, "input_ids": ids, "response_mask": own, "loss_mask": own}
        made.append({"uid": "g", "position_ids": torch.arange(len(ids)).expand(4, -1).clone(), **row})
    data = list_of_dict_to_tensordict(made)
    for name in list(data.keys()):
        if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
            data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
    mend_positions(data)
    tu.assign_non_tensor(data, use_remove_padding=False, temperature=1.0, calculate_entropy=True)
    return data


def update(engine: Any, data: Any, share: bool) -> torch.Tensor:
    """A forward and backward pass; (rows, longest reply) log-probabilities. Gradients are left in the model."""
    engine.shares_prompts = share
    engine.module.zero_grad(set_to_none=True)
    inputs, known = engine.prepare_model_inputs(data)
    output = engine.prepare_model_outputs(language_model(engine.module, inputs), known, data, None)
    log_probs = no_padding_2_padding(output["log_probs"], data)
    (log_probs * torch.linspace(-1, 1, GROUP)[:, None]).sum().backward()
    return log_probs.detach()


def language_model(model: Any, inputs: dict[str, Any]) -> Any:
    """The model without its tower, which these rows of text do not need."""
    inputs = dict(inputs)
    states = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(inputs.pop("input_ids")), use_cache=False, **inputs
    )
    return SimpleNamespace(logits=model.lm_head(states.last_hidden_state))


def compared(engine: Any, shape: str, prompt: int, reply: int, repeat: int) -> dict[str, Any]:
    """One line of the table."""
    vocabulary = SHAPES[shape][4]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    found: dict[bool, Any] = {}
    gradients: dict[bool, Any] = {}
    flops: dict[bool, Any] = {}
    kept: dict[bool, Any] = {}
    for share in (False, True):
        counted = FlopCounterMode(display=False, custom_mapping=ATTENTION)
        with counted as counter, torch.autograd.graph.saved_tensors_hooks(*_counting(kept, share)):
            found[share] = update(engine, rows(vocabulary, prompt, reply), share)
        flops[share] = counter.get_total_flops()
        gradients[share] = torch.cat([p.grad.flatten() for p in engine.module.parameters() if p.grad is not None])
    for share in [False, True] * repeat:
        data = rows(vocabulary, prompt, reply)
        started = time.process_time()
        update(engine, data, share)
        seconds[share].append(time.process_time() - started)
    alone, shared = (statistics.median(seconds[share]) for share in (False, True))
    return {
        "shape": shape, "layers": f"{SHAPES[shape][5]} of {LAYERS[shape]}", "prompt": prompt,
        "seconds": [round(alone, 3), round(shared, 3)], "seconds_ratio": round(shared / alone, 3),
        "flops_ratio": round(flops[True] / flops[False], 3),
        "kept_mib": [round(kept[share] / 2**20, 1) for share in (False, True)], "kept_ratio": round(kept[True] / kept[False], 3),
        "log_prob_difference": float((found[True] - found[False]).abs().max()),
        "gradient_difference": float((gradients[True] - gradients[False]).norm() / gradients[False].norm()),
    }  # fmt: skip


def _counting(kept: dict[bool, int], share: bool) -> Any:
    """Hooks that add up the bytes of what the backward pass keeps, weights and repeated storages left out."""
    kept[share] = 0
    seen: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = (tensor.values() if tensor.is_nested else tensor).untyped_storage()
        if not tensor.is_leaf and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept[share] += storage.nbytes()
        return tensor

    return pack, lambda tensor: tensor


if __name__ == "__main__":
    main()
