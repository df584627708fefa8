"""A connection to a websocket server, and what is wrong where there is none."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas.errors import InputError, first_line
from atlas.system.safe_text import printable

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


@dataclass(frozen=True)
class Peer:
    """The party expected at an address, in the words of messages."""

    name: str  # "policy server"
    key_setting: str  # where its key is given
    start: str  # the command that starts one
    protocol: str  # what it speaks
    largest_answer: int  # bytes


def import_websockets(what: str = "A policy server") -> None:
    """Raises InputError that says how to install what is missing."""
    try:
        import msgpack  # noqa: F401
        import websockets  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs {error.name}: pip install 'atlas-vla[serve]'") from None


def connect(url: str, peer: Peer, key: str | None, open_seconds: float, opened: ExitStack) -> ClientConnection:
    """A connection, which `opened` closes. Raises InputError where nobody answers, or somebody else."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
    from websockets.sync.client import connect as connect_websocket

    try:
        return opened.enter_context(
            connect_websocket(
                url,
                compression=None,
                max_size=peer.largest_answer,
                additional_headers={} if key is None else {"Authorization": f"Api-Key {key}"},
                open_timeout=open_seconds,
                close_timeout=1,
            )
        )
    except InvalidURI as error:
        raise InputError(f"'{url}' is no address of a {peer.name}: {first_line(error)}.") from None
    except InvalidStatus as error:
        said = printable((error.response.body or b"").decode("utf-8", "replace").strip()[:300])
        raise InputError(
            f"The {peer.name} at {url} does not let this client in: {said or error} ({peer.key_setting})"
        ) from None
    except (InvalidHandshake, TimeoutError) as error:
        raise InputError(
            f"What answers at {url} does not speak {peer.protocol} ({first_line(error)}); start one that does: "
            f"{peer.start}"
        ) from None
    except (OSError, EOFError, WebSocketException) as error:
        raise InputError(f"There is no {peer.name} at {url} ({first_line(error)}); start one: {peer.start}") from None
