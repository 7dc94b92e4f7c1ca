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
import re  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from vision_rl.agent.media import check_pictures, check_videos  # noqa: E402
from vision_rl.config.resolve import Resolved, presets, render_resolved, resolve_tasks, variants  # noqa: E402
from vision_rl.data.mix import DataFile, data_file, mixed  # noqa: E402
from vision_rl.data.schema import read_rows, task_names_of  # noqa: E402
from vision_rl.errors import UserError, cli_errors  # noqa: E402
from vision_rl.files import write_text  # noqa: E402
from vision_rl.models.table import render_models  # noqa: E402
from vision_rl.platform.environment import run_environment  # noqa: E402
from vision_rl.platform.gpu import check_build, on_cpu  # noqa: E402
from vision_rl.preflight.checks import check_devices, check_evidence, check_images, check_machine, check_model  # noqa: E402
from vision_rl.rollout.addresses import PROXY_PORT, STORE_PORT, Reach, free_port, private, published, worker_lines  # noqa: E402
from vision_rl.run.directory import CONFIG, check_run_dir, open_run_dir  # noqa: E402
from vision_rl.run.log import RunLog  # noqa: E402
from vision_rl.tasks import TASK_HELP, get_task  # noqa: E402

Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line; everything else is a `key=value` override."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        help="training parquet, or several, mixed in proportion to their weights (default: synthetic tasks)",
    )
    what.add_argument(
        "--val-data-path",
        nargs="+",
        metavar="FILE",
        help="validation parquet; must share no image with the training one",
    )
    how = parser.add_argument_group("how to train")
    named = f"{', '.join(presets())}, or a .yaml file (default: gpu_24gb with a CUDA device and vLLM's CUDA build, else cpu)"
    how.add_argument("--preset", metavar="NAME", help=named)
    named = f"an algorithm by one word, repeatable: {', '.join(variants())}, or a .yaml file"
    how.add_argument("--variant", metavar="NAME", action="append", default=[], help=named)
    how.add_argument("--max-steps", type=int, help="training steps in all, those before --resume included")
    how.add_argument(
        "--rollout-engine", choices=("vllm", "sglang"), help="inference server (default: the preset's, vllm)"
    )
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
        help=f"publish the LLM proxy on port {PROXY_PORT} and the store on {STORE_PORT}, and say how to start workers",
    )
    where.add_argument(
        "--host",
        default="127.0.0.1",
        help="interface of proxy and store (with --llm-proxy); 0.0.0.0: all, with a token",
    )
    where.add_argument("--advertise", help="address under which workers reach this machine, if it is behind NAT")
    where.add_argument("--proxy-port", type=int, help="port of the LLM proxy (with --llm-proxy)")
    where.add_argument(
        "--store-port", type=int, help="port of Agent Lightning's store and dashboard (with --llm-proxy)"
    )
    where.add_argument(
        "--role",
        choices=("trainer", "runner", "store"),
        default="trainer",
        help="runner: runners for the trainer behind --store; store: a store that outlives trainers",
    )
    where.add_argument("--store", help="URL of the trainer's store (with --role runner)")
    where.add_argument("--external-store", help="URL of a store that --role store serves elsewhere")
    ask = parser.add_argument_group("instead of training")
    ask.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and where each value came from"
    )
    ask.add_argument(
        "--plan", action="store_true", help="estimate the memory of model and preset; exit code 1 if it does not fit"
    )
    ask.add_argument(
        "--doctor",
        action="store_true",
        help="check machine, model and data for this run, one image end to end; exit code 1 if a check fails",
    )
    ask.add_argument(
        "--list-models", action="store_true", help="print the model families, their engines and their needs"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["init"]:
        with cli_errors():
            from vision_rl.new_task import init

            if len(words) != 2:
                raise UserError("init makes the folder of a new task; give its name, as train_agent.py init my-task")
            print(init(words[1]))
        return
    args = parsed(argv)
    with cli_errors():
        args.task = [get_task(spec).name for spec in args.task]
        cpu = on_cpu()
        os.environ.update(run_environment(cpu))
        if args.list_models:
            print(render_models())
        elif args.dry_run:
            print(render_resolved(configure(args, cpu, media_root="/")))
        elif args.plan:
            from vision_rl.preflight.memory_plan import plan, render_plan

            estimate = plan(configure(args, cpu, media_root="/"))
            print(render_plan(estimate))
            sys.exit(0 if estimate.fits else 1)
        elif args.doctor:
            sys.exit(0 if examine(args, cpu) else 1)
        elif args.role == "runner":
            from vision_rl.agent.lightning import agent_of
            from vision_rl.training.launch import run_runners

            if not args.store:
                raise UserError("name the trainer's store with --store; train_agent.py --llm-proxy prints it")
            run_runners(agent_of(args.task), args.n_runners or os.cpu_count() or 1, args.store)
        elif args.role == "store":
            from vision_rl.training.launch import serve_store

            serve_store(reach_of(args, "/"))
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


def configure(args: argparse.Namespace, cpu: bool, *, media_root: str) -> Resolved:
    """The resolved configuration; vLLM may read images below `media_root` by file:// address."""
    preset = args.preset or ("cpu" if cpu else "gpu_24gb")
    model = args.model
    if model is None and preset == "cpu":
        from vision_rl.tiny import checkpoint_dir

        model = checkpoint_dir()
    run_dir = run_dir_of(args)
    flags: dict[str, Any] = {
        "trainer.default_local_dir": str(run_dir.absolute() / "checkpoints"),
        "trainer.experiment_name": run_dir.name,
    }
    if args.max_steps is not None:
        flags["trainer.total_training_steps"] = args.max_steps
    if args.seed is not None:
        flags["data.seed"] = args.seed
    if args.rollout_engine is not None:
        flags["actor_rollout_ref.rollout.name"] = args.rollout_engine
    if args.resume:
        flags["trainer.resume_mode"] = "auto"
    resolved = resolve_tasks(
        tasks_of_run(args),
        preset,
        args.overrides,
        model=model,
        n_runners=args.n_runners,
        variants=args.variant,
        flags=flags,
        media_root=media_root,
    )
    if args.data_path is not None and args.val_data_path is not None:
        name_data(resolved, *data_files(args), origin="flag")
    return resolved


def tasks_of_run(args: argparse.Namespace) -> list[str]:
    """The tasks that are named, or those of the data's rows, in the order in which they come.

    A file that is not there yet is passed over: --dry-run and --plan do not need it, and a run will say that it is missing.
    """
    if args.task or args.data_path is None:
        return args.task or ["vqa"]
    there = [file.path for file in map(data_file, args.data_path) if file.path.is_file()]
    return list(dict.fromkeys(name for path in there for name in task_names_of(path))) or ["vqa"]


def run_dir_of(args: argparse.Namespace) -> Path:
    """Where the run goes."""
    return Path(args.run_dir or Path("runs") / "+".join(tasks_of_run(args)))


def rows_of_run(path: Path, tasks: Sequence[str]) -> list[Row]:
    """The rows of a file that are of the run's tasks; `UserError` if there are none."""
    if len(tasks) == 1:
        return read_rows(path, task=tasks[0])
    rows = [row for row in read_rows(path) if row["task"] in tasks]
    if not rows:
        raise UserError(f"{path} holds no rows of {' or '.join(tasks)}, the tasks of this run")
    return rows


def media_root_of(rows: Sequence[Mapping[str, Any]], data: Path) -> str:
    """The deepest folder that holds every image: vLLM may read there and nowhere else. data: a file of rows, whose folder
    stands in where no row names an image."""
    folders = [os.path.dirname(path) for row in rows for path in row["image_paths"]]
    return os.path.commonpath(folders) if folders else str(data.absolute().parent)


def data_files(args: argparse.Namespace) -> tuple[list[DataFile], list[DataFile]]:
    """The named files for training and for validation, or synthetic tasks; half a pair is an error."""
    if (args.data_path is None) != (args.val_data_path is None):
        raise UserError(
            "name both --data-path and --val-data-path (data_utils.py split makes two files of one, by image)"
        )
    if args.data_path is not None:
        return [data_file(text) for text in args.data_path], [data_file(text) for text in args.val_data_path]
    from vision_rl.tiny import write_tasks

    made = [write_tasks(Path("data") / "synthetic" / task, task) for task in tasks_of_run(args)]
    return [DataFile(files["train"]) for files in made], [DataFile(files["val"]) for files in made]


def name_data(resolved: Resolved, train: Sequence[DataFile], val: Sequence[DataFile], *, origin: str) -> None:
    """Record the data files where verl's tree has a place for them; it does not read them, and its defaults would mislead."""
    for key, files in (("train_files", train), ("val_files", val)):
        names = [str(file) for file in files]
        resolved.verl["data"][key] = names[0] if len(names) == 1 else names
        resolved.origin[f"data.{key}"] = origin


def prepared(args: argparse.Namespace, cpu: bool) -> tuple[Resolved, list[Row], list[Row], str]:
    """(configuration, training rows, validation rows, folder of all images), checked as far as is possible beforehand."""
    files = data_files(args)
    tasks = tasks_of_run(args)
    sets, val_sets = ([rows_of_run(file.path, tasks) for file in part] for part in files)
    rows = mixed(sets, [file.weight for file in files[0]])
    val_rows = [row for part in val_sets for row in part]
    media_root = media_root_of([*rows, *val_rows], files[0][0].path)
    resolved = configure(args, cpu, media_root=media_root)
    if args.data_path is None:
        name_data(resolved, *files, origin="synthetic tasks")
    model = resolved.verl["actor_rollout_ref"]["model"]
    trusted = bool(model.get("trust_remote_code") and resolved.verl["data"].get("trust_remote_code"))
    check_model(Path(model["path"]), trusted=trusted)
    check_evidence(str(model["path"]), cpu, resolved.verl["actor_rollout_ref"]["rollout"]["name"])
    rows = rows[: resolved.app.max_train_samples or None]
    used = [part[: resolved.app.max_train_samples or None] for part in sets]  # a mix takes each file's rows in order
    for checked, file in zip([*used, *val_sets], [*files[0], *files[1]], strict=True):
        check_images(checked, file.path)
        check_pictures(checked, resolved.app.images_per_prompt, file.path)
    if resolved.agent.video == "native":
        trainer = resolved.verl["trainer"]
        check_videos([*rows, *val_rows], trainer["n_gpus_per_node"] * trainer["nnodes"])
    return resolved, rows, val_rows, media_root


def train(args: argparse.Namespace, cpu: bool, command: Sequence[str]) -> None:
    """Prepare the run directory, run, and close with a summary, whatever ended the run; `command`: the arguments."""
    from rich.console import Console

    from vision_rl.run.progress import RunProgress
    from vision_rl.run.summary import render_summary, summarise
    from vision_rl.training.context import RunContext

    resolved, rows, val_rows, media_root = prepared(args, cpu)
    if resolved.app.n_runners == 0 and not args.llm_proxy:
        raise UserError("app.n_runners=0 leaves all rollouts to workers elsewhere: add --llm-proxy, or some runners")
    check_run_dir(run_dir_of(args), resume=args.resume, overwrite=args.overwrite)
    check_devices(resolved.verl, resolved.preset)
    reach = reach_of(args, media_root)
    total = total_steps(resolved, len(rows))
    # All that can be refused is refused above: below, --overwrite deletes a run and config.yaml is written.
    run_dir = open_run_dir(run_dir_of(args), resume=args.resume, overwrite=args.overwrite)
    console = Console()
    again = go_on(command)
    if args.resume and not resumable(run_dir, resolved, total, console):
        keep_record(run_dir, summarise(run_dir, resolved.tasks, STARTED), console)
        console.print(f"go on: {again}", highlight=False, soft_wrap=True, markup=False)
        return
    if not (
        args.resume and (run_dir / CONFIG).exists()
    ):  # else config.yaml describes the steps that there are, until a new one
        write_text(run_dir / CONFIG, render_resolved(resolved))

    from vision_rl.agent.lightning import agent_of
    from vision_rl.training.launch import Launch, fit, tasks_of, validation_rows

    rows_text = f"{resolved.task}: {len(rows)} training rows, preset {resolved.preset}, run directory {run_dir}"
    console.print(rows_text, markup=False, soft_wrap=True)
    for note in resolved.notes:
        console.print(f"note: {note}", style="dim", highlight=False, markup=False)
    for line in worker_lines(reach, [get_task(task).spec for task in resolved.tasks]) if args.llm_proxy else ():
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    context = RunContext(
        run_dir=run_dir,
        app=resolved.app,
        agent=resolved.agent,
        reach=reach,
    )
    with RunProgress(run_dir, total, console) as progress:

        def watch() -> None:
            progress.update()
            if progress.stepped:
                keep_config(run_dir, resolved)

        environment = run_environment(cpu, megatron=resolved.strategy == "megatron")
        launch = Launch(resolved, context, environment, cpu, watch)
        try:
            fit(
                agent_of(tasks_of_run(args)),
                tasks_of(rows, resolved),
                tasks_of(validation_rows(val_rows, resolved), resolved),
                launch,
            )
        except UserError as error:
            RunLog(run_dir).event("error", text=str(error))
            raise
        finally:
            watch()
            summary = summarise(run_dir, resolved.tasks, STARTED)
            keep_record(run_dir, summary, console)
    console.print(render_summary(run_dir, summary, again), highlight=False, soft_wrap=True, markup=False)


def keep_config(run_dir: Path, resolved: Resolved) -> None:
    """Let config.yaml say what the run's steps are made with, once there is one."""
    text = render_resolved(resolved)
    if (run_dir / CONFIG).read_text(encoding="utf-8") != text:
        write_text(run_dir / CONFIG, text)


def resumable(run_dir: Path, resolved: Resolved, total: int, console: Any) -> bool:
    """Tell what has changed since the run began; False, and the run is closed, if it has no step left to do."""
    from vision_rl.run.reader import read_run
    from vision_rl.training.resume import changes, close, steps_done

    notes = changes(read_run(run_dir), resolved) if (run_dir / CONFIG).exists() else ()
    done = steps_done(run_dir, resolved)
    if done >= total:
        close(run_dir, resolved, done)
        console.print(
            f"{run_dir} has done its {done} steps; --max-steps above {done} goes on", soft_wrap=True, markup=False
        )
        return False
    for note in notes:
        console.print(f"note: {note}", style="dim", highlight=False, soft_wrap=True, markup=False)
    return True


def keep_record(run_dir: Path, summary: dict[str, Any], console: Any) -> None:
    """Write summary and report; what the disk does not take is told, and must not hide why the run ended."""
    from vision_rl.report import write_report
    from vision_rl.run.summary import write_summary

    try:
        write_summary(run_dir, summary)
        write_report(run_dir)
    except OSError as error:
        console.print(f"summary and report were not written: {error.strerror}")


def go_on(command: Sequence[str]) -> str:
    """The command that resumes the run that `command` (the arguments of this one) has started."""
    kept, skip = [], False
    for argument in command:
        steps = argument.startswith(("--max-steps=", "trainer.total_training_steps="))
        if not (skip or steps or argument in ("--resume", "--overwrite", "--max-steps")):
            kept.append(argument)
        skip = argument == "--max-steps"  # its value is the next one
    return f"{shlex.join(['python', 'train_agent.py', *kept])} --resume --max-steps N"


def examine(args: argparse.Namespace, cpu: bool) -> bool:
    """Run the doctor's checks for what these arguments would train; True if none failed."""
    from rich.console import Console

    from vision_rl.preflight.doctor import Patient, doctor

    ports = [
        (args.proxy_port or PROXY_PORT, args.host, "--proxy-port"),
        (args.store_port or STORE_PORT, args.host, "--store-port"),
    ]
    files = data_files(args)
    resolved = configure(args, cpu, media_root="/")
    check_build(resolved.verl["trainer"]["device"] == "cpu")  # nothing below would say a word for minutes
    patient = Patient(
        resolved=resolved,
        data=([file.path for file in files[0]], [file.path for file in files[1]]),
        run_dir=run_dir_of(args),
        cpu=cpu,
        ports=ports if args.llm_proxy else (),
    )
    return doctor(patient, Console())


def reach_of(args: argparse.Namespace, media_root: str) -> Reach:
    """Where store and proxy listen: on free ports of this machine, or published with --llm-proxy."""
    external = args.external_store.rstrip("/") if args.external_store else None
    if not args.llm_proxy and args.role != "store":
        return private(free_port(), external)
    if args.role == "store":  # it has no proxy
        args.proxy_port = free_port()
    return published(args.host, args.advertise, args.proxy_port, args.store_port, media_root, external)


def total_steps(resolved: Resolved, rows: int) -> int:
    """As verl counts them: the named number, or whole batches times epochs. `UserError` if there is not one batch."""
    batch = resolved.verl["data"]["train_batch_size"]
    if rows < batch:
        raise UserError(f"{rows} training rows do not fill one batch; lower data.train_batch_size={batch}")
    trainer = resolved.verl["trainer"]
    return int(trainer["total_training_steps"] or rows // batch * trainer["total_epochs"])


if __name__ == "__main__":
    main(sys.argv[1:])
