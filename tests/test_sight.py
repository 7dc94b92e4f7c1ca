"""The sight gauge: black pictures, when it checks, on which rows, that a seeing actor passes and a blind one stops a run."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from scripts.tiny_models.families import build
from tests.actor import actor, log_probs
from tests.test_rows import builder, make_sample, rows_of  # noqa: F401  (fixtures)
from vision_rl.actor.rank import VisionTrainingWorker
from vision_rl.agent.messages import picture_url, user_message
from vision_rl.errors import UserError
from vision_rl.models.pixels import Pixels
from vision_rl.models.processor import load_processor
from vision_rl.rollout.chat_request import CallError, checked
from vision_rl.rollout.model_calls import BLIND, Calls, ModelServers
from vision_rl.rollout.pictures import Pictures
from vision_rl.rollout.store_link import StoreLink
from vision_rl.rollout.worker_api import Claims
from vision_rl.run.failures import RolloutFailure
from vision_rl.settings import Sight
from vision_rl.training import sight
from vision_rl.training.rollouts import FinishedRollout
from vision_rl.training.rows import RowBuilder
from vision_rl.training.samples import Sample
from vision_rl.training.sight import SightGauge, seeing_tasks


@pytest.fixture(scope="module")
def worker() -> VisionTrainingWorker:
    return actor()


@pytest.fixture
def samples(make_sample: Callable[..., Sample], vqa_rows: list[dict[str, Any]]) -> list[Sample]:  # noqa: F811
    paths = [row["image_paths"][0] for row in vqa_rows]
    return [make_sample([paths[0]], "red"), make_sample(paths[1:3], "blue square")]


def black_copy(path: str, folder: Path) -> str:
    target = folder / f"{Path(path).stem}-black.png"
    Image.new("RGB", Image.open(path).size).save(target)
    return target.as_uri()


@pytest.mark.parametrize("family", ["", "LLaVA-NeXT (1.6)", "SmolVLM", "InternVL 3 (-hf)", "Gemma 4"])
def test_a_blank_picture_is_a_black_one_to_the_processor(
    family: str, tiny_dir: Path, tmp_path: Path, vqa_rows: list[dict[str, Any]]
) -> None:
    """Zeros would do for Qwen, but SmolVLM takes them for padding. Sizes and everything but the pixels stay."""
    processor = load_processor(str(build(family, tmp_path / "model") if family else tiny_dir))
    pixels = Pixels(processor, tmp_path)
    path = vqa_rows[0]["image_paths"][0]
    seen, blank = pixels.inputs([Path(path).as_uri()]), pixels.inputs([Path(path).as_uri()], "blank")
    expected = Pixels(processor, tmp_path).inputs([black_copy(path, tmp_path)])
    assert set(blank) == set(expected) == set(seen)
    assert all(torch.equal(blank[name], expected[name]) for name in blank)
    assert blank["pixel_values"].shape == seen["pixel_values"].shape
    assert not torch.equal(blank["pixel_values"], seen["pixel_values"])
    assert pixels.inputs([Path(path).as_uri()])["pixel_values"] is seen["pixel_values"], (
        "the picture itself stays as it was"
    )


def gap(worker: VisionTrainingWorker, builder: RowBuilder, samples: list[Sample], **known: Any) -> dict[str, float]:  # noqa: F811
    worker.engine.pixels = builder.pixels
    return worker.sight(queued(rows_of(builder, samples), **known))


def queued(rows: list[dict[str, Any]], **known: torch.Tensor) -> Any:
    """Rows as a rank gets them from the queue. known: (rows, longest response), cut to each response."""
    nested = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
    data = list_of_dict_to_tensordict([dict(row) for row in rows])
    for name in list(data.keys()):
        if isinstance(data[name], torch.Tensor) and not data[name].is_nested:
            data[name] = nested(list(data[name]))
    for name, values in known.items():
        data[name] = nested([one[: len(row["responses"])] for one, row in zip(values, rows, strict=True)])
    tu.assign_non_tensor(data, temperature=1.0, global_token_num=None)
    return data


def test_the_tiny_model_uses_its_pictures(
    worker: VisionTrainingWorker,
    builder: RowBuilder,  # noqa: F811
    samples: list[Sample],
) -> None:
    assert gap(worker, builder, samples)["sight/kl"] > 100 * Sight().min_kl  # type: ignore[operator]


def test_an_actor_that_loses_its_pictures_shows_no_gap(
    worker: VisionTrainingWorker,
    builder: RowBuilder,  # noqa: F811
    samples: list[Sample],
    tiny_processor: Any,
    tmp_path: Path,
) -> None:
    blind = RowBuilder(
        tiny_processor, Pixels(tiny_processor, tmp_path, blank=True), max_prompt_length=128, max_response_length=16
    )
    found = gap(worker, blind, samples)
    assert found["sight/kl"] == found["sight/logprob_gap"] == 0


def test_gap_and_kl_are_means_over_the_models_own_tokens(
    worker: VisionTrainingWorker,
    builder: RowBuilder,  # noqa: F811
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second token is one that a tool gave. What verl's pass before the update has said is not computed again."""
    samples[0].response_mask[1] = 0
    rows = rows_of(builder, samples[:1])
    blind = log_probs(worker, rows, builder.pixels, view="blank")[0]
    views: list[str] = []
    compute = worker._responses
    monkeypatch.setattr(worker, "_responses", lambda data, view: (views.append(view), compute(data, view))[1])  # type: ignore[func-returns-value]
    seeing = blind + torch.tensor([0.5, 9.0, -1.0][: len(blind)])
    own = torch.tensor([i for i in range(len(blind)) if i != 1])
    found = gap(worker, builder, samples[:1], old_log_probs=seeing[None])
    difference = (seeing - blind)[own]
    assert found["sight/logprob_gap"] == pytest.approx(difference.mean().item(), abs=1e-5)
    k3 = (-difference).exp() + difference - 1
    assert found["sight/kl"] == pytest.approx(k3.mean().item(), abs=1e-5)
    assert found["sight/rows"] == 1 and views == ["blank"]
    gap(worker, builder, samples[:1])
    assert views == ["blank", "seen", "blank"]


