"""Compute a group's prompt once: every pass goes over each prompt and each reply once.

The rows of a group begin alike, pictures and all. A micro-batch becomes one sequence: the prompts of its groups, then what
each row adds to its prompt, at the positions that it has there. Prompts attend to themselves; what a row adds attends to its
prompt and to itself (`shared_attention`). No token sees another row, so that every token's hidden state is the one of the row by
itself, and gradients of all rows add up in the prompt. Logits are computed where the model's own tokens are, nowhere else.

verl's `use_prefix_grouper` (models/transformers/monkey_patch.py) does this for text; it knows neither pictures nor M-RoPE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import rearrange_micro_batches

from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import vision_token_ids

ATTENTION = "shared_prompt"
"""What a model's configuration calls `shared_attention`; without a shared micro-batch it is transformers' "sdpa"."""

LEAST_SAVED = 0.1
"""The share of a micro-batch's tokens that sharing must save; below it the rows are computed one by one."""


@dataclass(frozen=True)
class Prefix:
    """Rows of a micro-batch that begin with the same `length` tokens, positions and pictures (`refs`)."""

    rows: list[int]
    length: int
    refs: list[str]


@dataclass(frozen=True)
class Layout:
    """Where tokens lie in the packed sequence: `groups` prompts of `prompt` tokens, then tails of `tail` tokens, one for a row.

    group_of: (rows,), whose prompt a row continues.
    """

    groups: int
    prompt: int
    tail: int
    group_of: torch.Tensor


@dataclass(frozen=True)
class Packed:
    """A micro-batch as one sequence of `length` = groups * prompt + rows * tail tokens.

    inputs: the model's arguments, `input_ids` (1, length), `position_ids` ([4,] 1, length), `attention_mask`, the tails' own
    (rows or 1, 1, tail, prompt + tail), and `shared_layout`. refs: the pictures in the order of their tokens, by prompt and by
    tail. Of every token whose logits are wanted: `kept`, where the state that predicts it lies in the sequence, `labels`, its
    id, `row`, and `target`, its place among the values of the rows' nested outputs. All (tokens,).
    """

    inputs: dict[str, Any]
    refs: list[list[str]]
    kept: torch.Tensor
    labels: torch.Tensor
    row: torch.Tensor
    target: torch.Tensor

    def nested(self, values: torch.Tensor, data: Any) -> torch.Tensor:
        """values: (tokens,) -> one nested value for every token of every row, zero where the model sampled none."""
        offsets = data["input_ids"].offsets()
        whole = values.new_zeros(int(offsets[-1])).index_put((self.target,), values)
        return torch.nested.nested_tensor_from_jagged(whole, offsets)


def why_not(config: Any) -> str:
    """Why a model of this configuration cannot share prompts, "" where it can: its layers must all see everything before.

    config: of the whole model, as transformers has it.
    """
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if layers:
        return f"it has layers of {', '.join(sorted(layers))}"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return "its attention has a sliding window"
    if getattr(text, "attention_chunk_size", None):
        return "its attention sees chunks"
    if getattr(text, "cross_attention_layers", None):
        return "its text sees pictures by cross-attention"
    if config.model_type in ("gemma3", "gemma4", "paligemma") or getattr(text, "use_bidirectional_attention", False):
        return "the tokens of its pictures see each other"
    if text._attn_implementation not in ("sdpa", ATTENTION):
        return f"its attention is {text._attn_implementation}, not sdpa"
    return ""


