"""Where store and proxy listen, under which name other machines reach them, and what those must say."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vision_rl.errors import UserError
from vision_rl.rollout.http_auth import dashboard_key, is_loopback, new_token
from vision_rl.settings import TOKEN_VARIABLE

PROXY_PORT, STORE_PORT = 8080, 4747
_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Addresses:
    """Small enough to travel to Ray. proxy_port None: any free one; media_roots None: pictures from anywhere."""

    store_port: int
    host: str = "127.0.0.1"
    address: str = "127.0.0.1"  # of this machine, for its own processes and its network
    advertised: str = "127.0.0.1"  # for workers elsewhere; differs from `address` behind NAT
    proxy_port: int | None = None
    token: str | None = None
    media_roots: tuple[Path, ...] | None = None
    external_store: str | None = None

    @property
    def store_url(self) -> str:
        """Where this machine's processes find the store."""
        return self.external_store or f"http://{self.address}:{self.store_port}"

    @property
    def dashboard_url(self) -> str:
        """What a browser opens, from anywhere; with the key that allows to read, where there is a token."""
        store = self.external_store or f"http://{self.advertised}:{self.store_port}"
        return store + (f"/?key={dashboard_key(self.token)}" if self.token else "")


def private(store_port: int, external_store: str | None = None) -> Addresses:
    """Of a run that publishes nothing."""
    return Addresses(store_port, token=os.environ.get(TOKEN_VARIABLE), external_store=external_store)


def published(
    host: str,
    advertised: str | None,
    proxy_port: int | None,
    store_port: int | None,
    media_root: str,
    external_store: str | None = None,
) -> Addresses:
    """Of a run with --llm-proxy. Beyond the loopback interface a token is needed: VISION_RL_TOKEN, or a new one.

    Raises `UserError` for a port that is taken.
    """
    proxy_port, store_port = proxy_port or PROXY_PORT, store_port or STORE_PORT
    check_port(proxy_port, host, "--proxy-port")
    if external_store is None:
        check_port(store_port, host, "--store-port")
    address = outbound_address() if host in _WILDCARDS else host
    token = os.environ.get(TOKEN_VARIABLE) or (None if is_loopback(host) else new_token())
    roots = (Path(media_root),)
    return Addresses(store_port, host, address, advertised or address, proxy_port, token, roots, external_store)


def worker_lines(addresses: Addresses, tasks: Sequence[str]) -> list[str]:
    """What to type on another machine, ready to copy; shown once, because it holds the token."""
    named = " ".join(f"--task {task}" for task in tasks)
    assert addresses.proxy_port is not None
    any_machine = (
        "this machine (--host 0.0.0.0 opens it to others)" if is_loopback(addresses.advertised) else "any machine"
    )
    lines = [
        f"LLM proxy http://{addresses.advertised}:{addresses.proxy_port}/v1",
        f"dashboard, in a browser: {addresses.dashboard_url}",
        f"a worker, on {any_machine}:",
        f"  OPENAI_BASE_URL=http://{addresses.advertised}:{addresses.proxy_port}/v1 OPENAI_API_KEY={addresses.token or 'none'} "
        f"python worker.py {named}",
        f"Agent Lightning's runners, on {any_machine}, with this project installed:",
        f"  {TOKEN_VARIABLE}={addresses.token or ''} python train_agent.py --role runner {named} "
        f"--store {addresses.external_store or f'http://{addresses.advertised}:{addresses.store_port}'} --n-runners 8",
    ]
    return lines


def host_of(url: str) -> str:
    """The host of a store's URL. Raises `UserError` for what is not an http URL with a host and a port."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise UserError(f"{url} is not the address of a store; it looks like http://trainer:{STORE_PORT}")
    return parts.hostname


def free_port() -> int:
    """A port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int, host: str, flag: str) -> None:
    """Raise `UserError` if the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} cannot be used ({error.strerror}); free it or choose another with {flag}"
            ) from error


def outbound_address() -> str:
    """This machine's IPv4 address on the way out; no packet is sent. The loopback address without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
