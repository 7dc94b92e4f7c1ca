"""Notes every name that a Python process looks up: put this folder first in PYTHONPATH, and a file into NAMES_FILE."""

from __future__ import annotations

import os
import socket
from typing import Any

_getaddrinfo = socket.getaddrinfo


def _noted(host: Any, *arguments: Any, **options: Any) -> Any:
    with open(os.environ["NAMES_FILE"], "a", encoding="utf-8") as file:
        file.write(f"{host.decode() if isinstance(host, bytes) else host}\n")
    return _getaddrinfo(host, *arguments, **options)


if "NAMES_FILE" in os.environ:
    socket.getaddrinfo = _noted
