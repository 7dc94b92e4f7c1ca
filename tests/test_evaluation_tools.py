"""An agent with tools outside of training: evaluate_agent.py and the API baseline against a scripted server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import evaluate_agent
from baselines import api_baseline
from baselines.budget import PictureBudget, Prices, estimate
from scripts.tiny_models.zoom import zoom_checkpoint_dir
from scripts.tiny_models.zoom_scenes import write_zoom_tasks
from tests.fake_openai import MODEL, fake_openai
from vision_rl.answers.parsing import format_boxes
from vision_rl.answers.zoom import View
from vision_rl.config.resolve import resolve
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.evaluation import metrics, targets
from vision_rl.evaluation.results import read_records
from vision_rl.models.table import TABLE
from vision_rl.rewards.tools import target_kind

ROWS = 12
TOOLS = ["agent.max_turns=3", "agent.max_tool_calls=2", "agent.reward=arc", "agent.answer_view=last"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zoom_tasks(tmp_path_factory.mktemp("zoom"), train=1, val=ROWS)["val"]


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls), "a server elsewhere cannot open paths"
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


class Looker:
    """A model that zooms into the target's quarter where the target is small, and knows where it is then."""

    def __init__(self, data: Path, protocol: str) -> None:
        self.protocol = protocol
        # Every picture of the set is new: its pixels tell which row is asked.
        self.rows = {Image.open(row["image_paths"][0]).tobytes(): row for row in read_rows(data)}

    def __call__(self, body: dict[str, Any]) -> str | dict[str, Any]:
        first, *zoomed = pictures_of(body)
        box = tuple(self.rows[first.tobytes()]["boxes"][0])
        if target_kind(box) != "small" or "tools" not in json.dumps(body):  # large, or it has no tools
            return format_boxes([box if target_kind(box) != "small" else (0.0, 0.0, 0.1, 0.1)], "bbox")
        left, top = float(box[0] >= 0.5) / 2, float(box[1] >= 0.5) / 2
        region = (left, top, left + 0.5, top + 0.5)
        if zoomed:
            return format_boxes([View(zoomed[0].size, region).from_picture(box)], "bbox")
        arguments = {"region": list(region), "zoom_factor": 2}
        if self.protocol == "function":
            function = {"name": "zoom_ui_element", "arguments": json.dumps(arguments)}
            return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
        return f"<use_tool>{json.dumps({'name': 'zoom_ui_element', 'arguments': arguments})}</use_tool>"


def evaluation(url: str, data: Path, output: Path, *overrides: str) -> int:
    arguments = ["--endpoint", url, "--model", MODEL, "--data", str(data), "--output", str(output), *overrides]
    return exit_code(evaluate_agent.main, arguments)


def baseline(url: str, data: Path, output: Path, *overrides: str) -> int:
    arguments = ["--base-url", url, "--model", MODEL, "--data", str(data), "--output", str(output), *overrides]
    return exit_code(api_baseline.main, arguments)


