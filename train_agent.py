"""Train a vision-language agent with reinforcement learning: Agent Lightning's runners, verl's GRPO, vLLM's server.

On a machine without a GPU the same stack trains the embedded tiny model; with one, name a model and a preset:

    python train_agent.py                                              # tiny model, synthetic VQA
    python train_agent.py --task grounding
    python train_agent.py init my-task                                 # a folder with a task of your own that runs
    python train_agent.py --model Qwen/Qwen2.5-VL-3B-Instruct --data-path train.parquet --val-data-path val.parquet \\
        --llm-proxy --n-runners 8
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vision_rl.errors import Parser, UserError, cli_errors  # first: it says what this Python lacks

# isort: split
import psutil

from vision_rl.config.resolve import Resolved, presets, render_resolved, variants
from vision_rl.files import write_text
from vision_rl.models.table import model_info, model_rows, precision_of, render_models
from vision_rl.platform.checks import check_devices, check_machine
from vision_rl.platform.environment import run_environment
from vision_rl.platform.fork_template import forked_workers
from vision_rl.platform.gpu import on_cpu
from vision_rl.rollout.addresses import PROXY_PORT, STORE_PORT, Addresses, worker_lines
from vision_rl.run.directory import CONFIG, check_run_dir, open_run_dir
from vision_rl.run.log import RunLog
from vision_rl.tasks import TASK_HELP, get_task
from vision_rl.training.finish import go_on, keep_config, keep_record, resumable
from vision_rl.training.prepare import (
    addresses_of,
    as_tasks,
    configure,
    prepared,
    run_dir_of,
    take_given,
    total_steps,
    validation_rows,
)

if TYPE_CHECKING:
    import agentlightning as agl


def parser() -> argparse.ArgumentParser:
    """The command line; everything else is a `key=value` override."""
    parser = Parser(__doc__)
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--task",
        action="append",
        default=[],
        help=f"train on rows of this task only, repeatable: {TASK_HELP} (default: every task of the data; vqa without data)",
    )
    what.add_argument(
        "--model", help="folder or Hugging Face name of a vision-language model (default: the tiny model)"
    )
    what.add_argument(
        "--data-path",
        nargs="+",
        metavar="FILE[:WEIGHT]",
        help="training parquet; several files are mixed by their weights (default: synthetic tasks)",
    )
    what.add_argument(
        "--val-data-path",
        nargs="+",
        metavar="FILE",
        help="validation parquet; it must share no image with the training data",
    )
    how = parser.add_argument_group("how to train")
    named = f"{', '.join(presets())}, or a .yaml file (default: gpu_24gb with a CUDA device and vLLM's CUDA build, else cpu)"
    how.add_argument("--preset", metavar="NAME", help=named)
    named = f"an algorithm by name, repeatable: {', '.join(variants())}, or a .yaml file"
    how.add_argument("--variant", metavar="NAME", action="append", default=[], help=named)
    how.add_argument(
        "--config", type=Path, metavar="FILE", help="read settings from a file; a run's config.yaml repeats that run"
    )
    how.add_argument("--max-steps", type=int, help="training steps in all, including those before --resume")
    how.add_argument(
        "--rollout-engine", choices=("vllm", "sglang"), help="inference server (default: the preset's, vllm)"
    )
    how.add_argument("--n-runners", type=int, help="parallel rollout processes on this machine")
    how.add_argument("--seed", type=int, help="seed of the data order and of sampling (default 0)")
    how.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings: verl's keys, and this project's under agent.* and app.*",
    )
    where = parser.add_argument_group("where it runs and what it leaves")
    where.add_argument("--run-dir", type=Path, default=None, help="folder of the run (default: runs/<task>)")
    where.add_argument("--resume", action="store_true", help="continue from the last whole checkpoint in --run-dir")
    where.add_argument("--overwrite", action="store_true", help="delete the run that --run-dir holds")
    where.add_argument(
        "--llm-proxy",
        action="store_true",
        help=f"publish the LLM proxy on port {PROXY_PORT} and the store on {STORE_PORT}, and print the commands for workers",
    )
    where.add_argument(
        "--host",
        default="127.0.0.1",
        help="interface of proxy and store (with --llm-proxy); 0.0.0.0 is every interface, with a token",
    )
    where.add_argument("--advertise", help="address of this machine for workers, if it is behind NAT")
    where.add_argument("--proxy-port", type=int, help="port of the LLM proxy (with --llm-proxy)")
    where.add_argument(
        "--store-port", type=int, help="port of Agent Lightning's store and dashboard (with --llm-proxy)"
    )
    where.add_argument(
        "--role",
        choices=("trainer", "runner", "store"),
        default="trainer",
        help="runner: run rollouts for the trainer at --store; store: run a store that outlives trainers",
    )
    where.add_argument("--store", help="URL of the trainer's store (with --role runner)")
    where.add_argument("--external-store", help="URL of a store that --role store serves elsewhere")
    ask = parser.add_argument_group("instead of training")
    ask.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and where each value came from"
    )
    ask.add_argument(
        "--changed", action="store_true", help="with --dry-run: print only what differs from preset and defaults"
    )
    ask.add_argument(
        "--json",
        action="store_true",
        help="print --plan, --list-models or --doctor as JSON; --doctor prints one line per check",
    )
    ask.add_argument(
        "--plan", action="store_true", help="estimate the memory of model and preset; exit code 1 if it does not fit"
    )
    ask.add_argument(
        "--doctor",
        action="store_true",
        help="check machine, model and data for this run, with one image end to end; exit code 1 if a check fails",
    )
    ask.add_argument(
        "--list-models", action="store_true", help="print the model families, their engines and their needs"
    )
    parser.set_defaults(tasks=None, given=None)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["init"]:
        from vision_rl.new_task import main as init

        init(words[1:])
        return
    args = parsed(argv)
    with cli_errors():
        take_given(args)
        args.task = [get_task(spec).name for spec in args.task]
        cpu = on_cpu()
        os.environ.update(run_environment(cpu))
        if args.list_models:
            print(json.dumps(model_rows(), indent=2) if args.json else render_models())
        elif args.dry_run:
            print(render_resolved(configure(args, cpu, media_root="/"), changed_only=args.changed))
        elif args.plan:
            from rich.console import Console

            from vision_rl.waiting import waiting

            with waiting("reading the model's shape", Console(stderr=True)):
                from vision_rl.preflight.memory_plan import as_json, plan, render_plan

                estimate = plan(configure(args, cpu, media_root="/"))
            print(as_json(estimate) if args.json else render_plan(estimate))
            sys.exit(0 if estimate.fits else 1)
        elif args.doctor:
            from vision_rl.preflight.doctor import examine

            sys.exit(0 if examine(args, cpu) else 1)
        elif args.role == "runner":
            from vision_rl.agent.lightning import agent_of
            from vision_rl.training.launch import run_runners

            if not args.store:
                raise UserError("name the trainer's store with --store; train_agent.py --llm-proxy prints it")
            run_runners(agent_of(args.task), args.n_runners or os.cpu_count() or 1, args.store)
        elif args.role == "store":
            from vision_rl.training.launch import serve_store

            serve_store(addresses_of(args, "/"))
        else:
            check_machine(cpu)
            train(args, cpu, sys.argv[1:] if argv is None else argv)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; overrides may stand between flags, and after data files, which are no `key=value`."""
    args = parser().parse_intermixed_args(argv)
    for name in ("data_path", "val_data_path"):
        given = getattr(args, name) or []
        args.overrides += [text for text in given if is_override(text)]
        setattr(args, name, [text for text in given if not is_override(text)] or None)
    return args


