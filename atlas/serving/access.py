"""Access to a server: its address, the key, and how much one client may take."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import logging
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from atlas.errors import InputError

logger = logging.getLogger(__name__)

_SHORTEST_KEY = 16  # characters
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Access:
    """The address where a server listens (port 0: any free port), and the key that clients must send (None: no key)."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def allows(self, key: str | bytes | None) -> bool:
        """Whether this is the key. The time taken does not depend on how much of the key is right."""
        if self.key is None:
            return True
        sent = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key or b""
        return hmac.compare_digest(sent, self.key.encode())

    def warn(self) -> None:
        """Log a warning if anybody who can reach the machine may use the server."""
        if not self.loopback and self.key is None:
            logger.warning(
                "%s can be reached from other machines, and there is no key: anybody who reaches port %d can use the "
                "policy. Give --api-key-file, or leave out --host and connect through a tunnel or a proxy.",
                self.host,
                self.port,
            )


@dataclass(frozen=True)
class Limits:
    """Limits on what clients may ask of a server."""

    sessions: int = 100
    message_bytes: int = 16 * MEBIBYTE
    answer_seconds: float = 60.0  # to answer a request, and for the client to take the answer
    idle_seconds: float = 600.0  # a session without a request for this long is closed


@dataclass(frozen=True)
class Listening:
    """A server that listens on `port`. `stop` ends it and waits until its connections are closed."""

    port: int
    stop: Callable[[], Awaitable[None]]


def refused_address(access: Access, error: OSError) -> InputError:
    """The error for an address on which a server cannot listen."""
    if error.errno == errno.EADDRINUSE:
        return InputError(
            f"Port {access.port} of {access.host} is in use; give another --port, or --port 0 for any free port."
        )
    return InputError(f"Cannot listen on --host {access.host} --port {access.port}: {error.strerror or error}.")


def read_key(file: Path) -> str:
    """The key in a file: its one line. Raises InputError."""
    try:
        text = file.read_text(encoding="ascii")
        mode = file.stat().st_mode
    except OSError as error:
        raise InputError(f"--api-key-file {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"--api-key-file {file} is not ASCII text; a key is one line of ASCII characters.") from None
    key = text.strip()
    if len(key) < _SHORTEST_KEY or not key.isprintable() or " " in key:
        raise InputError(
            f"--api-key-file {file} should hold one line of at least {_SHORTEST_KEY} characters without spaces; make "
            f"one with `openssl rand -hex 32 > {file}`."
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("Other users of this machine can read %s: chmod 600 %s", file, file)
    return key