def use_shared_attention(module: Any) -> None:
    """Let the language model of `module` compute its attention by `shared_attention`."""
    module.config.get_text_config()._attn_implementation = ATTENTION


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_layout: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. query: (1, heads, length, width) of a packed sequence, key and value with fewer heads.

    Returns (1, length, heads, width). Without `shared_layout` this is `sdpa_attention_forward`.
    """
    if shared_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    groups, prompt, tail = shared_layout.groups, shared_layout.prompt, shared_layout.tail
    heads, kept_heads, width = query.shape[1], key.shape[1], query.shape[-1]

    def parts(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, heads, length, width) -> (groups, heads, prompt, width), (rows, heads, tail, width)."""
        first, rest = states[0].split((groups * prompt, states.shape[2] - groups * prompt), dim=1)
        return first.unflatten(1, (groups, prompt)).transpose(0, 1), rest.unflatten(1, (-1, tail)).transpose(0, 1)

    (query, tails), (key, own_key), (value, own_value) = parts(query), parts(key), parts(value)
    attend = F.scaled_dot_product_attention
    prompts = attend(query, key, value, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=True)
    # Query heads that share a key are rows of one attention: keys are then not repeated, which is what sharing is to save.
    folded = tails.unflatten(1, (kept_heads, -1)).flatten(2, 3)  # (rows, key heads, heads / key heads * tail, width)
    assert attention_mask is not None
    replies = attend(
        folded,
        torch.cat([key[shared_layout.group_of], own_key], dim=2),
        torch.cat([value[shared_layout.group_of], own_value], dim=2),
        attn_mask=attention_mask.repeat(1, 1, heads // kept_heads, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    whole = [
        states.transpose(1, 2).reshape(-1, heads, width)
        for states in (prompts, replies.unflatten(2, (-1, tail)).flatten(1, 2))
    ]
    return torch.cat(whole).unsqueeze(0), None


AttentionInterface.register(ATTENTION, shared_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def prefixes(data: Any, refs: Sequence[Sequence[str]], pixels: Pixels | None) -> list[Prefix]:
    """What the rows of each group of a batch begin with, at most the shortest of their prompts; a row alone has its own prompt.

    data: nested `input_ids`, `position_ids`, `prompts`, and `uid`. refs: each row's pictures. Tokens of two different pictures
    may be the same ids at the same positions: a prompt ends before the first picture that not all rows have.
    """
    ids, offsets = data["input_ids"].values(), data["input_ids"].offsets()
    positions = data["position_ids"].values()
    limits = data["prompts"].offsets().diff()
    uids = tu.get(data, "uid")
    if uids is None or isinstance(uids, str):  # tensordict keeps one value where all rows have the same
        uids = range(len(refs)) if uids is None else [uids] * len(refs)
    members: dict[Any, list[int]] = {}
    for row, uid in enumerate(uids):
        members.setdefault(uid, []).append(row)
    first = torch.empty_like(limits)
    for rows in members.values():
        first[rows] = rows[0]
    place = torch.arange(int(limits.max()), device=ids.device)
    inside = place < torch.minimum(limits, limits[first])[:, None]  # (rows, longest prompt)
    starts = offsets[:-1]
    mine, theirs = (torch.where(inside, start[:, None] + place, 0) for start in (starts, starts[first]))
    alike = (
        inside
        & (ids[mine] == ids[theirs])
        & (positions[..., mine] == positions[..., theirs]).reshape(-1, *mine.shape).all(0)
    )
    lengths = alike.long().cumprod(dim=1).sum(dim=1).tolist()
    found = []
    for rows in members.values():
        length = min(lengths[row] for row in rows)
        start = int(offsets[rows[0]])
        common = _common([refs[row] for row in rows])
        found.append(Prefix(rows, *_with_pictures(ids[start : start + length], common, pixels)))
    return found


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """What all lists begin with."""
    return [one[0] for one in _while_equal(zip(*lists, strict=False))]


def _while_equal(columns: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    for column in columns:
        if len(set(column)) > 1:
            return
        yield column


def _with_pictures(ids: torch.Tensor, refs: list[str], pixels: Pixels | None) -> tuple[int, list[str]]:
    """How many of `ids` belong to text and to whole pictures of `refs`, and which of those."""
    if pixels is None:
        return len(ids), []
    vision = torch.isin(ids, torch.tensor(vision_token_ids(pixels.processor), device=ids.device)).cumsum(0)
    total = int(vision[-1]) if len(ids) else 0
    whole, tokens = 0, 0
    while whole < len(refs) and tokens + pixels.placeholders(refs[whole : whole + 1]) <= total:
        tokens += pixels.placeholders(refs[whole : whole + 1])
        whole += 1
    return int((vision <= tokens).sum()), refs[:whole]


def pack(data: Any, refs: Sequence[Sequence[str]], pixels: Pixels | None, pad: int = 0) -> Packed | None:
    """A micro-batch with each group's prompt once; None where that saves too little. Arguments as of `prefixes`.

    data: `loss_mask` too, nested, of each row's response.
    """
    ids, offsets = data["input_ids"].values(), data["input_ids"].offsets()
    lengths, starts = offsets.diff(), offsets[:-1]
    shared = prefixes(data, refs, pixels)
    group_of, known = torch.empty_like(lengths), torch.empty_like(lengths)
    for number, prefix in enumerate(shared):
        group_of[prefix.rows], known[prefix.rows] = number, prefix.length
    first = torch.tensor([prefix.rows[0] for prefix in shared], device=ids.device)
    prompt, tail = int(known.max()), int((lengths - known).max())
    packed = len(shared) * prompt + len(lengths) * tail
    if packed > (1 - LEAST_SAVED) * len(lengths) * int(lengths.max()):
        return None
    heads = torch.arange(prompt, device=ids.device)
    tails = torch.arange(tail, device=ids.device)
    in_prompt, in_tail = heads < known[first, None], tails < (lengths - known)[:, None]
    source = torch.cat([(starts[first, None] + heads).flatten(), (starts + known).unsqueeze(-1).add(tails).flatten()])
    valid = torch.cat([in_prompt.flatten(), in_tail.flatten()])
    source = torch.where(valid, source, 0)
    positions = torch.where(valid, data["position_ids"].values()[..., source], 0).unsqueeze(-2)  # ([4,] 1, length)
    causal = tails[:, None] >= tails
    seen = in_prompt[:1] if in_prompt.all() else in_prompt[group_of]  # one mask for all rows where no prompt is padded
    mask = torch.cat([seen[:, None].expand(-1, tail, -1), causal.expand(len(seen), -1, -1)], dim=-1).unsqueeze(1)
    kept, labels, row, target = _wanted(data, known, len(shared) * prompt, prompt, tail, group_of)
    return Packed(
        inputs={
            "input_ids": torch.where(valid, ids[source], pad).unsqueeze(0),
            "position_ids": positions,
            "attention_mask": mask,
            "shared_layout": Layout(len(shared), prompt, tail, group_of),
        },
        refs=[*(prefix.refs for prefix in shared), *_rests(shared, refs)],
        kept=kept,
        labels=labels,
        row=row,
        target=target,
    )


def _rests(shared: Sequence[Prefix], refs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each row's pictures after those of its prompt."""
    known = {row: len(prefix.refs) for prefix in shared for row in prefix.rows}
    return [list(one[known[row] :]) for row, one in enumerate(refs)]


def _wanted(
    data: Any, known: torch.Tensor, tails_at: int, prompt: int, tail: int, group_of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`kept`, `labels`, `row` and `target` of `Packed`. known: (rows,), the length of each row's shared prompt."""
    mask, starts = data["loss_mask"], data["input_ids"].offsets()[:-1]
    replies = mask.offsets().diff()
    row = torch.arange(len(replies), device=known.device).repeat_interleave(replies)
    within = torch.arange(len(row), device=known.device) - mask.offsets()[:-1][row]
    chosen = mask.values().bool()
    row, place = row[chosen], (data["prompts"].offsets().diff()[row] + within)[chosen]  # of the token in its row
    before = place - 1
    kept = torch.where(
        before < known[row], group_of[row] * prompt + before, tails_at + row * tail + before - known[row]
    )
    return kept, data["input_ids"].values()[starts[row] + place], row, starts[row] + before


def micro_batches(
    data: Any, refs: Sequence[Sequence[str]], pixels: Pixels | None, most: int, **options: Any
) -> tuple[list[Any], list[list[int]]]:
    """verl's `rearrange_micro_batches`, with groups kept together and each prompt counted once. Arguments as of `prefixes`.

    most: tokens of a micro-batch. options: verl's own. Where the ranks cannot agree on a number of whole groups, verl splits
    by rows, and what comes together shares.
    """
    lengths = data["input_ids"].offsets().diff().tolist()
    units = [unit for prefix in prefixes(data, refs, pixels) for unit in _units(prefix, lengths, most)]
    sizes = [length + sum(lengths[row] - length for row in rows) for rows, length in units]
    nested = torch.nested.nested_tensor_from_jagged(
        torch.zeros(sum(sizes), dtype=torch.long), torch.tensor([0, *sizes]).cumsum(0)
    )
    stand_in = tu.get_tensordict({"input_ids": nested.to(data["input_ids"].device)})
    try:
        _, chosen = rearrange_micro_batches(stand_in, max_token_len=most, **options)
    except ValueError:  # raised on all ranks together (verl/utils/seqlen_balancing.py)
        return rearrange_micro_batches(data, max_token_len=most, **options)  # type: ignore[no-any-return]
    indices = [[row for unit in part for row in units[unit][0]] for part in chosen]
    return [tu.index_select_tensor_dict(data, rows) for rows in indices], indices


def _units(prefix: Prefix, lengths: Sequence[int], most: int) -> Iterator[tuple[list[int], int]]:
    """The rows of a group in parts of at most `most` tokens, each with the length of what it shares."""
    part: list[int] = []
    size = prefix.length
    for row in prefix.rows:
        added = lengths[row] - prefix.length
        if part and size + added > most:
            yield part, prefix.length
            part, size = [], prefix.length
        part.append(row)
        size += added
    yield part, prefix.length
