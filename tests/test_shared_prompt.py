"""A group's prompt computed once: log-probabilities, entropies and gradients are those of each row by itself, in every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig
from verl.utils import tensordict_utils as tu
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import no_padding_2_padding

from tests.actor import actor, log_probs
from tests.test_rows import make_sample, rows_of  # noqa: F401  (a fixture)
from vision_rl.actor import shared_prompt
from vision_rl.actor.engine import VisionEngine, mend_positions
from vision_rl.actor.papo import papo_loss
from vision_rl.actor.rank import VisionTrainingWorker, VisionWorker
from vision_rl.actor.shared_prompt import Layout, why_not
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.settings import AppSettings, Papo
from vision_rl.training.balance import groups_by_rank, padded
from vision_rl.training.rows import RowBuilder
from vision_rl.training.samples import Sample

LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.rollout.load_format=safetensors")
RECOMPUTED = ("actor_rollout_ref.model.enable_gradient_checkpointing=true",)
ADVANTAGES = torch.linspace(-1, 1, 16)


@pytest.fixture(scope="module")
def worker() -> VisionTrainingWorker:
    return actor()


@pytest.fixture
def builder(tiny_processor: Any, tmp_path: Path) -> RowBuilder:
    pixels = Pixels(tiny_processor, tmp_path)
    return RowBuilder(tiny_processor, pixels, max_prompt_length=128, max_response_length=64)


@pytest.fixture
def groups(make_sample: Callable[..., Sample], vqa_rows: list[dict[str, Any]]) -> list[Sample]:  # noqa: F811
    """One picture; two pictures; none; a tool's picture after the first reply, as one trajectory and as a turn of its own."""
    paths = [row["image_paths"][0] for row in vqa_rows]
    one = [make_sample([paths[0]], reply) for reply in ("red", "blue square", "2", "red")]
    two = [make_sample(paths[1:3], reply, data_id="two") for reply in ("green", "3")]
    none = [make_sample([], reply, data_id="none") for reply in ("2", "4 5 6", "7")]
    tools = []
    for path in paths[4:6]:
        first, shown = make_sample([paths[3]], "look", data_id="tool"), make_sample([path], "blue", data_id="tool")
        given, refs = shown.prompt_ids, [*first.image_refs, *shown.image_refs]
        reply = [*first.response_ids, *given, *shown.response_ids]
        mask = [1] * len(first.response_ids) + [0] * len(given) + [1] * len(shown.response_ids)
        tools.append(
            replace(
                first, response_ids=reply, response_mask=mask, rollout_log_probs=[-1.0] * len(reply), image_refs=refs
            )
        )
        turn = replace(
            shown, prompt_ids=[*first.prompt_ids, *first.response_ids, *given], image_refs=refs, data_id="turn"
        )
        tools += [replace(first, data_id="turn"), turn]
    return [*one, *two, *none, *tools]


def batch(rows: list[dict[str, Any]], **settings: Any) -> Any:
    data = list_of_dict_to_tensordict([dict(row) for row in rows])
    for name in list(data.keys()):
        if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
            data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
    tu.assign_non_tensor(
        data, **{"use_remove_padding": False, "temperature": 1.0, "calculate_entropy": True, **settings}
    )
    mend_positions(data)
    return data


def loss(model_output: dict[str, torch.Tensor], data: Any, kept: dict[str, torch.Tensor], **_: Any) -> Any:
    """A sum over the model's own tokens in which every row has its own weight; what it was made of goes to `kept`."""
    mask = data.select("response_mask").to_padded_tensor()["response_mask"].bool()
    for name, values in model_output.items():
        padded = no_padding_2_padding(values, data) * mask
        kept[name] = padded.detach()
    total = (no_padding_2_padding(model_output["log_probs"], data) * mask * ADVANTAGES[: len(mask), None]).sum()
    return total + 0.1 * (no_padding_2_padding(model_output["entropy"], data) * mask).sum(), {}


