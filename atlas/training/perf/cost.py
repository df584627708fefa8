"""The cost of a training sample in arithmetic, and which share of the GPUs' peak the training reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from atlas.data.sampling.chunks import ChunkDataset
from atlas.policies.base import CountsTokens, Policy
from atlas.policies.summary import training_flops
from atlas.system.gpu_facts import peak_of
from atlas.training.parallel.block_setup import plain_copy
from atlas.types import Batch


@dataclass(frozen=True)
class SampleCost:
    """The floating-point operations of a training step per sample, and its number of tokens of each kind."""

    flops: float
    tokens: Mapping[str, int]


def example_batch(data: ChunkDataset, size: int, device: torch.device | str) -> Batch:
    """A batch of `size` samples in the dataset's shapes, on `device`: its first sample repeated, with different keys,
    and with all instructions in turn, the longest first. Nothing in it is padded."""
    sample = data[(0, 0)].to(device)
    instructions = sorted(data.instructions(), key=len, reverse=True)
    assert sample.actions is not None and sample.action_is_pad is not None and sample.key is not None

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.expand(size, *tensor.shape[1:]).contiguous()

    return replace(
        sample,
        images=None if sample.images is None else repeat(sample.images),
        proprio=repeat(sample.proprio),
        instruction=[instructions[i % len(instructions)] for i in range(size)],
        source=repeat(sample.source),
        actions=repeat(sample.actions),
        action_is_pad=torch.zeros(size, data.horizon, dtype=torch.bool, device=device),
        key=sample.key + torch.arange(size, device=device),
        features=None if sample.features is None else repeat(sample.features),
    )


def sample_cost(policy: Policy, data: ChunkDataset, batch_size: int) -> SampleCost:
    """Counted by torch while an empty copy of the policy goes forward and backward through a batch, and divided by the
    batch's size: an instruction is encoded once per batch, however many samples have it.

    The operations are the model's, as for the utilisation of Chowdhery et al. (PaLM, 2022, appendix B): recomputing
    activations is not counted. A multiplication and an addition count as two.
    """
    counted = plain_copy(policy, "meta").train()
    batch = example_batch(data, batch_size, "meta")
    flops = training_flops(counted, batch)
    return SampleCost(flops / batch_size, counted.count_tokens(batch) if isinstance(counted, CountsTokens) else {})


class Utilisation:
    """`perf/mfu`: the share of the GPUs' peak that goes into the model's own operations."""

    def __init__(self, flops_per_sample: float, peak: float) -> None:
        """peak: FLOP/s of all processes' GPUs together."""
        self._flops, self._peak = flops_per_sample, peak

    @classmethod
    def on(cls, device: torch.device, processes: int, cost: SampleCost, bf16: bool, tf32: bool) -> Utilisation | None:
        """Return the utilisation on `processes` GPUs like this one; None if its peak is unknown, and on CPUs.

        bf16, tf32: whether the matrix products are computed in these.
        """
        peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        return cls(cost.flops, processes * peak.at(bf16, tf32)) if peak is not None else None

    def metrics(self, samples_per_second: float) -> dict[str, float]:
        """`perf/mfu`, from 0 to 1, at the given rate of all processes together."""
        return {"perf/mfu": self._flops * samples_per_second / self._peak}