def gauge(tmp_path: Path, **rule: Any) -> SightGauge:
    return SightGauge(Sight(**rule))


def tags(*pictures: int, padding: int = 0) -> list[dict[str, Any]]:
    return [{"pictures": n} for n in pictures] + [{"pictures": 1, "is_padding": True}] * padding


def test_rows_are_those_with_pictures_equally_many_for_each_rank(tmp_path: Path) -> None:
    one = gauge(tmp_path, rows=0.25)
    assert one.rows(tags(*[1] * 64), 1) == list(range(0, 64, 4))
    assert len(one.rows(tags(*[1] * 64), 3)) == 15
    assert one.rows(tags(0, 1, 0, 2, padding=3), 1) == [1]
    assert one.rows(tags(0, 1, 0, 2, padding=3), 2) == [1, 3]
    assert one.rows(tags(0, 0, 0), 1) == [] and one.rows(tags(0, 1), 2) == []


def test_checks_come_first_then_every_so_often_within_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(sight, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    one = gauge(tmp_path, every=5, time=0.03, min_kl=None)
    clock[0] = 10.0
    assert one.due(3), "a resumed run begins anywhere"
    one.note(1.0, 3, seconds=2.0)
    clock[0] = 60.0
    assert not one.due(5), "two seconds of sixty are more than 3 %"
    clock[0] = 70.0
    assert one.due(10) and not one.due(11)
    assert not gauge(tmp_path, every=0).due(1)


def test_several_dark_checks_in_a_row_end_the_run(tmp_path: Path) -> None:
    one = gauge(tmp_path)
    for step, kl in enumerate([0.0, 1e-4, 0.5, 0.0, 0.0]):
        one.note(kl, step, 0.0)
    with pytest.raises(
        UserError, match=r"^step 9: the actor answers the same with black pictures .*does not use its pictures"
    ):
        one.note(float("nan"), 9, 0.0)
    off = gauge(tmp_path, min_kl=None)
    for step in range(9):
        off.note(0.0, step, 0.0)


class Ranks:
    """Two ranks that answer every look: the response's tokens are `nats` less likely with black pictures."""

    _dispatch_info = {"actor": [0, 0, 1, 1]}  # noqa: RUF012

    def __init__(self, nats: float) -> None:
        self.nats, self.asked = nats, KVBatchMeta(keys=[], tags=[])

    def sight(self, batch: KVBatchMeta) -> dict[str, Any]:
        self.asked = batch
        return {"metrics": {"sight/logprob_gap": self.nats, "sight/kl": self.nats, "sight/rows": len(batch)}}


def test_a_look_asks_all_ranks_about_some_rows_and_no_more(tmp_path: Path) -> None:
    ranks = Ranks(nats=0.5)
    batch = KVBatchMeta(
        keys=[str(n) for n in range(17)],
        tags=tags(0, *[1] * 16),
        partition_id="train",
        extra_info={"no_lora_adapter": True},
    )
    found = gauge(tmp_path, rows=0.25).look(batch, ranks, 0.8, 1)
    assert ranks.asked.keys == ["1", "5", "9", "13"], "two for each of two ranks"
    assert ranks.asked.extra_info == {"temperature": 0.8}, "and nothing of what other passes were given"
    assert found["sight/logprob_gap"] == pytest.approx(0.5) and found["sight/rows"] == 4
    assert found["timing_s/sight"] >= 0


def test_looks_that_change_nothing_end_the_run(tmp_path: Path) -> None:
    ranks = Ranks(nats=0.0)
    batch = KVBatchMeta(keys=list("1234"), tags=tags(1, 1, 1, 1), partition_id="train")
    one = gauge(tmp_path, every=2, time=1.0, patience=2)
    assert one.look(batch, ranks, 1.0, 1)["sight/kl"] == 0
    assert one.look(batch, ranks, 1.0, 3) == {}
    with pytest.raises(UserError, match="step 4: the actor answers the same with black pictures"):
        one.look(batch, ranks, 1.0, 4)


def test_a_step_of_text_alone_is_not_checked(tmp_path: Path) -> None:
    class Workers:
        _dispatch_info = {"actor": [0, 1]}  # noqa: RUF012

        def sight(self, batch: Any) -> None:
            raise AssertionError("nothing to compute")

    batch = KVBatchMeta(keys=["a", "b"], tags=tags(0, 0), partition_id="train")
    assert gauge(tmp_path).look(batch, Workers(), 1.0, 1) == {}


def task(path: str, **meta: Any) -> str:
    return json.dumps({"image_paths": [path] if path else [], "meta": meta})


def test_rows_with_pictures_of_their_own_or_of_an_environment_are_asked_again() -> None:
    tasks = [task("a.png"), task(""), task("", seed=3), task("a.png"), task("b.png")]
    assert seeing_tasks(tasks, 2) == [0, 3] and seeing_tasks(tasks, 9) == [0, 2, 3, 4]
    assert seeing_tasks(tasks, 0) == seeing_tasks([task("")], 9) == []


def picture_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_the_proxy_blackens_every_picture_of_a_blind_call(tmp_path: Path) -> None:
    """Those of rows, of tools and of environments: whatever an agent sends."""
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    urls = [(tmp_path / "a.png").as_uri(), picture_url(Image.new("RGB", (56, 84), "blue"))]
    body = {"model": "m" + BLIND, "messages": [user_message("?", urls), {"role": "user", "content": "Go on."}]}
    calls = Calls(ModelServers(), StoreLink("http://unused", None), Pictures(tmp_path / "kept", [tmp_path]))
    seen = calls._seen(checked(body, traced=True))
    assert seen.body["model"] == "m" and len(seen.urls) == 2
    shown = [part["image_url"]["url"] for part in seen.body["messages"][0]["content"][:2]]
    assert shown == seen.urls
    for url, size in zip(shown, ((30, 20), (56, 84)), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert picture.size == size and picture.getextrema() == ((0, 0),) * 3
    assert calls._seen(checked({**body, "model": "m"}, traced=True)).urls == urls
    with pytest.raises(CallError, match="data directory of the run"):
        calls._seen(checked({**body, "messages": [user_message("?", ["file:///etc/passwd"])]}, traced=True))


def test_the_reward_gap_is_over_rows_that_neither_side_failed(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    tasks = [task(str(tmp_path / "a.png"))] * 3

    def rollout(reward: float | None) -> FinishedRollout:
        return FinishedRollout(
            "r",
            "g",
            {},
            reward={"reward": reward or 0.0},
            failure=None if reward is not None else RolloutFailure.AGENT_ERROR,
        )

    class Rollouts:
        def validate(self, asked: list[str], step: int, mode: str) -> list[FinishedRollout]:
            assert (len(asked), step, mode) == (3, 7, "test")
            return [rollout(0.25), rollout(None), rollout(0.0)]

    seeing = [rollout(1.0), rollout(1.0), rollout(0.5)]
    found = gauge(tmp_path).reward_gap(Rollouts(), tasks, seeing, 7)  # type: ignore[arg-type]
    assert found == {
        "sight/val_reward_seeing": 0.75, "sight/val_reward_blind": 0.125, "sight/val_reward_gap": 0.625, "sight/val_rows": 2,
    }  # fmt: skip
    assert gauge(tmp_path, val_rows=0).reward_gap(Rollouts(), tasks, seeing, 7) == {}  # type: ignore[arg-type]
    for one in seeing:
        one.reward["success"] = one.reward["reward"]
    assert "sight/val_success_seeing" not in gauge(tmp_path).reward_gap(Rollouts(), tasks, seeing, 7)  # type: ignore[arg-type]
    known = gauge(tmp_path).reward_gap(SimpleNamespace(validate=lambda *_, **__: seeing), tasks, seeing, 7)  # type: ignore[arg-type]
    assert known["sight/val_success_blind"] == 2.5 / 3 and known["sight/val_success_gap"] == 0


def test_a_worker_elsewhere_may_not_fetch_what_lies_outside_of_the_data(tmp_path: Path) -> None:
    kept, other = tmp_path / "pictures", tmp_path / "other"
    for folder in (kept, other, kept / "below"):
        folder.mkdir()
        (folder / "p.png").write_bytes(b"x")
    paths = [
        str(kept / "p.png"),
        str(other / "p.png"),
        str(kept / ".." / "other" / "p.png"),
        str(kept / "below" / "p.png"),
    ]

    class Store:
        async def image_paths(self, rollout_id: str) -> list[str]:
            return paths

    claims = Claims(Store(), Pictures(kept, []))  # type: ignore[arg-type]
    for index in range(4):
        with pytest.raises(CallError, match="not in the data directory"):
            asyncio.run(claims.image("r", index))
