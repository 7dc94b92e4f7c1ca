"""`--doctor`: check whether this machine is ready for this run, and print the cure of each check that fails.

Behind `train_agent.py --doctor`, with the same arguments as the run: packages against the pins, GPU and driver, memory,
shared memory, disk, ports, limits of the shell, model and processor, data, verl's own validation, and one image end to
end (`end_to_end.py`). Nothing is changed, and one check that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.text import Text

from vision_rl.agent.media import check_pictures
from vision_rl.config.resolve import Resolved, validate_with_verl
from vision_rl.data.schema import read_rows
from vision_rl.errors import UserError
from vision_rl.media.check_images import check_row_images
from vision_rl.models.checks import cut_off
from vision_rl.models.sizes import shape_of
from vision_rl.models.table import model_info, precision_of
from vision_rl.platform.checks import check_devices, check_machine
from vision_rl.platform.gpu import check_build
from vision_rl.preflight.finding import Finding
from vision_rl.rollout.addresses import PROXY_PORT, STORE_PORT, check_port
from vision_rl.training.prepare import configure, data_files, run_dir_of
from vision_rl.waiting import waiting

DISTRIBUTION = "vision-rl"
GB = 1e9
OPEN_FILES = 4096
"""Ray, the store and the proxy hold a few hundred sockets; vLLM maps one file per shard of the weights."""
PROCESSES = 4096
SHARED_MEMORY_GB = {True: 0.5, False: 4.0}
"""Free /dev/shm by whether the run is on CPU: Ray's object store and NCCL live there, Docker's default is 64 MB."""
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: float32 weights and AdamW's two moments."""
ROWS_CHECKED = 2000


@dataclass(frozen=True)
class RunUnderTest:
    """What is examined. ports: (port, host, flag) that must be free."""

    resolved: Resolved
    data: tuple[Sequence[Path], Sequence[Path]]  # training, validation
    run_dir: Path
    cpu: bool
    ports: Sequence[tuple[int, str, str]] = ()


def examine(args: argparse.Namespace, cpu: bool) -> bool:
    """Examine what these arguments of `train_agent.py` would train; True if no check failed."""
    ports = [
        (args.proxy_port or PROXY_PORT, args.host, "--proxy-port"),
        (args.store_port or STORE_PORT, args.host, "--store-port"),
    ]
    console = Console()
    with waiting("reading settings, model and data", Console(stderr=True) if args.json else console):
        train_files, val_files = data_files(args)
        resolved = configure(args, cpu, media_root="/")
    check_build(resolved.verl["trainer"]["device"] == "cpu")  # nothing below would say a word for minutes
    run = RunUnderTest(
        resolved=resolved,
        data=([file.path for file in train_files], [file.path for file in val_files]),
        run_dir=run_dir_of(args),
        cpu=cpu,
        ports=ports if args.llm_proxy else (),
    )
    return doctor(run, console, as_json=args.json)


def doctor(run: RunUnderTest, console: Console, *, as_json: bool = False) -> bool:
    """Run every check, print each finding as it is known; True if none failed. as_json: a JSON object a finding."""
    found: list[Finding] = []
    with apart(console):
        for name, check in CHECKS.items():
            with contextlib.nullcontext() if as_json else waiting(f"checking {name}", console, alone=True):
                new = examined(name, check, run)
            for finding in new:
                text = json.dumps(asdict(finding)) if as_json else render(finding)
                console.print(text, soft_wrap=True, highlight=False, markup=False)
            found += new
    failed = sum(finding.ok is False for finding in found)
    if not as_json:
        console.print(f"{failed} of {len(found)} checks failed" if failed else f"all {len(found)} checks passed")
    return not failed


@contextlib.contextmanager
def apart(console: Console) -> Iterator[None]:
    """What upstream prints in the block, in C or in Python, goes nowhere; what goes to `console` is shown."""
    sys.stdout.flush()
    with open(os.devnull, "w") as nothing, os.fdopen(os.dup(1), "w") as out, os.fdopen(os.dup(2), "w") as errors:
        if console.file is sys.stdout:
            console.file = out
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            if console.file is out:
                console.file = sys.stdout


