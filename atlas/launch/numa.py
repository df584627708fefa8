"""Keep a rank on the cores next to its GPU, on machines whose memory is in several parts (NUMA nodes)."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from atlas.system.process_control.cores import RANKS_ON_CORES

logger = logging.getLogger(__name__)

SYS = Path("/sys")


def stay_near_gpu(root: Path = SYS) -> None:
    """Use the cores that the system lists for this rank's GPU, if it is one of several ranks on a machine's GPUs.

    Does nothing if the system does not tell (not Linux, one NUMA node, a virtual machine), or if a user or a batch
    system has chosen the cores, since they know better.
    """
    rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if sys.platform != "linux" or ranks == 1:
        return
    allowed = os.sched_getaffinity(0)
    if allowed != _listed(root / "devices/system/cpu/online"):
        return
    addresses = [_address(gpu) for gpu in range(ranks)]
    near = [_near(root, address) if address else set() for address in addresses]
    mine = near[rank] & allowed
    if not mine or mine == allowed:
        return
    for thread in os.listdir("/proc/self/task"):  # the existing threads; later ones inherit it
        with suppress(OSError):  # the thread has ended meanwhile
            os.sched_setaffinity(int(thread), mine)
    os.environ[RANKS_ON_CORES] = str(sum(cores == near[rank] for cores in near))
    logger.info("Stays on the %d cores next to GPU %d (%s)", len(mine), rank, addresses[rank])


def _address(gpu: int) -> str | None:
    """The PCI address of a GPU by torch's number, such as 0000:1b:00.0; None if the driver does not tell."""
    import torch

    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(gpu).uuid}")
            text = pynvml.nvmlDeviceGetPciInfo(handle).busId
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:  # some types are made at run time, some are torch's; or the package is missing
        logger.debug("The PCI address of GPU %d is not known: %s", gpu, error)
        return None
    address = text.decode() if isinstance(text, bytes) else str(text)
    return address.lower()[-len("0000:00:00.0") :]  # NVML writes a domain with eight digits, Linux with four


def _near(root: Path, address: str) -> set[int]:
    """The cores next to a device; none if it has no NUMA node."""
    device = root / "bus/pci/devices" / address
    try:
        node = int((device / "numa_node").read_text())
    except (OSError, ValueError):
        return set()
    return _listed(device / "local_cpulist") if node >= 0 else set()


def _listed(file: Path) -> set[int]:
    """The numbers in one of the kernel's lists, such as 0-3,8-11; none if there is no such file."""
    cores: set[int] = set()
    with suppress(OSError, ValueError):
        for part in file.read_text().strip().split(","):
            first, _, last = part.partition("-")
            cores |= set(range(int(first), int(last or first) + 1))
    return cores
