"""The two parts of `conformance.sh`: a pytest plugin that puts our classes under Agent Lightning's names, and the comparison."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

REASONS: dict[str, str] = {
    "test_cors_": "no page of another origin may read the store: the server refuses `cors_allow_origins` by name",
    "mp_server|launcher_args|port_conflict": "the store is served by a thread of the trainer: the server refuses a launch mode "
    "and arguments for another launcher by name",
    "metrics_backend": "there is no tracker, which the store refuses by name: a run's figures are in its metrics.jsonl",
    "eviction|memory_threshold|safe_threshold": "nothing is evicted, and thresholds are refused by name: the trainer forgets the "
    "rollouts that it has read",
    "retry_on_400|unhealthy_health_probe": "a request is tried 8 times in 48 s, also while the store is silent: one that is "
    "away for half a minute costs no rollout (upstream: 4 times in 8 s, or once)",
    "healthcheck_marks_unresponsive_and|scan_debounce_blocks": "the tests move the wall clock on, which ages no attempt here",
    "span_does_not_reset_timeout": "a late span of an attempt that is over is kept, and is no sign of life",
    "none_result|span_list|hooks_triggered_in_order|returns_rollout_with_spans|iter_stops": "their agents emit no reward, so "
    "that their rollouts have failed; upstream counts them as successes",
    "bool_result": "True is the reward 1, without upstream's warning",
    "invalid_result_type": "another sentence for the same TypeError",
    "test_run_context_": "the runner brings its own tracer, in place of the one that the tests look at",
}
"""Of the tests that only pass with Agent Lightning's own classes: pattern of a test's name -> why that is meant so."""

_outcomes: dict[str, str] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before the suites' own conftest.py, which imports the classes by name."""
    if os.environ.get("CONFORMANCE") == "ours":
        put_in_place()


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        said = str(report.longrepr.reprcrash.message) if hasattr(report.longrepr, "reprcrash") else ""
        _outcomes[report.nodeid] = report.outcome + (": " + said.splitlines()[0][:150] if said else "")


def pytest_sessionfinish() -> None:
    Path(os.environ["CONFORMANCE_OUT"]).write_text(json.dumps(_outcomes))


def put_in_place() -> None:
    """Our classes under the names that the tests import, with the constructors that they call."""
    import agentlightning.runner
    import agentlightning.store.client_server
    import agentlightning.store.memory

    from vision_rl.rollout.runner import VisionRunner
    from vision_rl.rollout.store import VisionStore
    from vision_rl.rollout.store_server import VisionStoreClient, VisionStoreServer

    class Store(VisionStore):
        def __init__(self, *, scan_debounce_seconds: float = 10.0, thread_safe: bool = True, **others: Any) -> None:
            super().__init__(scan_seconds=scan_debounce_seconds, **others)

    class Server(VisionStoreServer):
        def __init__(
            self, store: Any, host: Any = None, port: Any = None, *, launcher_args: Any = None, **others: Any
        ) -> None:
            if launcher_args is not None:
                host, port = launcher_args.host, launcher_args.port
            super().__init__(store, host=host, port=port, **others)

    class Client(VisionStoreClient):
        def __init__(self, server_address: str, *, retry_delays: Any = None, health_retry_delays: Any = ()) -> None:
            super().__init__(server_address)
            if retry_delays is not None:
                self._retry_delays = tuple(retry_delays)
            self._health_retry_delays = tuple(health_retry_delays)

    class Runner(VisionRunner):
        def __init__(self, tracer: Any = None, **others: Any) -> None:
            super().__init__(**others)

        def __class_getitem__(cls, _task: Any) -> Any:
            return cls

    agentlightning.store.memory.InMemoryLightningStore = Store  # type: ignore[misc]
    agentlightning.store.client_server.LightningStoreServer = Server  # type: ignore[misc]
    agentlightning.store.client_server.LightningStoreClient = Client  # type: ignore[misc]
    agentlightning.runner.LitAgentRunner = Runner  # type: ignore[misc]


def compare(theirs: dict[str, str], ours: dict[str, str]) -> int:
    """Print the tests that pass with their classes only, by reason; 1 if one has none."""
    passed = [name for name, outcome in theirs.items() if outcome == "passed"]
    different = [name for name in passed if ours.get(name) != "passed"]
    print(
        f"{len(passed) - len(different)} of the {len(passed)} tests that pass with Agent Lightning's classes pass with ours"
    )
    unexplained = [name for name in different if not any(re.search(pattern, name) for pattern in REASONS)]
    for pattern, reason in REASONS.items():
        if names := [name for name in different if re.search(pattern, name)]:
            print(f"\n{reason} ({len(names)}):", *names, sep="\n  ")
    if unexplained:
        print("\nwithout a reason in benchmarks/conformance.py:")
    for name in unexplained:
        print(f"  {name}: {ours.get(name, 'did not run')}")
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(compare(*(json.loads(Path(path).read_text()) for path in sys.argv[1:3])))
