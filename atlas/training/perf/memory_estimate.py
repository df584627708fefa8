"""Running out of GPU memory, explained in words that help."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from atlas.config import Config
from atlas.errors import first_line
from atlas.training.perf.cost import SampleCost

_GIB = 2**30
# How CUDA, its libraries and NCCL report it, when torch's allocator was not involved.
_ELSEWHERE = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
)
_MUCH = 0.1  # of a GPU's memory: worth mentioning


class OutOfMemory(Exception):
    """A GPU's memory is too small for this training. The message says for what, and what to reduce."""

    exit_code = 1


@dataclass(frozen=True)
class GPUMemory:
    """The memory of one GPU, in bytes: allocated by torch's tensors in this process, reserved by torch for them, and
    free, that is, used by no program."""

    name: str
    total: int
    allocated: int
    reserved: int
    free: int

    @classmethod
    def of(cls, device: torch.device) -> GPUMemory | None:
        """The current state; None for a CPU."""
        if device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return cls(torch.cuda.get_device_name(device), total, allocated, reserved, free)

    @property
    def elsewhere(self) -> int:
        """The memory of other programs, and of CUDA itself."""
        return max(0, self.total - self.free - self.reserved)

    def describe(self) -> str:
        """Say where the memory is, in a sentence."""
        unused = self.reserved - self.allocated
        return (
            f"Of the {self.total / _GIB:.1f} GiB of {self.name}, {self.allocated / _GIB:.1f} GiB are allocated, "
            f"{unused / _GIB:.1f} GiB more are reserved by torch, {self.elsewhere / _GIB:.1f} GiB belong to other "
            f"programs and to CUDA itself, and {self.free / _GIB:.1f} GiB are free."
        )


@contextmanager
def out_of_memory_explained(
    config: Config, views: int, device: torch.device, cost: SampleCost | None = None
) -> Iterator[None]:
    """Around training: if memory runs out, OutOfMemory is raised, with a message for the user.

    views: images per sample. device: this process's.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(explain(error, config, views, GPUMemory.of(device), cost)) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory has run out, in torch's allocator or in a library that has its own memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _ELSEWHERE)


def explain(
    error: BaseException, config: Config, views: int, memory: GPUMemory | None, cost: SampleCost | None = None
) -> str:
    """Say what was too large, where the memory is, and what to reduce."""
    size = config.data.image_size
    batch = f"data.batch_size is {config.data.batch_size}: samples of {views} views of {size} x {size} pixels"
    if cost is not None:
        counts = " and ".join(f"{count} of {kind}" for kind, count in cost.tokens.items())
        batch += f", {counts.replace(' of', ' tokens of', 1)} each" if counts else ""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))  # torch's message goes on at length
    lines = [f"Out of GPU memory: {f'{asked[1]} more were asked for' if asked else first_line(error)}.", f"{batch}."]
    if memory is not None:
        lines.append(memory.describe())
    lines.append("What helps, the cheapest first:")
    return "\n".join([*lines, *(f"- {advice}" for advice in _advice(config, memory))])


def _allocator_advice(version: str, environment: Mapping[str, str]) -> str | None:
    """Say what may help against fragmented memory; None if a user has set it already, by either name.

    Before 2.9, torch only knows the old name; up to 2.11 it warns about that one but may ignore the new one.
    """
    new, old = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
    major, minor = (int(part) for part in version.split(".")[:2])
    name = new if new in environment or (old not in environment and (major, minor) >= (2, 12)) else old
    is_set = environment.get(name, "")
    if "expandable_segments:True" in is_set:
        return None
    value = f"{is_set},expandable_segments:True" if is_set else "expandable_segments:True"
    return f"{name}={value} in the environment, since much is reserved in fragments"


def _advice(config: Config, memory: GPUMemory | None) -> Iterator[str]:
    training, distributed = config.training, config.distributed
    if memory is not None and memory.elsewhere > _MUCH * memory.total:
        yield f"end the other programs on this GPU, which use up to {memory.elsewhere / _GIB:.1f} GiB (nvidia-smi)"
    if memory is not None and memory.reserved - memory.allocated > _MUCH * memory.total:
        advice = _allocator_advice(torch.__version__, os.environ)
        if advice is not None:
            yield advice
    if isinstance(config.data.batch_size, int) and config.data.batch_size > 1:
        factor = 2 if config.data.batch_size % 2 == 0 else config.data.batch_size
        smaller, parts = config.data.batch_size // factor, training.gradient_accumulation_steps * factor
        yield (
            f"data.batch_size={smaller} with training.gradient_accumulation_steps={parts}: the same training; "
            "data.batch_size=auto looks for the largest that fits"
        )
    if training.precision == "fp32":
        yield "training.precision=bf16, if the GPU has it"
    if not training.activation_checkpointing:
        yield "training.activation_checkpointing=true: the same training, at the cost of a second forward pass"
    if distributed.strategy == "ddp":
        yield "distributed.strategy=fsdp, if there are several GPUs"
    yield from config.model.memory_advice()
    yield "a smaller data.image_size, fewer data.cameras, or a smaller model"
