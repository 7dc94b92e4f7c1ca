"""Conversations of a run as one page with their pictures: what the model saw, said, looked at closer and answered.

    python -m vision_rl.transcript runs/grounding [--step 40] [--limit 6]

Everything comes from the run directory: rollouts.jsonl, config.yaml, and the pictures that the trace refers to, at the size
at which the model saw them. Green: the true box; blue: the answer; orange: what a zoom showed.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from PIL import Image, ImageDraw

from vision_rl.data.files import replacing
from vision_rl.errors import UserError, cli_errors
from vision_rl.replay import answer_boxes, pictures_of, views_of
from vision_rl.run_dir import CONFIG
from vision_rl.settings import AgentSettings
from vision_rl.telemetry import ROLLOUTS, read_jsonl
from vision_rl.zoom import View

PAGE = "transcripts.html"
_SIDE = 336
_TRUE, _ANSWER, _ZOOM = "#18a558", "#2f6fdb", "#e07b00"

_TEMPLATE = """<!doctype html><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:14px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em;color:#223}
article{border-top:2px solid #ccd;padding:1em 0}figure{display:inline-block;margin:0 1em 0 0}
figcaption{font-size:12px;color:#667}img{image-rendering:pixelated;max-width:100%;border:1px solid #99a}
pre{background:#f4f5f8;padding:.6em;white-space:pre-wrap}b.s{color:#0a8f3c}b.f{color:#c0392b}</style>
<h1>{{ title }}</h1>
<p>Pictures as the model saw them, enlarged. Green: the true box. Blue: the answer. Orange: what a zoom showed.</p>
{% for talk in talks %}<article><h2>{{ talk.question }}</h2>
<p>{{ talk.head }}: <b class="{{ 's' if talk.right else 'f' }}">{{ talk.outcome }}</b></p>
{% for turn in talk.turns %}{% for shown in turn.pictures %}<figure><img src="{{ shown[0] }}" alt="">
<figcaption>{{ shown[1] }}</figcaption></figure>{% endfor %}<pre>{{ turn.reply }}</pre>{% endfor %}
<p>{{ talk.components }}</p></article>{% endfor %}
"""


@dataclass
class _Turn:
    reply: str
    pictures: list[tuple[str, str]] = field(default_factory=list)


def write_transcripts(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page for these lines of rollouts.jsonl; returns its path. Pictures are embedded."""
    settings = asdict(run_settings(run_dir))
    talks = [_talk(run_dir, record, settings) for record in records]
    page = (
        Environment(autoescape=True).from_string(_TEMPLATE).render(title=f"Transcripts of {run_dir.name}", talks=talks)
    )
    with replacing(run_dir / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run_dir / PAGE


def run_settings(run_dir: Path) -> AgentSettings:
    """The agent's settings that the run was started with."""
    try:
        config = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{run_dir / CONFIG} cannot be read ({error}); name a run directory") from error
    names = AgentSettings.__dataclass_fields__
    return AgentSettings(**{name: config[f"agent.{name}"] for name in names if f"agent.{name}" in config})


def choose(records: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """A few rollouts that differ: by turn, size of target and outcome, as far as there are such."""
    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        if not record["failure"]:
            reward = record["reward"]
            right = reward.get("point", reward.get("accuracy", 0)) == 1.0
            kind = (len(record["replies"]), reward.get("tools/needed"), right)
            kinds.setdefault(kind, []).append(record)
    ordered = sorted(kinds, key=str, reverse=True)
    rounds = [kinds[kind][index] for index in range(limit) for kind in ordered if index < len(kinds[kind])]
    return rounds[:limit]


def _talk(run_dir: Path, record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    pictures = pictures_of(run_dir, record)
    views = views_of(record, settings, pictures)
    boxes = answer_boxes(record, settings, views)
    turns, shown = [], 0
    for reply, refs in zip(record["replies"], record["image_refs"], strict=True):
        turn = _Turn(reply)
        for number in range(shown, len(refs)):
            others = [view.box for view in views[1:]] if number == 0 else []
            marks = [(_TRUE, record["boxes"]), (_ANSWER, boxes), (_ZOOM, others)]
            turn.pictures.append((_marked(pictures[number], views[number], marks), _caption(number, pictures, views)))
        turns.append(turn)
        shown = len(refs)
    reward = record["reward"]
    right = reward.get("point", reward.get("accuracy", 0)) == 1.0
    graded = f"IoU {reward['iou']:.2f}" if "iou" in reward else f"accuracy {reward.get('accuracy', 0):.2f}"
    return {
        "question": record["question"],
        "head": f"step {record['step']}, {record['mode']}, {record['id']}",
        "right": right,
        "outcome": f"{'right' if right else 'wrong'}, {graded}, reward {reward['reward']:.2f}",
        "components": ", ".join(f"{name} {value:.3g}" for name, value in sorted(reward.items())),
        "turns": turns,
    }


def _caption(number: int, pictures: Sequence[Image.Image], views: Sequence[View]) -> str:
    whole, seen = (f"{size[0]} x {size[1]} pixels" for size in (pictures[number].size, views[number].size))
    return f"picture {number + 1}, {whole}" + (f", seen at {seen}" if seen != whole else "")


def _marked(picture: Image.Image, view: View, marks: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """A picture as the model saw it, enlarged without smoothing, with boxes (the first picture's unit space) over it."""
    seen = picture if picture.size == view.size else picture.resize(view.size, Image.Resampling.BICUBIC)
    scale = max(1, round(_SIDE / max(seen.size)))
    canvas = seen.resize((seen.width * scale, seen.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for colour, boxes in marks:
        for x1, y1, x2, y2 in boxes:
            left, top, right, bottom = view.from_picture((x1, y1, x2, y2))
            corners = (left * canvas.width, top * canvas.height, right * canvas.width - 1, bottom * canvas.height - 1)
            if corners[0] < corners[2] and corners[1] < corners[3]:
                draw.rectangle(corners, outline=colour, width=2)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.transcript", description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int, help="default: the last")
    parser.add_argument("--mode", choices=("train", "val"), default="train")
    parser.add_argument("--limit", type=int, default=6, help="how many conversations (default: %(default)s)")
    args = parser.parse_args(argv)
    with cli_errors():
        records = [line for line in read_jsonl(args.run_dir / ROLLOUTS)[0] if line["mode"] == args.mode]
        if not records:
            raise UserError(f"{args.run_dir / ROLLOUTS} holds no {args.mode} rollouts; name a run that has some")
        step = records[-1]["step"] if args.step is None else args.step
        talks = choose([record for record in records if record["step"] == step], args.limit)
        if not talks:
            there = f"steps {min(r['step'] for r in records)} to {max(r['step'] for r in records)}"
            raise UserError(f"step {step} has no whole {args.mode} rollout; {args.run_dir / ROLLOUTS} holds {there}")
        page = write_transcripts(args.run_dir, talks)
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
