#!/usr/bin/env bash
# Ray 2.60.0, Python 3.11 or 3.12, Linux: `runtime_env={"py_executable": ...}` may be a command with arguments, and the worker
# that registers need not be the process that Ray started. Here that process waits for a grandchild in a session of its own,
# and the grandchild is the worker. It computes, `ray.kill` ends it, and Ray notices when it is killed. Seen:
#   worker is not Ray's child and leads its own session (twice)
#   ray.kill ended it
#   Ray noticed its end: ActorDiedError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ray==2.60.0
cat > "$folder/stand_in.py" <<'PYTHON'
import subprocess
import sys

sys.exit(subprocess.run([sys.executable, *sys.argv[2:]], start_new_session=True).returncode & 255)
PYTHON
cat > "$folder/check.py" <<'PYTHON'
import os
import signal
import sys
import time

import ray

command = f"{sys.executable} {sys.argv[1]} one-more-argument"
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         runtime_env={"py_executable": command})


@ray.remote
class Worker:
    def who(self):
        return os.getpid(), os.getppid(), os.getsid(0)


def ends(process):
    for _ in range(100):
        if not os.path.exists(f"/proc/{process}"):
            return True
        time.sleep(0.1)
    return False


first, second = Worker.remote(), Worker.remote()
for actor in (first, second):
    process, parent, session = ray.get(actor.who.remote())
    stand_in = open(f"/proc/{parent}/cmdline").read()
    print("worker", "is not Ray's child" if "one-more-argument" in stand_in else "IS Ray's child",
          "and leads its own session" if session == process else "in Ray's session")
    assert "one-more-argument" in stand_in and session == process
process = ray.get(first.who.remote())[0]
ray.kill(first)
assert ends(process)
print("ray.kill ended it")
process = ray.get(second.who.remote())[0]
os.kill(process, signal.SIGKILL)
try:
    ray.get(second.who.remote(), timeout=30)
except ray.exceptions.ActorDiedError as error:
    print("Ray noticed its end:", type(error).__name__)
else:
    sys.exit("Ray did not notice")
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder/stand_in.py" 2>/dev/null
