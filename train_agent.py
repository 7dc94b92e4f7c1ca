"""Train a vision-language agent by reinforcement learning: Agent Lightning's runners, verl's GRPO, vLLM's server.

On a machine without a GPU the same stack trains the embedded tiny model; with one, name a model and a preset:

    python train_agent.py                                              # tiny model, synthetic VQA
    python train_agent.py --task grounding
    python train_agent.py --model Qwen/Qwen2.5-VL-3B-Instruct --data-path train.parquet --val-data-path val.parquet \\
        --llm-proxy --n-runners 8
"""

from __future__ import annotations

import time

STARTED = time.time()

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from vision_rl.data.schema import read_rows  # noqa: E402
from vision_rl.engine.config import TASKS, Resolved, presets, render_resolved, resolve, variants  # noqa: E402
from vision_rl.engine.environment import run_environment  # noqa: E402
from vision_rl.errors import UserError, cli_errors  # noqa: E402
from vision_rl.preflight import check_images, check_machine  # noqa: E402
from vision_rl.run_dir import CONFIG, open_run_dir  # noqa: E402

PROXY_PORT, STORE_PORT = 8080, 4747


def parser() -> argparse.ArgumentParser:
    """The command line; everything else is a `key=value` override."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to train")
    what.add_argument("--task", choices=TASKS, default="vqa", help="which agent, prompt and reward")
    what.add_argument(
        "--model", help="folder or Hugging Face name of a vision-language model (default: the tiny model)"
    )
    what.add_argument("--data-path", type=Path, help="training parquet (default: synthetic tasks for the tiny model)")
    what.add_argument(
        "--val-data-path", type=Path, help="validation parquet; must share no image with the training one"
    )
    how = parser.add_argument_group("how to train")
    how.add_argument("--preset", choices=presets(), help="default: cpu without a CUDA device, gpu_24gb with one")
    how.add_argument(
        "--variant", choices=variants(), action="append", default=[], help="an algorithm by one word; repeatable"
    )
    how.add_argument("--max-steps", type=int, help="training steps in all, those before --resume included")
    how.add_argument("--n-runners", type=int, help="parallel rollout processes on this machine")
    how.add_argument("--seed", type=int, help="seed of the data order and of sampling (default 0)")
    how.add_argument("overrides", nargs="*", metavar="key=value", help="verl's keys, and ours under agent.* and app.*")
    where = parser.add_argument_group("where it runs and what it leaves")
    where.add_argument("--run-dir", type=Path, default=None, help="default: runs/<task>")
    where.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --run-dir")
    where.add_argument("--overwrite", action="store_true", help="delete the run that --run-dir holds")
    where.add_argument(
        "--llm-proxy",
        action="store_true",
        help=f"publish the LLM proxy on port {PROXY_PORT} and the store on {STORE_PORT}",
    )
    where.add_argument("--proxy-port", type=int, help="port of the LLM proxy (with --llm-proxy)")
    where.add_argument(
        "--store-port", type=int, help="port of Agent Lightning's store and dashboard (with --llm-proxy)"
    )
    where.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and where each value came from"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with cli_errors():
        cpu = not has_cuda()
        os.environ.update(run_environment(cpu))
        resolved, paths = configure(args, cpu)
        if args.dry_run:
            print(render_resolved(resolved))
            return
        check_machine(cpu)
        train(args, resolved, paths, cpu)


def has_cuda() -> bool:
    """Whether a CUDA device is there, without importing torch (3 s)."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in (
        "",
        "-1",
    )


def configure(args: argparse.Namespace, cpu: bool) -> tuple[Resolved, tuple[Path, Path]]:
    """The resolved configuration and the two data files."""
    model = args.model
    if model is None:
        from vision_rl.tiny import checkpoint_dir

        model = checkpoint_dir()
    train_path, val_path = data_files(args)
    run_dir = args.run_dir or Path("runs") / args.task
    flags: dict[str, Any] = {"trainer.default_local_dir": str(run_dir.absolute() / "checkpoints")}
    if args.max_steps is not None:
        flags["trainer.total_training_steps"] = args.max_steps
    if args.seed is not None:
        flags |= {"data.seed": args.seed}
    if args.resume:
        flags["trainer.resume_mode"] = "auto"
    resolved = resolve(
        args.preset or ("cpu" if cpu else "gpu_24gb"),
        args.overrides,
        task=args.task,
        model=model,
        n_runners=args.n_runners,
        variants=args.variant,
        flags=flags,
        media_root="/",
    )
    return resolved, (train_path, val_path)


def data_files(args: argparse.Namespace) -> tuple[Path, Path]:
    """The named files, or synthetic tasks; half a pair is an error."""
    if (args.data_path is None) != (args.val_data_path is None):
        raise UserError(
            "name both --data-path and --val-data-path (data_utils.py split makes two files of one, by image)"
        )
    if args.data_path is not None:
        return args.data_path, args.val_data_path
    from vision_rl.tiny import write_tasks

    files = write_tasks(Path("data") / "synthetic" / args.task, args.task)
    return files["train"], files["val"]


def train(args: argparse.Namespace, resolved: Resolved, paths: tuple[Path, Path], cpu: bool) -> None:
    """Prepare the run directory, run, and close with a summary, whatever ended the run."""
    from rich.console import Console

    from vision_rl.engine.context import RunContext
    from vision_rl.progress import RunProgress
    from vision_rl.summary import render_summary, summarise, write_summary

    app = resolved.app
    rows = read_rows(paths[0], task=args.task, limit=app.max_train_samples or None)
    val_rows = read_rows(paths[1], task=args.task)
    check_images(rows, paths[0])
    check_images(val_rows, paths[1])
    run_dir = open_run_dir(args.run_dir or Path("runs") / args.task, resume=args.resume, overwrite=args.overwrite)
    (run_dir / CONFIG).write_text(render_resolved(resolved), encoding="utf-8")

    console = Console()
    console.print(f"{args.task}: {len(rows)} training rows, preset {resolved.preset}, run directory {run_dir}")
    from vision_rl.engine.launch import Launch, check_port, fit, free_port, tasks_of, validation_rows

    proxy_port = args.proxy_port or PROXY_PORT if args.llm_proxy else None
    store_port = args.store_port or STORE_PORT if args.llm_proxy else free_port()
    if proxy_port is not None:
        check_port(proxy_port, "127.0.0.1", "--proxy-port")
        check_port(store_port, "127.0.0.1", "--store-port")
    context = RunContext(
        run_dir=run_dir, app=app, proxy_port=proxy_port, daemon=os.environ.get("VISION_RL_DAEMON", RunContext.daemon)
    )
    total = resolved.verl["trainer"]["total_training_steps"]
    with RunProgress(run_dir, total, console) as progress:
        launch = Launch(resolved, context, run_environment(cpu), cpu, progress.update)
        try:
            fit(
                agent_of(args.task),
                tasks_of(rows, resolved),
                tasks_of(validation_rows(val_rows, resolved), resolved),
                launch,
                store_host="127.0.0.1",
                store_port=store_port,
            )
        finally:
            progress.update()
            summary = summarise(run_dir, args.task, STARTED)
            write_summary(run_dir, summary)
    console.print(render_summary(run_dir, summary))


def agent_of(task: str) -> Any:
    """The `@agl.rollout` agent of a task."""
    if task == "vqa":
        from vqa_agent import vqa_agent

        return vqa_agent
    from grounding_agent import grounding_agent

    return grounding_agent


if __name__ == "__main__":
    main(sys.argv[1:])
