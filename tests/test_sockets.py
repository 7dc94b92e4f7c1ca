"""The check of listening sockets on processes of its own, and on store and proxy as they run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scripts.engine_stack import running_stack
from tests.sockets import LOOPBACK, NETWORK, Listening, Row, complaints, listening_sockets, processes_of, table
from vision_rl.platform.rendezvous import RENDEZVOUS

LISTEN = """
import socket, sys
sockets = [socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)]
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def listener(host: str) -> Iterator[int]:
    """A process that listens on one port of an address; yields its id."""
    command = [sys.executable, "-c", LISTEN, host, "a-process-of-this-test"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(10)


@pytest.mark.parametrize(
    ("host", "one_machine", "wrong"),
    [
        ("127.0.0.1", LOOPBACK, ""),
        ("127.0.0.1", NETWORK, ""),
        ("0.0.0.0", NETWORK, ""),
        ("0.0.0.0", LOOPBACK, "wider than the table says of the listener"),
        ("::", LOOPBACK, "wider than the table says of the listener"),
        ("::1", LOOPBACK, ""),
    ],
)
def test_a_socket_may_be_as_wide_as_its_row(host: str, one_machine: str, wrong: str) -> None:
    rows = [Row("listener", "a-process-of-this-test", one_machine, NETWORK)]
    with listener(host) as pid:
        said = complaints([pid], rows=rows)
        assert len(said) == bool(wrong) and wrong in "".join(said)
        assert not complaints([pid], rows=rows, several=True)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.0.1.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("::", False),
        ("10.0.0.1", False),
    ],
)
def test_what_counts_as_this_machine(address: str, local: bool) -> None:
    assert Listening(1, "x", address, 1).is_local is local


def test_a_socket_without_a_row_is_a_complaint() -> None:
    with listener("127.0.0.1") as pid:
        [said] = complaints([pid], rows=[Row("other", "another-process", NETWORK, NETWORK)])
        assert "which the table does not have" in said
        assert complaints([pid]) == [said]  # the real table has none either


def test_children_are_looked_at_too() -> None:
    with listener("127.0.0.1") as pid:
        assert pid in processes_of(psutil.Process().pid)
    assert listening_sockets([pid]) == []  # it is gone


def test_the_table_can_be_read() -> None:
    names = [row.name for row in table()]
    assert len(set(names)) == len(names) >= 8
    with pytest.raises(AssertionError, match="no table"):
        table("## Ports\n\nnothing\n")


@pytest.mark.slow
def test_the_proxy_listens_where_the_table_says(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        assert stack.proxy.process is not None
        pids = [stack.proxy.process.pid]
        assert [one.port for one in listening_sockets(pids)] == [stack.proxy.port]
        assert complaints(pids) == []


RANK = """
import os, sys
from vision_rl.platform.rendezvous import workers_meet_by_file
from verl.utils.distributed import initialize_global_process_group_ray
workers_meet_by_file()
initialize_global_process_group_ray(backend="gloo")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("by_file", [True, False])
@pytest.mark.slow
def test_ranks_of_one_machine_meet_without_a_socket_on_the_network(by_file: bool, tmp_path: Path) -> None:
    """torch's TCPStore listens on every interface even where it is given 127.0.0.1: the control shows it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    variables |= {RENDEZVOUS: str(tmp_path)} if by_file else {}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **variables, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None and rank.stdout.readline() == b"ready\n"
        wide = [one for one in listening_sockets(rank.pid for rank in ranks) if not one.is_local]
        assert by_file == (not wide)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(10)
