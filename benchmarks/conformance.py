"""What `conformance.sh` runs: as a plugin of pytest our classes under Agent Lightning's names, as a program the comparison."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

REASONS: dict[str, str] = {
    "cors": "no page of another origin may read the store; its dashboard is its own",
    "mp_server|launcher_args|port_conflict": "the store is served by a thread of the trainer, whose port was looked at before",
    "metrics_backend": "there is no tracker: a run's figures are in its metrics.jsonl",
    "eviction|memory_threshold|safe_threshold": "the trainer forgets the rollouts that it has read; nothing is evicted",
    "records_spans_for_none_result": "an agent that emits no reward has failed; upstream counts it as a success",
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