def update(engine: Any, data: Any, share: bool, function: Any = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What a forward and backward pass says of each token, and its gradient."""
    engine.shares_prompts = share
    engine.module.train()
    engine.module.zero_grad()
    kept: dict[str, torch.Tensor] = {}
    total, _ = engine.forward_step(data, function or partial(loss, kept=kept), forward_only=False)
    total.backward()
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return kept, torch.cat([getattr(grad, "full_tensor", lambda grad=grad: grad)().flatten() for grad in grads])


def assert_equal(alone: Any, shared: Any) -> None:
    for name, values in alone[0].items():
        torch.testing.assert_close(shared[0][name], values, atol=2e-5, rtol=0)
    assert ((alone[1] - shared[1]).norm() / alone[1].norm()).item() < 1e-5


@pytest.mark.parametrize(
    ("changes", "temperature"),
    [((), 1.0), (LORA, "of each row"), (RECOMPUTED, "of each row")],
    ids=["plain", "LoRA", "recomputed"],
)
def test_log_probs_entropies_and_gradients_are_those_of_the_rows_alone(
    changes: tuple[str, ...], temperature: Any, worker: VisionTrainingWorker, builder: RowBuilder, groups: list[Sample]
) -> None:
    engine = (actor("actor", None, *changes) if changes else worker).engine
    engine.pixels = builder.pixels
    rows = rows_of(builder, groups)
    if temperature != 1.0:
        temperature = torch.linspace(0.5, 2, len(rows))
    settings = {"temperature": temperature, "calculate_sum_pi_squared": True}
    lengths: list[int] = []
    hook = engine.module.get_input_embeddings().register_forward_hook(
        lambda _module, _given, made: lengths.append(made.shape[:2].numel())
    )
    alone, shared = (update(engine, batch(rows, **settings), share) for share in (False, True))
    hook.remove()
    assert_equal(alone, shared)
    assert set(alone[0]) == {"log_probs", "entropy", "sum_pi_squared"} and lengths[-1] < 0.8 * lengths[0]


def test_replies_that_see_each_other_are_found_out(
    worker: VisionTrainingWorker, builder: RowBuilder, groups: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: all replies of a group as one, of which each token sees those before."""
    engine = worker.engine
    engine.pixels = builder.pixels
    rows = rows_of(builder, groups[:4])
    alone = update(engine, batch(rows), False)
    pack = shared_prompt.pack

    def careless(*given: Any) -> Any:
        packed = pack(*given)
        assert packed is not None
        layout = packed.inputs["shared_layout"]
        tail = layout.tail * len(layout.group_of)
        causal = torch.ones(tail, tail, dtype=torch.bool).tril()
        mask = torch.cat([torch.ones(tail, layout.prompt, dtype=torch.bool), causal], dim=1)
        packed.inputs["shared_layout"] = Layout(1, layout.prompt, tail, layout.group_of[:1])
        packed.inputs["attention_mask"] = mask[None, None]
        return packed

    monkeypatch.setattr(shared_prompt, "pack", careless)
    with pytest.raises(AssertionError):
        assert_equal(alone, update(engine, batch(rows), True))
    monkeypatch.setattr(shared_prompt, "pack", pack)
    assert_equal(alone, update(engine, batch(rows), True))


@pytest.mark.parametrize("role", ["actor", "ref"])
def test_passes_before_the_update_are_the_same(
    role: str, worker: VisionTrainingWorker, builder: RowBuilder, groups: list[Sample]
) -> None:
    """Old log-probabilities and the reference's, with pictures and with black ones, by micro-batches of rows."""
    asked = worker if role == "actor" else actor("ref")
    rows = rows_of(builder, groups)
    for view in ("seen", "blank"):
        found = []
        for share in (False, True):
            asked.engine.shares_prompts = share
            found.append(log_probs(asked, rows, builder.pixels, view=view))
        mask = torch.nn.utils.rnn.pad_sequence([row["response_mask"] for row in rows], batch_first=True)
        torch.testing.assert_close(found[1], found[0] * mask, atol=2e-5, rtol=0)


def test_papos_two_passes_are_the_same(worker: VisionTrainingWorker, builder: RowBuilder, groups: list[Sample]) -> None:
    engine = worker.engine
    engine.pixels = builder.pixels
    builder.pixels.masked = 0.6
    config = type("Actor", (), {"loss_agg_mode": "token-mean", "global_batch_info": {}})
    engine.papo = partial(papo_loss, papo=Papo(kl_coef=0.5), config=config)
    try:
        kept: list[dict[str, torch.Tensor]] = [{}, {}]
        found = [
            update(engine, batch(rows_of(builder, groups), temperature=4.0), share, partial(loss, kept=kept[share]))
            for share in (False, True)
        ]
    finally:
        engine.papo = None
    assert_equal((kept[0], found[0][1]), (kept[1], found[1][1]))


def test_micro_batches_by_tokens_keep_groups_together_and_count_a_prompt_once(
    worker: VisionTrainingWorker, builder: RowBuilder, groups: list[Sample]
) -> None:
    engine = worker.engine
    engine.pixels = builder.pixels
    rows = rows_of(builder, [groups[i] for i in (0, 4, 6, 1, 5, 7, 2, 8, 3)])
    refs = [row["multi_modal_inputs"]["refs"] for row in rows]
    longest = max(len(row["input_ids"]) for row in rows)
    for most in (longest, 2 * longest, 10 * longest):
        data = batch(rows)
        parts, indices = shared_prompt.micro_batches(data, refs, builder.pixels, most)
        assert sorted(row for part in indices for row in part) == list(range(len(rows)))
        for part, chosen in zip(parts, indices, strict=True):
            names = [rows[row]["uid"] for row in chosen]
            assert list(tu.get(part, "uid")) == names
            assert all(
                names.index(name) + names.count(name) - 1 == len(names) - 1 - names[::-1].index(name) for name in names
            )
    assert len(indices) == 1
    sharing = {"use_dynamic_bsz": True, "max_token_len_per_gpu": longest}
    outputs = []
    for share in (False, True):
        engine.shares_prompts = share
        data = batch(rows, **sharing)
        with engine.eval_mode():
            outputs.append(engine.forward_backward_batch(data, None, forward_only=True))
    shown = [no_padding_2_padding(one["model_output"]["log_probs"], batch(rows)) for one in outputs]
    torch.testing.assert_close(shown[1], shown[0], atol=2e-5, rtol=0)
    assert len(outputs[1]["loss"]) < len(outputs[0]["loss"]), "fewer micro-batches of as many tokens"


def test_a_shared_prompt_ends_before_a_picture_that_is_not_everybodys(
    builder: RowBuilder,
    groups: list[Sample],
    make_sample: Callable[..., Sample],  # noqa: F811
    vqa_rows: list[dict[str, Any]],
) -> None:
    paths = [row["image_paths"][0] for row in vqa_rows]
    table: list[tuple[list[Sample], list[int], list[int]]] = [
        (groups[:4], [len(groups[0].prompt_ids)], [1]),
        ([groups[0], groups[4], groups[1]], [len(groups[0].prompt_ids), len(groups[4].prompt_ids)], [1, 2]),
        ([groups[10], groups[11]], [len(groups[10].prompt_ids)], [1]),  # a turn, and the same with what followed
    ]
    same, other = make_sample([paths[1], paths[0]], "red"), make_sample([paths[1], paths[2]], "red")
    first_picture = [
        i for i, token in enumerate(same.prompt_ids) if token == max(set(same.prompt_ids), key=same.prompt_ids.count)
    ]
    table.append(([same, other], [first_picture[len(first_picture) // 2]], [1]))
    for samples, lengths, pictures in table:
        rows = rows_of(builder, samples)
        found = shared_prompt.prefixes(batch(rows), [row["multi_modal_inputs"]["refs"] for row in rows], builder.pixels)
        assert [(prefix.length, len(prefix.refs)) for prefix in found] == list(zip(lengths, pictures, strict=True))


def test_a_batch_of_one_group_may_hold_its_name_once(builder: RowBuilder, groups: list[Sample]) -> None:
    """tensordict keeps one value for all rows where it stacks equal ones."""
    rows = rows_of(builder, groups[:4])
    data, refs = batch(rows), [row["multi_modal_inputs"]["refs"] for row in rows]
    data.pop("uid")
    assert len(shared_prompt.prefixes(data, refs, builder.pixels)) == 4, "rows without a group are their own"
    tu.assign_non_tensor(data, uid="a name of many letters")
    assert [prefix.rows for prefix in shared_prompt.prefixes(data, refs, builder.pixels)] == [[0, 1, 2, 3]]


def test_rows_that_share_too_little_are_computed_one_by_one(builder: RowBuilder, groups: list[Sample]) -> None:
    alone = rows_of(builder, [groups[0], groups[4], groups[6]])
    assert (
        shared_prompt.pack(batch(alone), [row["multi_modal_inputs"]["refs"] for row in alone], builder.pixels) is None
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layers of sliding_attention"),
        ({"layer_types": ["linear_attention", "full_attention", "full_attention"]}, "layers of linear_attention"),
        ({"sliding_window": 128, "use_sliding_window": True}, "sliding window"),
        ({"sliding_window": 128, "use_sliding_window": False}, ""),
        ({"attention_chunk_size": 64}, "chunks"),
        ({"cross_attention_layers": [1]}, "cross-attention"),
        ({"use_bidirectional_attention": True}, "see each other"),
        ({"_attn_implementation": "flash_attention_2"}, "flash_attention_2, not sdpa"),
    ],
)
def test_the_configuration_says_whether_a_model_can(changes: dict[str, Any], reason: str, tiny_dir: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_dir, attn_implementation="sdpa")
    for name, value in changes.items():
        setattr(config.get_text_config(), name, value)
    assert reason in why_not(config) and bool(reason) == bool(why_not(config))


def test_a_model_that_cannot_share_is_refused_where_it_is_asked_to(tiny_dir: Path, tmp_path: Path) -> None:
    engine = SimpleNamespace(unshared="its attention sees chunks", shares_prompts=None)
    asked: Any = SimpleNamespace(
        config=OmegaConf.create({"model": {"path": str(tiny_dir)}}), actor=None, ref=SimpleNamespace(engine=engine)
    )
    for setting, expected in ((None, True), (False, False)):
        app = AppSettings(shared_prompt=setting)
        VisionWorker.open_pictures(asked, str(tmp_path), {}, app=app, banned_tokens=[], alone=False)
        assert engine.shares_prompts is expected
    with pytest.raises(UserError, match=r"app.shared_prompt=true, but .*: its attention sees chunks; leave it at null"):
        app = AppSettings(shared_prompt=True)
        VisionWorker.open_pictures(asked, str(tmp_path), {}, app=app, banned_tokens=[], alone=False)


def test_pixels_in_a_row_are_refused(worker: VisionTrainingWorker, builder: RowBuilder, groups: list[Sample]) -> None:
    """verl's own agent loop queues them; they were dropped in silence, and the actor was blind."""
    rows = rows_of(builder, groups[:1])
    rows[0]["multi_modal_inputs"] = {"pixel_values": torch.zeros(4, 4), "image_grid_thw": torch.ones(1, 3)}
    with pytest.raises(UserError, match=r"'pixel_values', 'image_grid_thw' in multi_modal_inputs"):
        VisionEngine.prepare_model_inputs(worker.engine, batch(rows))


@pytest.mark.parametrize(
    ("uids", "lengths", "ranks", "expected"),
    [
        ("abab", [1, 1, 1, 1], 1, [[0, 2, 1, 3]]),
        ("aabb", [9, 9, 1, 1], 2, [[0, 1], [2, 3]]),
        ("abcdabcd", [9, 1, 5, 4] * 2, 2, [[0, 4, 1, 5], [2, 6, 3, 7]]),
        ("aaab", [1, 1, 1, 1], 2, [[0, 1], [2, 3]]),
        ("aaaabb", [5] * 6, 3, [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_groups_stay_on_one_rank_where_they_can(
    uids: str, lengths: list[int], ranks: int, expected: list[list[int]]
) -> None:
    assert groups_by_rank(list(uids), lengths, ranks) == expected


@pytest.mark.parametrize(
    ("rows", "shares", "most", "expected"),
    [
        (128, 1, 64, 128),
        (120, 1, 64, 120),  # some were dropped
        (176, 1, 64, 176),  # rollouts of two turns among those of one: four micro-batches of 44
        (173, 1, 64, 174),  # a prime number would be 173 micro-batches
        (131, 2, 32, 132),
        (17, 1, 1, 17),
        (5, 2, 4, 6),
    ],
)
def test_no_more_rows_are_added_than_equal_micro_batches_need(rows: int, shares: int, most: int, expected: int) -> None:
    assert padded(rows, shares, most) == expected
