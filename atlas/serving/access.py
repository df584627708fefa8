"""Who may use a server: its address, the key, and how much one client may take."""

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
    """host, port: where a server listens, port 0 for a free one. key: that clients must say; None for no key."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether it can be reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def allows(self, key: str | bytes | None) -> bool:
        """Whether this is the key, in a time that does not depend on how much of it is right."""
        if self.key is None:
            return True
        said = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key or b""
        return hmac.compare_digest(said, self.key.encode())

    def warn(self) -> None:
        """Say it where anybody who reaches the machine may use the server."""
        if not self.loopback and self.key is None:
            logger.warning(
                "%s is not this machine alone, and there is no key: whoever reaches port %d can use the policy. Give "
                "--api-key-file, or leave out --host and come through a tunnel or a proxy.",
                self.host,
                self.port,
            )


@dataclass(frozen=True)
class Limits:
    """What clients may take of a server."""

    sessions: int = 100
    message_bytes: int = 16 * MEBIBYTE
    answer_seconds: float = 60.0  # for a request, and for taking its answer
    idle_seconds: float = 600.0  # without a request, after which a session is closed


@dataclass(frozen=True)
class Listening:
    """A server that listens. port: the one it has. stop: ends it, and waits until its connections are closed."""

    port: int
    stop: Callable[[], Awaitable[None]]


def refused_address(access: Access, error: OSError) -> InputError:
    """What is wrong with an address that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return InputError(
            f"Port {access.port} of {access.host} is in use; give another --port, or --port 0 for one that is free."
        )
    return InputError(f"--host {access.host} --port {access.port} cannot be listened on: {error.strerror or error}.")


def read_key(file: Path) -> str:
    """The key in a file: its one line. Raises InputError."""
    try:
        text = file.read_text(encoding="ascii")
        mode = file.stat().st_mode
    except OSError as error:
        raise InputError(f"--api-key-file {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"--api-key-file {file} is no text of ASCII letters; a key is one line of them.") from None
    key = text.strip()
    if len(key) < _SHORTEST_KEY or not key.isprintable() or " " in key:
        raise InputError(
            f"--api-key-file {file} should hold one line of at least {_SHORTEST_KEY} letters and digits; make one with "
            f"`openssl rand -hex 32 > {file}`."
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by other users of this machine: chmod 600 %s", file, file)
    return key
