"""Workers that are forked from one template: each is the process that Ray asked for, and ends as Ray would have it end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from vision_rl.platform.fork_template import SERVER, TRAINER, fork_template, forked_workers

SCRIPT = """
import json, os, random, sys
sys.path.insert(0, os.environ["SEEN"])
print(json.dumps({
    "argv": sys.argv[1:], "variable": os.environ.get("VARIABLE"), "folder": os.getcwd(), "imported": "colorsys" in sys.modules,
    "parent": os.getppid(), "process": os.getpid(), "leader": os.getsid(0), "drawn": random.random(), "name": __name__,
}), flush=True)
if "wait" in sys.argv:
    import time
    time.sleep(60)
print("to the other stream", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def template(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with fork_template(["colorsys"], tmp_path / "template.log") as environment:
        yield environment


def start(template: Mapping[str, Any], script: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """As Ray's `setup_worker.py` does: a shell that becomes the executable."""
    variables = {**os.environ, **template["env_vars"], "SEEN": str(script.parent), "VARIABLE": "of this worker"}
    command = ["bash", "-c", " ".join(["exec", template["py_executable"], "-u", str(script), *arguments])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=variables, text=True, **pipes, **options)  # type: ignore[call-overload,no-any-return]


def gone(process: int, timeout: float = 10) -> bool:
    """Whether a process ends within so many seconds."""
    try:
        psutil.Process(process).wait(timeout)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("code", [0, 7])
def test_a_worker_is_a_fork_with_what_its_client_was_given(
    template: dict[str, Any], script: Path, tmp_path: Path, code: int
) -> None:
    worker = start(template, script, str(code), "more", cwd=tmp_path)
    out, error = worker.communicate(timeout=60)
    said = json.loads(out)
    assert worker.returncode == code and error == "to the other stream\n"
    assert (
        said["argv"] == [str(code), "more"] and said["variable"] == "of this worker" and said["folder"] == str(tmp_path)
    )
    assert said["imported"] and said["name"] == "__main__" and said["leader"] == said["process"] != worker.pid


def test_workers_do_not_share_their_random_numbers(template: dict[str, Any], script: Path) -> None:
    workers = [start(template, script, "0") for _ in range(2)]
    first, second = (json.loads(worker.communicate(timeout=60)[0]) for worker in workers)
    assert first["parent"] == second["parent"] and first["drawn"] != second["drawn"]


def test_a_worker_ends_with_its_client(template: dict[str, Any], script: Path) -> None:
    """The client is the process that Ray started, and kills."""
    worker = start(template, script, "0", "wait")
    assert worker.stdout
    process = json.loads(worker.stdout.readline())["process"]
    worker.send_signal(signal.SIGKILL)
    assert gone(process)


def test_a_client_ends_with_its_worker(template: dict[str, Any], script: Path) -> None:
    worker = start(template, script, "0", "wait")
    assert worker.stdout
    os.kill(json.loads(worker.stdout.readline())["process"], signal.SIGKILL)
    assert worker.wait(timeout=10) == 256 - signal.SIGKILL


def test_without_its_template_a_worker_goes_on_and_the_next_starts_plainly(script: Path) -> None:
    with fork_template(["colorsys"], script.with_suffix(".log")) as environment:
        worker = start(environment, script, "3", "wait")
        assert worker.stdout
        said = json.loads(worker.stdout.readline())
        os.kill(said["parent"], signal.SIGKILL)
        assert gone(said["parent"]) and psutil.pid_exists(said["process"])
        plain = start(environment, script, "5")
        out, error = plain.communicate(timeout=60)
        assert plain.returncode == 5 and not json.loads(out)["imported"]
        assert "this worker imports everything itself" in error
        worker.kill()
    assert gone(said["process"])


def test_a_template_with_a_thread_forks_nobody(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork has one thread: a lock that another one held stays locked in it for ever."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with fork_template(["threaded"], tmp_path / "template.log") as environment:
        time.sleep(0.5)
        worker = start(environment, script, "0")
        out, error = worker.communicate(timeout=60)
    assert worker.returncode == 0 and "this worker imports everything itself" in error
    assert json.loads(out)["process"] == worker.pid


@pytest.mark.slow
def test_what_the_template_imports_starts_no_thread_and_leaves_ray_to_the_workers() -> None:
    """`Template.fork` would refuse, and every run would start slowly without an error."""
    look = "import os, sys; print(len(os.listdir('/proc/self/task')), 'ray' in sys.modules, 'verl' in sys.modules)"
    code = "import importlib\nfor name in " + repr(TRAINER + SERVER) + ": importlib.import_module(name)\n" + look
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.split()[-3:] == ["1", "False", "False"], done.stderr[-2000:]


@pytest.mark.parametrize(
    ("cpu", "address", "variable", "forked"),
    [(True, None, "", True), (False, None, "", False), (True, "10.0.0.1:6379", "", False), (True, None, "auto", False)],
)
def test_only_a_run_on_the_cpus_of_this_machine_has_a_template(
    cpu: bool, address: str | None, variable: str, forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    engine = {"rollout": {"name": "sglang"}}
    verl = {"actor_rollout_ref": engine, "ray_kwargs": {"ray_init": {"address": address}}}
    with forked_workers(cpu, verl, tmp_path / "template.log") as part:
        assert bool(part) == forked
