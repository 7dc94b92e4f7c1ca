"""Serve a model at an OpenAI-compatible address on this machine until Ctrl-C.

    python -m vision_rl.serve --tiny                      # prints the line that lets the other commands use it
    python -m vision_rl.serve --checkpoint RUN_DIR        # or global_step_N, or a folder that export has written

With OPENAI_BASE_URL set to it, `vqa_agent.py` and `evaluate_agent.py --tiny` or `--checkpoint` use this server for the same
model and start none of their own. baselines/api_baseline.py uses any server there, by the name of its model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from vision_rl.errors import Parser, cli_errors
from vision_rl.waiting import waiting


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tiny", action="store_true", help="the tiny model that ships with the package")
    what.add_argument("--checkpoint", type=Path, help="model folder, global_step_N or run folder")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--name", help="name of the model in requests (default: tiny, or the folder's name)")
    parser.add_argument("--max-model-len", type=int, help="longest prompt and answer in tokens")
    parser.add_argument(
        "--media-root",
        type=Path,
        default=Path(),
        help="folder whose pictures requests may name by file:// (default: this one)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is ended; the server ends with it."""
    args = parser().parse_args(argv)
    with cli_errors():
        from rich.console import Console

        from vision_rl.evaluation.targets import agent_settings, model_folder, served_checkpoint
        from vision_rl.platform.environment import run_environment
        from vision_rl.platform.gpu import on_cpu
        from vision_rl.rollout.addresses import check_port

        check_port(args.port, "127.0.0.1", "--port")
        cpu = on_cpu()
        os.environ.update(run_environment(cpu))
        folder = model_folder(args.checkpoint)
        settings = agent_settings("vqa", (), cpu=cpu, model_dir=folder, trained_as=args.checkpoint, transport="file")
        serving = served_checkpoint(
            folder,
            settings,
            cpu=cpu,
            max_model_len=args.max_model_len,
            port=args.port,
            name=args.name or (args.checkpoint or Path("tiny")).absolute().name,
            media_root=str(args.media_root.resolve()),
        )
        with contextlib.ExitStack() as ending:
            with waiting(f"vLLM loads {folder}", Console(stderr=True)):
                url, name = ending.enter_context(serving)
            print(
                f"model {name!r} at {url}, until Ctrl-C; for the other commands:\n  export OPENAI_BASE_URL={url}",
                flush=True,
            )
            threading.Event().wait()


if __name__ == "__main__":
    main()
