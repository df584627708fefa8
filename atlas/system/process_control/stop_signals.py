"""Servers that run until somebody stops them."""

from __future__ import annotations

import asyncio
import signal


class StopSignals:
    """SIGINT and SIGTERM of this process, as an event of the running loop; made in the main thread."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop as if this signal had come; the first one counts."""
        if not self._stopped.done():
            self._stopped.set_result(number)

    async def wait(self) -> int:
        """The signal that came."""
        return await self._stopped