def exit_code(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("protocol", ["text", "function"])
@pytest.mark.parametrize("command", [evaluation, baseline])
def test_tools_work_at_any_server_and_are_counted(
    command: Callable[..., int], protocol: str, data: Path, tmp_path: Path
) -> None:
    with fake_openai(Looker(data, protocol)) as fake:
        assert command(fake.url, data, tmp_path / "out", *TOOLS, f"agent.tool_protocol={protocol}") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    small = sum(target_kind(tuple(row["boxes"][0])) == "small" for row in read_rows(data))  # type: ignore[arg-type]
    assert 0 < small < ROWS
    assert summary["metrics"]["point accuracy"]["value"] == 1.0
    assert summary["usage"]["requests"] == ROWS + small and len(fake.requests) == ROWS + small
    assert all(("tools" in body) == (protocol == "function") for body in fake.requests)
    tools = summary["tools"]
    assert tools["use_rate"] == pytest.approx(small / ROWS)
    assert (tools["use_rate_small"], tools["use_rate_large"], tools["success_with_small"]) == (1.0, 0.0, 1.0)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "| tools used small | 100.00 % |" in page and "## By target size" in page
    assert "tools used small" in (tmp_path / "out" / "report.html").read_text()
    zooms = [record["components"]["tools/zooms"] for record in read_records(tmp_path / "out").values()]
    assert sum(zooms) == small


def test_a_baseline_zooms_into_the_whole_picture_where_a_smaller_one_was_sent(data: Path, tmp_path: Path) -> None:
    sent: list[list[Image.Image]] = []

    def reply(body: dict[str, Any]) -> str:
        sent.append(pictures_of(body))
        return (
            "Done."
            if len(sent[-1]) > 1
            else '<tool_call>{"name": "zoom_ui_element", "arguments": '
            + ('{"region": [0.5, 0.5, 1, 1], "zoom_factor": 4}}</tool_call>')
        )

    with fake_openai(reply) as fake:
        assert baseline(fake.url, data, tmp_path / "out", *TOOLS, "--image-side", "56", "--limit", "1") == 0
    first, zoomed = sent[1]
    assert first.size == (56, 56) and zoomed.size == (448, 448)
    [row] = read_rows(data, limit=1)
    whole = Image.open(row["image_paths"][0]).crop((112, 112, 224, 224)).resize((448, 448), Image.Resampling.LANCZOS)
    assert zoomed.tobytes() == whole.tobytes()


def test_the_estimate_counts_every_turn(data: Path, tmp_path: Path) -> None:
    rows = read_rows(data)
    once, thrice = (estimate(rows, PictureBudget(tmp_path), 100, Prices(1.0, 1.0), turns) for turns in (1, 3))
    assert thrice.completion_tokens == 3 * once.completion_tokens == 3 * ROWS * 100
    assert thrice.prompt_tokens > 3 * (once.prompt_tokens + ROWS * 500)  # and every turn holds the turns before


def test_without_tools_the_same_rows_are_kept_apart_by_size(data: Path, tmp_path: Path) -> None:
    with fake_openai(Looker(data, "text")) as fake:
        assert evaluation(fake.url, data, tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tools"] is None and summary["usage"]["requests"] == ROWS
    by_size = summary["breakdowns"]["target size"]
    assert by_size["small"]["point accuracy"]["value"] == 0.0 and by_size["large"]["point accuracy"]["value"] == 1.0


def test_a_server_of_ones_own_is_started_to_take_function_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM answers 400 to a request with tools unless it was started for them."""
    wanted: list[str] = []

    class Served:
        def __init__(self, *args: Any, tool_parser: str, **kwargs: Any) -> None:
            wanted.append(tool_parser)

        def __enter__(self) -> str:
            return "http://model/v1"

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr("vision_rl.evaluation.targets.serve", Served)
    folder = zoom_checkpoint_dir()
    for overrides in ([], TOOLS, [*TOOLS, "agent.tool_protocol=function"]):
        settings = targets.agent_settings(
            "grounding", overrides, cpu=True, model_dir=folder, trained_as=None, transport="file"
        )
        with targets.served_checkpoint(folder, settings, cpu=True, max_model_len=None):
            pass
    assert wanted == ["", "", "hermes"]


def test_training_starts_its_vllm_for_function_tools() -> None:
    tools = ["agent.max_turns=3", "agent.max_tool_calls=2"]
    for protocol, expected in (
        ("text", {}),
        ("function", {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}),
    ):
        resolved = resolve(
            "cpu", [*tools, f"agent.tool_protocol={protocol}"], task="grounding", model=zoom_checkpoint_dir()
        )
        arguments = resolved.verl["actor_rollout_ref"]["rollout"]["engine_kwargs"]["vllm"]
        assert {name: value for name, value in arguments.items() if "tool" in name} == expected


def test_every_familys_parser_of_calls_is_one_of_vllms() -> None:
    from vllm.tool_parsers import ToolParserManager

    known = {*ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers}
    named = {family.name: family.tool_parser for family in TABLE if family.tool_parser}
    assert set(named.values()) <= known
    assert named["Qwen3.5"] == "qwen3_xml" != named["Qwen2.5-VL"] and named["GLM-4.5V"] == "glm45"
    by_name = {family.name: family for family in TABLE}
    assert by_name["Qwen2.5-VL"].parser_of("sglang") == "qwen25"
    with pytest.raises(
        UserError, match=r"no parser is known for the calls of LLaVA-1\.5; use agent\.tool_protocol=text"
    ):
        by_name["LLaVA-1.5"].parser_of("vllm")


def test_sizes_are_those_of_the_reward() -> None:
    assert [metrics.target_size(box) for box in ([0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.6, 0.6])] == ["small", "large"]
