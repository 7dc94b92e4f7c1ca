"""Bidirectional attention among a picture's tokens (Gemma 3) on vLLM's CPU build.

vLLM's runner notes where a request's pictures stand (`mm_req_doc_ranges`). Its Triton and Flash kernels for a GPU look at that,
its CPU attention does not (v1/attention/backends/cpu_attn.py): log-probabilities were off by up to 0.06 nats.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Seen(NamedTuple):
    """A second pass of the kernel: each picture of a batch as a request of its own, up to its last token, without a mask.

    rows: places of the pictures' tokens in the batch's queries. The others are the kernel's own arguments.
    """

    rows: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    scheduler_metadata: torch.Tensor


def see_both_ways() -> None:
    """Compute a picture's rows anew where the model says so, after the kernel has computed all of them causally.

    A row then sees what comes before it, within the layer's window, and the whole of its picture, as in transformers. A picture
    must not be cut into two prefills; vLLM forces that on GPUs only (platforms/cuda.py, `disable_chunked_mm_input`).
    """
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl as Attention
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder as Builder

    begin, build, forward = Builder.__init__, Builder.build, Attention.forward

    def whole(self: Any, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
        begin(self, kv_cache_spec, layer_names, vllm_config, device)
        if vllm_config.model_config.is_mm_prefix_lm:  # the scheduler is made after this
            vllm_config.scheduler_config.disable_chunked_mm_input = True

    def noted(self: Any, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        built = build(self, common_prefix_len, common_attn_metadata, fast_build)
        built.seen = _pictures(self, built, common_attn_metadata.mm_req_doc_ranges or {})
        return built

    def both_ways(
        self: Any,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        output: Any,
        output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:
        forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if seen := getattr(attn_metadata, "seen", None):
            blocks, heads, size, _ = kv_cache.size()
            key_cache, value_cache = kv_cache.view((blocks, heads, size * 2, -1)).chunk(2, dim=2)
            again = torch.empty_like(output[seen.rows])
            ops.cpu_attention_with_kv_cache(
                query=query[seen.rows].contiguous(),
                key_cache=key_cache,
                value_cache=value_cache,
                output=again,
                query_start_loc=seen.query_start_loc,
                seq_lens=seen.seq_lens,
                scale=self.scale,
                causal=False,
                alibi_slopes=self.alibi_slopes,
                sliding_window=self.sliding_window,
                block_table=seen.block_table,
                softcap=self.logits_soft_cap,
                scheduler_metadata=seen.scheduler_metadata,
                s_aux=self.sinks,
                dynamic_causal=None,
                k_scale=layer._k_scale_float,
                v_scale=layer._v_scale_float,
                kv_cache_dtype=self.kv_cache_dtype,
            )
            output[seen.rows] = again
        return output

    Builder.__init__, Builder.build, Attention.forward = whole, noted, both_ways


def _pictures(builder: Any, built: Any, ranges: dict[int, list[tuple[int, int]]]) -> Seen | None:
    """The second pass of a batch, None where no picture is among its queries. ranges: first and last place by request."""
    from vllm import _custom_ops as ops

    rows, lengths, requests = [], [], []
    starts, ends = built.query_start_loc.tolist(), built.seq_lens.tolist()
    for request, pictures in ranges.items():
        shift = starts[request + 1] - ends[request]  # from a place in the sequence to one among the queries
        for first, last in pictures:
            places = range(max(first + shift, starts[request]), min(last + 1 + shift, starts[request + 1]))
            if places:
                rows.append(torch.tensor(places))
                lengths.append(last + 1)
                requests.append(request)
    if not rows:
        return None
    seq_lens = torch.tensor(lengths, dtype=built.seq_lens.dtype)
    sizes = torch.tensor([0, *map(len, rows)], dtype=built.query_start_loc.dtype)
    query_start_loc = sizes.cumsum(0, dtype=sizes.dtype)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(rows),
        num_heads=builder.num_heads,
        num_kv_heads=builder.num_kv_heads,
        head_dim=builder.head_dim,
        seq_lens=seq_lens,
        dtype=builder.dtype,
        query_start_loc=query_start_loc,
        causal=False,
        sliding_window_size=builder.window_size,
        isa=builder.isa,
        enable_kv_split=False,
    )
    return Seen(torch.cat(rows), query_start_loc, seq_lens, built.block_table[requests].contiguous(), metadata)