def examined(name: str, check: Callable[[RunUnderTest], list[Finding]], run: RunUnderTest) -> list[Finding]:
    """The findings of a check; what it raises is a finding too, so that the others still run."""
    try:
        return check(run)
    except UserError as error:
        return [Finding(name, False, "", str(error))]
    except Exception as error:  # a failing check must not stop the others
        return [
            Finding(name, False, f"{type(error).__name__}: {error}", "see docs/troubleshooting.md for this message")
        ]


def render(finding: Finding) -> Text:
    """A finding as a line, and its cure below it where there is something to cure."""
    word, style = {True: ("ok", "green"), False: ("FAIL", "bold red"), None: ("note", "dim")}[finding.ok]
    lines = [
        *filter(None, [finding.found]),
        *([f"cure: {finding.cure}"] if finding.ok is False and finding.cure else []),
    ]
    return Text.assemble((f"{word:5}", style), f"{finding.check:20} ", ("\n" + " " * 26).join(lines))


def packages(cpu: bool) -> list[Finding]:
    """The Python version and every pinned package of this machine's kind against what is installed."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return [
            Finding("packages", False, f"{DISTRIBUTION} is not installed here", "make install, or pip install -e .")
        ]
    python, wanted = ".".join(map(str, sys.version_info[:3])), metadata["Requires-Python"]
    found = [
        Finding(
            "python",
            SpecifierSet(wanted).contains(python),
            f"{python}, needs {wanted}",
            "make install PYTHON=python3.11",
        )
    ]
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    return [*found, *against_pins([Requirement(line) for line in lines], "cpu" if cpu else "gpu", installed_version)]


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def against_pins(
    requirements: Sequence[Requirement], extra: str, version_of: Callable[[str], str | None]
) -> list[Finding]:
    """One finding for all packages that fit, and one for each that does not."""
    wrong, right = [], 0
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        version = version_of(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            right += 1
            continue
        cure = f"pip install '{requirement.name}{requirement.specifier}', or make install for all"
        state = f"{version or 'missing'}, needs {requirement.specifier or 'any'}"
        wrong.append(Finding(requirement.name, False, state, cure))
    return [Finding("packages", True, f"{right} packages as pinned"), *wrong]


def machine(run: RunUnderTest) -> list[Finding]:
    """Cores and memory; on a GPU machine devices, driver and what is free on them."""
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} cores, {memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    if run.cpu:
        check_machine(True)
        check_devices(run.resolved.verl, run.resolved.preset)
        return [Finding("machine", True, found + ", no GPU")]
    return [Finding("machine", True, found), *gpus(run)]


def gpus(run: RunUnderTest) -> list[Finding]:
    """The devices as nvidia-smi and as torch see them."""
    fields = "name,driver_version,memory.total,memory.used"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        cure = "install NVIDIA's driver; in a container start it with --gpus all"
        return [Finding("driver", False, f"nvidia-smi fails: {error}", cure)]
    import torch

    found = []
    for number, line in enumerate(listed):
        name, driver, total, used = (part.strip() for part in line.split(","))
        busy = float(used) / float(total) > 0.1
        cure = "another process holds this GPU (nvidia-smi shows which); end it, or choose with CUDA_VISIBLE_DEVICES"
        found.append(Finding(f"GPU {number}", not busy, f"{name}, {used} of {total} MiB in use, driver {driver}", cure))
    usable, wanted = torch.cuda.device_count(), run.resolved.verl["trainer"]["n_gpus_per_node"]
    cure = f"a driver for CUDA {torch.version.cuda} (nvidia-smi, top right), CUDA_VISIBLE_DEVICES, or trainer.n_gpus_per_node"
    found.append(Finding("GPUs for torch", usable >= wanted, f"{usable} usable, the preset wants {wanted}", cure))
    return found


def shared_memory(run: RunUnderTest) -> list[Finding]:
    """Free space in /dev/shm, against Ray's object store and what NCCL takes."""
    free = shutil.disk_usage("/dev/shm").free / GB
    store = (run.resolved.verl["ray_kwargs"]["ray_init"].get("object_store_memory") or 0) / GB
    wanted = max(SHARED_MEMORY_GB[run.cpu], store)
    cure = "docker run --shm-size=16g (or --ipc=host), or less ray_kwargs.ray_init.object_store_memory"
    return [Finding("shared memory", free >= wanted, f"{free:.1f} GB free in /dev/shm, needs {wanted:.1f}", cure)]