def is_override(text: str) -> bool:
    """Whether an argument after a data file is a `key=value`."""
    return bool(re.match(r"[+~]*[A-Za-z_][\w.]*=", text)) and not os.path.exists(text)


def train(args: argparse.Namespace, cpu: bool, command: Sequence[str]) -> None:
    """Prepare the run directory, run, and close with a summary, whatever ended the run; `command`: the arguments."""
    from rich.console import Console

    from vision_rl.run.progress import RunProgress
    from vision_rl.run.summary import summarise
    from vision_rl.waiting import waiting

    started = psutil.Process().create_time()
    console = Console()
    with waiting("reading settings, model and data", console):
        resolved, rows, val_rows, media_root = prepared(args, cpu)
    check_evidence(resolved, cpu)
    if resolved.app.n_runners == 0 and not args.llm_proxy:
        raise UserError("app.n_runners=0 leaves all rollouts to workers elsewhere: add --llm-proxy, or some runners")
    check_run_dir(run_dir_of(args), resume=args.resume, overwrite=args.overwrite)
    check_devices(resolved.verl, resolved.preset)
    addresses = addresses_of(args, media_root)
    total = total_steps(resolved, len(rows))
    # All that can be refused is refused above: below, --overwrite deletes a run and config.yaml is written.
    run_dir = open_run_dir(run_dir_of(args), resume=args.resume, overwrite=args.overwrite)
    if args.resume and not resumable(run_dir, resolved, total, console):
        keep_record(run_dir, summarise(run_dir, resolved.tasks, started), go_on(command, done=True), console)
        return
    if not (args.resume and (run_dir / CONFIG).exists()):  # else it describes the steps that there are, until a new one
        write_text(run_dir / CONFIG, render_resolved(resolved))
    lines = [f"{resolved.task}: {len(rows)} training rows, preset {resolved.preset}, run directory {run_dir}"]
    lines += [f"note: {note}" for note in resolved.notes]
    published = worker_lines(addresses, [get_task(task).spec for task in resolved.tasks]) if args.llm_proxy else []
    lines += ["the commands for workers follow once the proxy listens"] if published else []
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)

    environment = run_environment(cpu, megatron=resolved.strategy == "megatron")
    try:
        with (
            forked_workers(cpu, resolved.verl, run_dir / "logs" / "template.log") as forked,
            RunProgress(run_dir, total, console, published) as progress,
        ):
            # Imported while the template does.
            from vision_rl.agent.lightning import agent_of
            from vision_rl.training.algorithm import Launch, VisionVERL
            from vision_rl.training.context import RunContext
            from vision_rl.training.launch import make_ready

            def watch() -> None:
                progress.update()
                if progress.stepped:
                    keep_config(run_dir, resolved)

            context = RunContext(run_dir=run_dir, app=resolved.app, agents=resolved.agents, addresses=addresses)
            launch = Launch(resolved, context, environment, cpu, watch, forked)
            make_ready(launch)
            try:
                trainer_of(VisionVERL(launch), resolved.app.n_runners, addresses).fit(
                    agent_of(resolved.tasks),
                    train_dataset=as_tasks(rows),
                    val_dataset=as_tasks(validation_rows(val_rows, resolved)),
                )
            finally:
                watch()
    except UserError as error:
        RunLog(run_dir).event("error", text=str(error))
        raise
    finally:
        summary = summarise(run_dir, resolved.tasks, started)
        keep_record(run_dir, summary, go_on(command, done=summary["steps"] >= total), console)


def check_evidence(resolved: Resolved, cpu: bool) -> None:
    """Raise `UserError` for a model of a family that is not proven, unless `--doctor` has proven it on this machine."""
    info = model_info(str(resolved.verl["actor_rollout_ref"]["model"]["path"]))
    if info.family.unproven:
        from vision_rl.preflight.evidence import check_proven

        check_proven(info, precision_of(info, cpu=cpu), cpu, resolved.verl["actor_rollout_ref"]["rollout"]["name"])


def trainer_of(algorithm: agl.Algorithm, n_runners: int, addresses: Addresses) -> agl.Trainer:
    """Agent Lightning's trainer with our store, runners and strategy. Runners are forked before Ray starts: a fork of a
    process with Ray's threads breaks."""
    import agentlightning as agl

    from vision_rl.rollout.strategy import VisionStrategy
    from vision_rl.training.launch import store_of, vision_runner

    runner = vision_runner()
    return agl.Trainer(
        n_runners=n_runners,
        algorithm=algorithm,
        runner=runner,
        tracer=runner.tracer,
        strategy=VisionStrategy(n_runners=n_runners, addresses=addresses),
        store=store_of(addresses),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
