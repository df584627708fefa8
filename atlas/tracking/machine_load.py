"""`system/*`: the machine's load during training, sampled at intervals on a separate thread."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from atlas.system.safe_text import cause

logger = logging.getLogger(__name__)


class SystemMonitor:
    """Samples CPU, memory and GPUs at an interval and logs them at the trainer's step, until it is stopped."""

    def __init__(self, log: Callable[[dict[str, float]], None], interval_seconds: float) -> None:
        import psutil

        self._log = log
        self._interval = interval_seconds
        self._stopped = threading.Event()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the measurement
        psutil.cpu_percent()
        self._thread = threading.Thread(target=self._work, name="atlas-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Log a last sample, so that a short run has one, and end."""
        self._stopped.set()
        self._thread.join(1.0)

    def _work(self) -> None:
        try:
            while not self._stopped.wait(self._interval):
                self._log(self.sample())
            self._log(self.sample())
        except Exception as error:  # never a reason to end a run
            logger.warning("system/* is switched off: %s", cause(error))

    def sample(self) -> dict[str, float]:
        """The machine's load since the last sample.

        cpu_percent: of all cores. process_cpu_percent: this process, where 100 is one core. Memory in GiB (2^30 bytes).
        """
        import psutil

        memory = psutil.virtual_memory()
        return {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_percent": memory.percent,
            "system/memory_used_gib": (memory.total - memory.available) / 2**30,
            "system/process_cpu_percent": self._process.cpu_percent(),
            "system/process_memory_gib": self._process.memory_info().rss / 2**30,
        } | gpu_sample()


def gpu_sample() -> dict[str, float]:
    """Load, memory, temperature (°C) and power (W) of every visible GPU, as far as the driver tells; {} without a GPU.

    Uses NVIDIA's management library, which takes no GPU memory, unlike torch's own calls for other devices.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    queries: dict[str, Callable[[int], float]] = {
        "percent": lambda gpu: float(torch.cuda.utilization(gpu)),
        "memory_gib": lambda gpu: torch.cuda.device_memory_used(gpu) / 2**30,
        "temperature": lambda gpu: float(torch.cuda.temperature(gpu)),
        "power": lambda gpu: torch.cuda.power_draw(gpu) / 1000,
    }
    values: dict[str, float] = {}
    for gpu in range(torch.cuda.device_count()):
        for name, query in queries.items():
            # A part of a GPU has no power reading of its own, and some cards no temperature: only that number is left
            # out. The errors are the driver library's (of types made at run time), or torch's if it is missing.
            with suppress(Exception):
                values[f"system/gpu{gpu}_{name}"] = query(gpu)
    return values
