"""The peak speed of known GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense matrix products, FLOP/s, from NVIDIA's data sheets and white papers (without sparsity)."""

    bf16: float
    tf32: float
    fp32: float

    def at(self, bf16: bool, tf32: bool) -> float:
        """The peak of the fastest kind that is in use."""
        return self.bf16 if bf16 else self.tf32 if tf32 else self.fp32


_H100_SXM = Peak(989e12, 494e12, 67e12)
_H100_NVL = Peak(835e12, 417e12, 60e12)

GPU_PEAKS: Mapping[str, Peak] = {
    "a100": Peak(312e12, 156e12, 19.5e12),
    "l40s": Peak(362e12, 183e12, 91.6e12),
    "rtx4090": Peak(165e12, 82.6e12, 82.6e12),
    "h100": _H100_SXM,
    "h100-pcie": Peak(756e12, 378e12, 51e12),
    "h100-nvl": _H100_NVL,
    "h200": _H100_SXM,
    "h200-nvl": _H100_NVL,
    "gh200": _H100_SXM,
    "b200": Peak(2250e12, 1125e12, 75e12),
    "gb200": Peak(2500e12, 1250e12, 80e12),
}

# torch.cuda.get_device_name without "NVIDIA". A name with anything after these is another card, or a part of one.
_NAMES = {
    r"A100[- ](SXM4|SXM|PCIE|PCIe)[- ](40|80)GB|A100 80GB PCIe": "a100",
    r"L40S": "l40s",
    r"GeForce RTX 4090": "rtx4090",
    r"H100( SXM5)?( 80GB HBM3)?|H100 64GB HBM2|H100 96GB HBM3": "h100",
    r"H100 PCIe|H100 80GB HBM2e": "h100-pcie",
    r"H100 NVL": "h100-nvl",
    r"H200( 141GB HBM3e)?": "h200",
    r"H200 NVL": "h200-nvl",
    r"GH200 (480GB|120GB|144G HBM3e|96G HBM3)": "gh200",
    r"GB200( 192GB HBM3e)?": "gb200",
    r"B200( 180GB HBM3e| 192GB HBM3e)?": "b200",
}


def peak_of(device_name: str) -> Peak | None:
    """The peak of a GPU with this `torch.cuda.get_device_name`; None if it is not known."""
    name = device_name.removeprefix("NVIDIA").strip()
    for pattern, gpu in _NAMES.items():
        if re.fullmatch(pattern, name):
            return GPU_PEAKS[gpu]
    return None


def has_bf16() -> bool:
    """Whether the current GPU computes in bfloat16; torch also counts those that emulate it, slowly (V100, T4)."""
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)