def disk(run: RunUnderTest) -> list[Finding]:
    """Free space for the checkpoints that stay, and one more while it is written."""
    place = next(path for path in (run.run_dir.absolute(), *run.run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free / GB
    app = run.resolved.app.checkpoints
    kept = app.keep_last + app.keep_best + 1
    parameters = shape_of(model_info(run.resolved.verl["actor_rollout_ref"]["model"]["path"])).parameters
    wanted = kept * parameters * BYTES_PER_PARAMETER / GB + 1
    found = f"{free:.0f} GB free at {place}, {kept} checkpoints of this model take about {wanted:.0f}"
    return [Finding("disk", free >= wanted, found, "free space, another --run-dir, or app.checkpoints.keep_last=1")]


def ports(run: RunUnderTest) -> list[Finding]:
    """The ports that a published run needs; a private one takes free ones."""
    if not run.ports:
        return [Finding("ports", None, "not published: free ports are taken at the start (--llm-proxy publishes)")]
    for port, host, flag in run.ports:
        check_port(port, host, flag)
    return [Finding("ports", True, ", ".join(f"{host}:{port} is free" for port, host, _ in run.ports))]


def limits() -> list[Finding]:
    """What the shell allows this process."""
    found = []
    wanted = (
        ("open files", resource.RLIMIT_NOFILE, OPEN_FILES, "-n 65535"),
        ("processes", resource.RLIMIT_NPROC, PROCESSES, "-u 65535"),
    )
    for name, kind, least, flag in wanted:
        soft, hard = resource.getrlimit(kind)
        enough = soft == resource.RLIM_INFINITY or soft >= least
        shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        cure = f"ulimit {flag} (the hard limit is {'unlimited' if hard == resource.RLIM_INFINITY else hard})"
        found.append(Finding(name, enough, f"at most {shown}, needs {least}", cure))
    return found


def model(run: RunUnderTest) -> list[Finding]:
    """Family, weights and processor of the model folder; a hub name is only looked up."""
    name = str(run.resolved.verl["actor_rollout_ref"]["model"]["path"])
    info = model_info(name)
    if not info.on_disk:
        return [
            Finding("model", None, f"{name} is a hub name ({info.family.name}); its files are fetched at the start")
        ]
    weights = [*Path(name).glob("*.safetensors"), *Path(name).glob("*.bin")]
    cut = [problem for file in weights if file.suffix == ".safetensors" and (problem := cut_off(file))]
    size = sum(file.stat().st_size for file in weights) / GB
    shown = f"{info.family.name}, {len(weights)} weight files, {size:.2f} GB" if weights else f"{name} holds no weights"
    cure = "download the folder again, with its *.safetensors"
    found = [Finding("model", bool(weights) and not cut, "; ".join([shown, *cut]), cure)]
    return [*found, *processor(name, info.family.name)]


def processor(name: str, family: str) -> list[Finding]:
    """Processor, chat template and the token that stands for pictures."""
    from vision_rl.models.processor import load_processor

    try:
        loaded = load_processor(name)
    except UserError as error:
        cure = "the folder needs preprocessor_config.json and the tokenizer's files of a vision model"
        return [Finding("processor", False, str(error), cure)]
    template = getattr(loaded, "chat_template", None) or getattr(loaded.tokenizer, "chat_template", None)
    cure = "copy chat_template.jinja or chat_template.json from the original model"
    shown = f"{type(loaded).__name__} ({family}), {'with' if template else 'without'} chat template"
    return [Finding("processor", bool(template), shown, cure)]


def parity(run: RunUnderTest) -> list[Finding]:
    """The cells of the parity matrix, asked of this very model: where trainer and server would see different things."""
    from vision_rl.preflight.evidence import keep
    from vision_rl.preflight.parity import parity_cells
    from vision_rl.preflight.parity_cells import TOOL_REPLY

    actor_rollout = run.resolved.verl["actor_rollout_ref"]
    name = str(actor_rollout["model"]["path"])
    if actor_rollout["rollout"]["name"] != "vllm":
        return [
            Finding("parity", None, "the cells are asked of vLLM only; the check end to end asked the run's engine")
        ]
    if not model_info(name).on_disk:
        return [Finding("parity", None, f"{name} is a hub name; download it to have its parity checked")]
    cure = "do not train this model on such conversations; docs/models.md has the family's row"
    results = parity_cells(name, cpu=run.cpu, videos=run.resolved.agent.video == "native")
    precision = precision_of(model_info(name), cpu=run.cpu)
    kept = keep(Path(name), precision, run.cpu, results)
    # Not every template knows a tool's message, and the agents here show a tool's picture in a user's.
    return [
        *(
            Finding(
                f"parity: {result.cell}",
                result.verdict == "equal" or (None if result.cell == TOOL_REPLY else False),
                result.reason or f"|trainer - server| {result.mean:.1e} on average, {result.max:.1e} at most",
                cure,
            )
            for result in results
        ),
        Finding("evidence", None, f"{precision}, kept in {kept}"),
    ]


def data(run: RunUnderTest) -> list[Finding]:
    """Rows and the headers of their images, up to a few thousand of either file; no image in both."""
    found = []
    images: tuple[set[str], set[str]] = (set(), set())
    for seen, path in ((seen, path) for seen, paths in zip(images, run.data, strict=True) for path in paths):
        rows = _rows(run, path, ROWS_CHECKED)
        check_row_images(rows, path)
        check_pictures(rows, run.resolved.app.images_per_prompt, path)
        own = {image for row in rows for image in row["image_paths"]}
        seen |= own
        found.append(Finding(f"data {path.name}", True, f"{len(rows)} rows and {len(own)} images checked"))
    shared = len(images[0] & images[1])
    cure = "data_utils.py split makes two files of one, by image: validation on training images measures memory"
    found.append(Finding("data apart", not shared, f"{shared} images in both files", cure))
    return found


def data_row(run: RunUnderTest) -> dict[str, Any]:
    """The row with the smallest picture among the first: the trial should cost seconds."""
    rows = _rows(run, run.data[1][0], 50)
    return min(rows, key=lambda row: sum(width * height for width, height in row["image_sizes"]))


def _rows(run: RunUnderTest, path: Path, limit: int) -> list[dict[str, Any]]:
    """The first rows of the run's task; of any task in a run of several."""
    tasks = run.resolved.tasks
    return read_rows(path, task=tasks[0] if len(tasks) == 1 else None, limit=limit)


def configuration(run: RunUnderTest) -> list[Finding]:
    """verl's own validation of the composed tree, and what stands in for packages that are not there."""
    validate_with_verl(run.resolved)
    found = [Finding("configuration", True, f"preset {run.resolved.preset}: verl accepts it")]
    return [*found, *(Finding("configuration", None, note) for note in run.resolved.notes)]


def end_to_end(run: RunUnderTest) -> list[Finding]:
    """One image through server, proxy and trace; its import is Agent Lightning's."""
    from vision_rl.preflight.end_to_end import end_to_end as through

    return through(run.resolved, data_row(run), run.cpu)


CHECKS: dict[str, Callable[[RunUnderTest], list[Finding]]] = {
    "packages": lambda run: packages(run.cpu),
    "machine": machine,
    "shared memory": shared_memory,
    "disk": disk,
    "ports": ports,
    "limits": lambda run: limits(),
    "model": model,
    "data": data,
    "configuration": configuration,
    "end to end": end_to_end,
    "parity": parity,
}
