#!/usr/bin/env bash
# Agent Lightning 0.3.0's own tests of store and runner, on this project's classes: what differs, and why.
#
#     benchmarks/conformance.sh path/to/agent-lightning      # a checkout of the tag v0.3.0; nothing is fetched
#
# Runs its suites twice, as they are and with our classes in place of its own, and prints each test that passes only the first
# time. Ends with 1 if one of them has no reason in benchmarks/conformance.py. Needs pytest-asyncio beside the project.
set -euo pipefail
checkout=$(cd "${1:?give the path of a checkout of Agent Lightning 0.3.0}" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -d "$checkout/tests/store" ] || { echo "$checkout has no tests/store; give a checkout of microsoft/agent-lightning, tag v0.3.0" >&2; exit 2; }
"$python" -c 'import pytest_asyncio' 2>/dev/null || { echo "pytest-asyncio is missing: $python -m uv pip install pytest-asyncio" >&2; exit 2; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Run from elsewhere: the checkout's own agentlightning folder must not be imported in place of the installed 0.3.0.
cp -r "$checkout/tests" "$out/tests"
cd "$out"
for classes in theirs ours; do
  CONFORMANCE="$classes" CONFORMANCE_OUT="$out/$classes.json" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" -m pytest -q -p benchmarks.conformance -p no:cacheprovider --continue-on-collection-errors -o asyncio_default_fixture_loop_scope=function --timeout 120 \
    -k 'not mongo and not Mongo' tests/store tests/runner >"$out/$classes.log" 2>&1 || true
  tail -n 1 "$out/$classes.log"
done
PYTHONPATH="$root" "$python" "$root/benchmarks/conformance.py" "$out/theirs.json" "$out/ours.json"
