"""The model to evaluate: a running server, or a checkpoint folder that vLLM serves meanwhile."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from vision_rl.agent.conversation import has_tools
from vision_rl.answers.space import AnswerSpace
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.export.checkpoint import merged_checkpoint, run_of
from vision_rl.models.table import image_processor_file, model_info
from vision_rl.rewards.grounding import KINDS, box_metric, checked_kind
from vision_rl.rewards.judge import shared_judge
from vision_rl.run.directory import CONFIG
from vision_rl.serving.serve import MODEL_NAME, serve
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task

CPU_LENGTH, GPU_LENGTH = 4096, 20480
"""Longest prompt and answer in tokens: Qwen2.5-VL's largest picture alone takes 16384."""
_TRAINED = {field.name for field in fields(AgentSettings)} - {"image_transport"}
_FOREIGN = (
    "agent.family=unit",
    "agent.min_pixels=null",
    "agent.max_pixels=null",
    "agent.max_total_pixels=null",
    "agent.max_images=64",
)
"""Nothing is known of a foreign server's model; without these the preset's own model would stand in for it."""


def agent_settings(
    task: str, overrides: Sequence[str], *, cpu: bool, model_dir: Path | None, trained_as: Path | None, transport: str
) -> AgentSettings:
    """A task's agent settings, as training would make them.

    model_dir: the folder that is served (None: a foreign server, whose model answers in unit space unless
    `agent.family` and `agent.answer_format` say otherwise). trained_as: a training checkpoint, whose run's own settings
    count before the preset's. overrides (`agent.key=value`) win.
    """
    foreign = [text for text in overrides if not text.lstrip("+").startswith("agent.")]
    if foreign:
        raise UserError(f"{foreign[0]}: an evaluation reads agent.* only")
    run = run_of(trained_as) if trained_as else None
    known = _FOREIGN if model_dir is None else _run_settings(run, task) if run else ()
    layers = [f"agent.image_transport={transport}", *known, *overrides]
    preset = "cpu" if cpu and model_dir is not None else "gpu_24gb"
    settings = resolve(preset, layers, task=task, model=model_dir).agent
    if settings.answer_format == "native" and settings.family == "unit":
        raise UserError("agent.answer_format=native needs agent.family, the model family whose format it is")
    if get_task(task).truth == "boxes":
        space = AnswerSpace(settings.answer_format, settings.family)
        if settings.reward in KINDS:
            checked_kind(box_metric(settings.reward, "", space.takes_points), space)
        if model_dir is None and settings.max_pixels is None and space.unit == "processed":
            raise UserError(
                f"agent.family={space.numbers_of} writes pixels of the picture as the server has resized it, which it does not "
                "say: give --served-pixels MAX or MIN:MAX, or ask for agent.answer_format=bbox"
            )
    if settings.reward == "judge":
        shared_judge()  # what it lacks is said before a server starts
    return settings


def served_pixels(text: str | None) -> list[str]:
    """The settings that "MAX" or "MIN:MAX" stands for, areas in pixels to which a server resizes; none for None."""
    if text is None:
        return []
    low, _, high = text.rpartition(":")
    if not (high.isdecimal() and (low or "1").isdecimal() and 0 < int(low or 1) <= int(high)):
        raise UserError(f"--served-pixels {text} is not MAX or MIN:MAX, two areas in pixels such as 3136:12845056")
    return [*([f"agent.min_pixels={low}"] if low else []), f"agent.max_pixels={high}"]


def _run_settings(run: Path, task: str) -> tuple[str, ...]:
    """The agent settings that a run was trained with, as overrides; none where it kept no configuration."""
    path = run / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or move the checkpoint out of the run") from error
    agent = {key.removeprefix("agent."): value for key, value in config.items() if key.startswith("agent.")}
    kept = {key: value for key, value in sorted(agent.items()) if key.split(".")[0] in _TRAINED}
    if config.get("task.name") != task:
        kept.pop("reward", None)
    return tuple(f"agent.{key}={json.dumps(value)}" for key, value in kept.items())


def model_folder(checkpoint: Path | None) -> Path:
    """The folder to serve, merged if it is a training checkpoint; the tiny model's for None."""
    if checkpoint is None:
        from vision_rl.tiny import checkpoint_dir

        return checkpoint_dir()
    return merged_checkpoint(checkpoint)


def warm_server(model_dir: Path) -> tuple[str, str] | None:
    """(base URL, model name) of the server at OPENAI_BASE_URL if it serves this very folder, as `vision_rl.serve` does."""
    base = os.environ.get("OPENAI_BASE_URL", "").rstrip("/")
    if urlsplit(base).hostname not in ("127.0.0.1", "localhost"):
        return None
    try:
        listed = httpx.get(f"{base}/models", timeout=2, trust_env=False).json()["data"]
        return next((base, model["id"]) for model in listed if model.get("root") == str(model_dir))
    except (httpx.HTTPError, ValueError, TypeError, KeyError, StopIteration):
        return None


@contextmanager
def served_checkpoint(
    model_dir: Path,
    settings: AgentSettings,
    *,
    cpu: bool,
    max_model_len: int | None,
    port: int | None = None,
    name: str = MODEL_NAME,
    media_root: str = "/",
) -> Iterator[tuple[str, str]]:
    """(base URL, model name) of a folder under vLLM, with the pixel limits of `settings`.

    max_model_len: None takes the default, or the model's own limit
    where that is lower. port: None takes a free one.
    """
    functions = has_tools(settings) and settings.tool_protocol == "function"
    length = max_model_len or min(_positions(model_dir), CPU_LENGTH if cpu else GPU_LENGTH)
    with (
        with_pixel_limits(model_dir, settings) as folder,
        serve(
            folder,
            cpu=cpu,
            max_model_len=length,
            images_per_prompt=settings.max_images or 1,
            videos=settings.video == "native",
            tool_parser=model_info(model_dir).family.parser_of("vllm") if functions else "",
            port=port,
            name=name,
            media_root=media_root,
        ) as url,
    ):
        yield url, name


def _positions(model_dir: Path) -> int:
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    found = [node.get("max_position_embeddings") for node in (config, config.get("text_config") or {})]
    return min((int(value) for value in found if value), default=GPU_LENGTH)


@contextmanager
def with_pixel_limits(model_dir: Path, settings: AgentSettings) -> Iterator[Path]:
    """The folder itself, or links to its files with other limits in its image processor's file where they differ.

    Training hands agent.min_pixels and agent.max_pixels to its vLLM; a checkpoint's own file has the base model's.
    """
    path = image_processor_file(model_dir)
    document = json.loads(path.read_text(encoding="utf-8")) if path else {}
    config = document.get("image_processor", document)
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    stated = config.get("size")
    size: dict[str, Any] = stated if isinstance(stated, dict) else {}
    wanted = settings.pixel_limits()
    if path is None or all((config.get(key) or size.get(edges[key])) == value for key, value in wanted.items()):
        yield model_dir
        return
    config.update(wanted)
    if size:
        config["size"] = size | {edges[key]: value for key, value in wanted.items()}
    with tempfile.TemporaryDirectory(prefix="vision-rl-model-") as name:
        for file in model_dir.iterdir():
            if file.name != path.name:
                (Path(name) / file.name).symlink_to(file)
        (Path(name) / path.name).write_text(json.dumps(document), encoding="utf-8")
        yield Path(name)
