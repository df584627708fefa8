"""Where the ranks of one machine meet: a store that listens on the loopback interface and nowhere else.

torchrun's own listens on all interfaces, whatever address it is given, and believes what strangers put into it.
"""

from __future__ import annotations

import socket

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "atlas-loopback"  # torchrun's --rdzv-backend
HOST = "127.0.0.1"


class _Meeting(RendezvousHandler):
    """A rendezvous of a single launcher, which has nobody to wait for."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._store: TCPStore | None = None

    @property
    def use_agent_store(self) -> bool:
        return True  # the ranks use this store, and make none of their own

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        if self._store is None:
            listening = socket.create_server((HOST, 0))
            port = listening.getsockname()[1]
            # The store owns the socket from here on.
            self._store = TCPStore(
                HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
            )
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(HOST, self._store.port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._store = None
        return True


def _meeting(parameters: RendezvousParameters) -> RendezvousHandler:
    return _Meeting(parameters.run_id)


def loopback_options() -> list[str]:
    """torchrun's options with which its ranks meet here."""
    rendezvous_handler_registry.register(BACKEND, _meeting)
    return ["--rdzv-backend", BACKEND, "--rdzv-endpoint", f"{HOST}:0", "--rdzv-id", "atlas", "--local-addr", HOST]
