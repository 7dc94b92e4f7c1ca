"""The listening sockets of a run's processes against the table of docs/security.md.

    for complaint in complaints(processes_of(run.pid), several=False): ...

A socket that no row names, or that listens on more than its row says, is a complaint.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

TABLE = Path(__file__).parent.parent / "docs" / "security.md"
LOOPBACK, NETWORK = "loopback", "network"
PROXY = r"vision_rl\.rollout\.proxy_server"


@dataclass(frozen=True)
class Listening:
    """A listening TCP socket. command: the process' title and command line."""

    pid: int
    command: str
    address: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it; an IPv4 address may be written as an IPv6 one (Ray's GCS does)."""
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True)
class Row:
    """A row of the table: the processes whose command a pattern finds, and where they may listen."""

    name: str
    pattern: str
    one_machine: str
    several: str


def processes_of(pid: int) -> list[int]:
    """A process and all that descend from it. Ray's daemons are children of the process that started Ray."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def listening_sockets(pids: Iterable[int]) -> list[Listening]:
    """The listening TCP sockets of processes; those that end meanwhile, or that are not ours, have none."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            command = " ".join([process.name(), *process.cmdline()])
            connections = process.net_connections(kind="tcp")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found += [
            Listening(pid, command, one.laddr.ip, one.laddr.port)
            for one in connections
            if one.status == psutil.CONN_LISTEN
        ]
    return found


def table(text: str | None = None) -> list[Row]:
    """The rows under the heading "Ports" of docs/security.md; the pattern stands in backquotes in the second column."""
    text = TABLE.read_text(encoding="utf-8") if text is None else text
    section = re.split(r"^## ", text.split("## Ports", 1)[1], flags=re.MULTILINE)[0]
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.replace(r"\|", "\0").strip().strip("|").split("|")]
        if len(cells) >= 4 and (pattern := re.fullmatch(r"`(.+)`", cells[1])):
            row = Row(cells[0], pattern[1].replace("\0", "|"), cells[2].split()[0], cells[3].split()[0])
            assert {row.one_machine, row.several} <= {LOOPBACK, NETWORK}, f"{cells[0]}: {cells[2:4]}"
            rows.append(row)
    assert rows, "docs/security.md has no table of ports"
    return rows


def complaints(
    pids: Iterable[int], *, several: bool = False, published: bool = False, rows: list[Row] | None = None
) -> list[str]:
    """What is wrong with the listening sockets of processes, one sentence each.

    several: nodes of a cluster. published: a run with `--llm-proxy --host`, whose main and proxy process may listen on
    the network. The trainer holds the proxy's socket as well, to hand it to the next proxy if that one dies: a socket of
    several processes is judged by the proxy's row.
    """
    rows = table() if rows is None else rows
    wrong = []
    sockets = listening_sockets(pids)
    proxys = {(one.address, one.port) for one in sockets if re.search(PROXY, one.command)}
    for one in sockets:
        row = next((row for row in rows if re.search(row.pattern, one.command)), None)
        where = f"{one.command[:120]} (process {one.pid}) listens on {one.address}:{one.port}"
        if row is None:
            wrong.append(f"{where}, which the table does not have")
            continue
        is_published = row.name.startswith(("store", "LLM proxy")) or (one.address, one.port) in proxys
        allowed = row.several if several or (published and is_published) else row.one_machine
        if allowed == LOOPBACK and not one.is_local:
            wrong.append(f"{where}, wider than the table says of the {row.name}")
    return wrong
