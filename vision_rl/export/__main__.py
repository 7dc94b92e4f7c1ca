"""Export a trained checkpoint as a folder: weights, processor, chat template, generation config and model card.

    python -m vision_rl.export RUN_DIR -o DIR [--step best|last|N] [--dtype float32|bfloat16]
    python -m vision_rl.export RUN_DIR/checkpoints/global_step_40 -o DIR

transformers and vLLM load the folder as it is; its card has the command. A LoRA run gives both: merged weights, and `adapter/`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vision_rl.errors import Parser, UserError, cli_errors
from vision_rl.export.checkpoint import ADAPTER, MERGED, dtype_of, merge, run_of, step_folder, written_dtype
from vision_rl.export.model_card import base_model, model_card
from vision_rl.files import umask
from vision_rl.models.table import image_processor_file
from vision_rl.platform.gpu import on_cpu
from vision_rl.run.checkpoints import Checkpoints, read_best
from vision_rl.run.directory import CONFIG
from vision_rl.run.reader import RecordedRun, read_run
from vision_rl.serving.serve import command_of_vllm
from vision_rl.waiting import waiting

CARD = "README.md"
NEEDED = ("config.json", "generation_config.json", "tokenizer_config.json")
_STEP = re.compile(r"\d+")


def export(
    source: str | Path, output: str | Path, *, step: str = "best", dtype: str | None = None, overwrite: bool = False
) -> Path:
    """Write the folder `output`, which appears whole or not at all; returns its path.

    source: a run directory, of which `step` ("best", "last" or a number) is taken, or one checkpoint. "best" is the newest
    where no validation has named one. dtype: None keeps what the actor computed in. Raises `UserError` for a source
    without a checkpoint, an output that is there already, and a checkpoint without processor.
    """
    output = Path(output).absolute()
    _check_output(output, overwrite)
    checkpoint = choose(Path(source).expanduser().absolute(), step)
    dtype = dtype or dtype_of(checkpoint)
    staging = output.parent / f".{output.name}.export"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _weights(checkpoint, staging, dtype)
        run = _run(checkpoint)
        adapter = _name_base(staging, run)
        number = Checkpoints.step_of(checkpoint)
        card = model_card(run, number, dtype, adapter=adapter, serve=command_of_vllm(staging, cpu=on_cpu()))
        (staging / CARD).write_text(card, encoding="utf-8")
        _check(staging, checkpoint)
        _share(staging)
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        os.replace(staging, output)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror or error}); free space or name another -o") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return output


def _check_output(output: Path, overwrite: bool) -> None:
    """Raise `UserError` if something stands there that may not be replaced: a mistyped -o must not cost a run."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{output} exists; name another -o, or replace it with --overwrite")
    if not all((output / name).exists() for name in (CARD, "config.json")):
        raise UserError(f"{output} is no exported model, which is all that --overwrite replaces; name another -o")


def choose(source: Path, step: str) -> Path:
    """The `global_step_N` folder that is meant; `UserError` if there is none."""
    if not source.is_dir():
        raise UserError(f"{source} does not exist; name a run directory or a global_step_N folder")
    newest = step_folder(source)
    if newest is None:
        raise UserError(
            f"{source} holds no checkpoint (global_step_N/actor); trainer.save_freq says when one is written"
        )
    if newest in (source, source.parent) or step == "last":
        return newest
    folder = newest.parent
    if step == "best":
        best = read_best(folder)
        chosen = folder / f"global_step_{best['step'] if best else None}"
        return chosen if (chosen / "actor").is_dir() else newest
    if not _STEP.fullmatch(step):
        raise UserError(f"--step {step} is not best, last or a number")
    chosen = folder / f"global_step_{step}"
    if not (chosen / "actor").is_dir():
        there = ", ".join(sorted(path.name for path in folder.glob("global_step_*")))
        raise UserError(f"{folder} holds no global_step_{step}; it holds {there}")
    return chosen


def _weights(checkpoint: Path, target: Path, dtype: str) -> None:
    """Merge, or copy what an evaluation has merged in the same precision (which keeps no adapter)."""
    merged = checkpoint / MERGED
    lora = (checkpoint / "actor" / "lora_adapter").is_dir()
    if not lora and (merged / "config.json").exists() and written_dtype(merged) == dtype:
        shutil.copytree(merged, target)
    else:
        merge(checkpoint, target, dtype, keep_adapter=True)


def _share(folder: Path) -> None:
    """Give every file the mode that this user's new files have: safetensors writes weights that only their owner can read,
    and a server may run under another account."""
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask())


def _run(checkpoint: Path) -> RecordedRun | None:
    run_dir = run_of(checkpoint)
    return read_run(run_dir) if run_dir is not None and (run_dir / CONFIG).exists() else None


def _name_base(folder: Path, run: RecordedRun | None) -> bool:
    """Whether there is an adapter; its config names the base model, if others can have that, and no path of ours."""
    config_file = folder / ADAPTER / "adapter_config.json"
    if not config_file.exists():
        return False
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model(run)
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return True


def _check(folder: Path, checkpoint: Path) -> None:
    """Raise `UserError` if something is missing without which the folder does not load or does not chat."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if image_processor_file(folder) is None:
        missing.append("processor_config.json")
    template = any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json"))
    if not template and "chat_template" not in json.loads(
        (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    ):
        missing.append("chat_template.jinja")
    if missing:
        raise UserError(
            f"{checkpoint / 'actor' / 'huggingface'} lacks {', '.join(missing)}; copy them there from the original model"
        )


def step_taken(source: Path, step: str) -> str:
    """Which checkpoint was taken, and that it is not the best where that one was never saved."""
    source = source.expanduser().absolute()
    taken = choose(source, step)
    best = None if step != "best" or taken in (source, source.parent) else read_best(taken.parent)
    text = f", {taken.name}"
    if best and best["step"] != Checkpoints.step_of(taken):
        text += f" (the best validation was at step {best['step']}, of which there is no checkpoint)"
    return text


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, help="run folder, or one of its checkpoints/global_step_N")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--step",
        default="best",
        help="checkpoint of a run folder: best (by validation), last, or a number (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="precision of the weights (default: the actor's)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with cli_errors():
        with waiting("reading and writing the weights", Console(stderr=True)):
            written = export(args.source, args.output, step=args.step, dtype=args.dtype, overwrite=args.overwrite)
        print(f"wrote {written}{step_taken(args.source, args.step)}")


if __name__ == "__main__":
    main()
