"""`data.batch_size: auto`: the largest batch that a GPU can train with, found by trying."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch
from accelerate import Accelerator

from atlas.config import Config
from atlas.data.sampling.augment import Augmenter
from atlas.data.sampling.chunks import ChunkDataset
from atlas.errors import InputError
from atlas.policies.base import Policy
from atlas.training.average import WeightAverage
from atlas.training.optimizer import make_optimizer
from atlas.training.parallel.block_setup import plain_copy, set_up_blocks
from atlas.training.perf.cost import example_batch
from atlas.training.perf.memory_estimate import GPUMemory, OutOfMemory, explain, is_out_of_memory

logger = logging.getLogger(__name__)

_GRAIN = 8  # sizes that matrix units like; GPUs round others up
# The share of a GPU's memory left free for what the trial lacks, such as the exchange between GPUs and rendering.
_MARGIN = 0.1
_STEPS = 2  # the second one has the optimizer's state from the start


def check_batch_size(config: Config, gpu: bool) -> None:
    """Raises InputError if 'auto' cannot be resolved."""
    if config.data.batch_size != "auto":
        return
    if not gpu:
        raise InputError(
            "data.batch_size is 'auto', which is found by filling a GPU's memory, but training runs on CPUs. Their "
            "memory is shared by all programs, and the system ends a program that fills it; give a number, such as 64."
        )
    if config.distributed.strategy == "fsdp":
        raise InputError(
            "data.batch_size is 'auto', but distributed.strategy is 'fsdp'. The size is tried on each GPU separately, "
            "where the policy is whole; give a number, or use the strategy 'ddp'."
        )


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """The largest batch size up to `most` that fits, among powers of two below 8 and multiples of both 8 and an eighth
    of the power of two below them; 0 if not even 1 fits.

    Tries doubling, then bisection: nothing larger than a size that does not fit is ever tried.
    """
    best, size = 0, 1
    while size <= most and fits(size):
        best, size = size, 2 * size
    grain = max(_GRAIN, best // 8)
    if best < grain:
        return best
    start, low, high = best, 0, (min(2 * best - 1, most) - best) // grain
    while low < high:  # start + low * grain fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(start + middle * grain) else (low, middle - 1)
    return start + low * grain


def find_batch_size(config: Config, policy: Policy, data: ChunkDataset, accelerator: Accelerator) -> int:
    """The largest number of samples per process that all processes' GPUs can train with; the same on every process.

    Every process must call it, before its policy is on the GPU. Policy and random numbers are not changed, and no
    memory stays allocated. Compiled blocks are tried uncompiled, which takes more. Raises OutOfMemory if not even one
    sample fits.
    """
    settings, processes = config.training, accelerator.num_processes
    most = max(1, len(data) // (processes * settings.gradient_accumulation_steps))
    logger.info("Looking for the largest batch that fits (data.batch_size: auto)")
    found, problem = 0, None
    with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
        try:
            trial = Trial(config, policy, data, accelerator)
            found = largest_batch(trial.fits, most)
            problem = trial.problem
            del trial
        except RuntimeError as error:  # not even the weights fit
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # its frames hold tensors
    _tidy(accelerator.device)
    _forget_peak(accelerator.device)  # so that the logged peak is training's
    smallest = int(_minimum(found, accelerator))
    memory = GPUMemory.of(accelerator.device)
    if smallest == 0:
        where = problem or RuntimeError("there is not enough on another process's GPU")
        one = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 1})})
        raise OutOfMemory(explain(where, one, policy.processor.views, memory))
    logger.info(
        "data.batch_size: auto is %d samples per process%s; %.1f steps are an epoch",
        smallest,
        ", as many as there are" if smallest > most - _GRAIN else "",
        len(data) / (smallest * processes * settings.gradient_accumulation_steps),
    )
    return smallest


class Trial:
    """Training steps of a copy of the policy, with everything that takes memory in them, including the next batch."""

    def __init__(self, config: Config, policy: Policy, data: ChunkDataset, accelerator: Accelerator) -> None:
        settings = config.training
        self._data, self._accelerator = data, accelerator
        self._policy = plain_copy(policy, accelerator.device).train()
        set_up_blocks(self._policy, settings.activation_checkpointing, compiled=False)
        self._optimizer = make_optimizer(self._policy, settings)
        self._average = WeightAverage(self._policy, settings.ema_decay) if settings.ema_decay else None
        self._augment = Augmenter(config.data.augment, config.data.history.steps)
        self._max_grad_norm = settings.max_grad_norm
        # With several parts, and if gradients are exchanged, the next forward runs while the last gradients exist.
        self._parts = 2 if settings.gradient_accumulation_steps > 1 or accelerator.num_processes > 1 else 1
        self.problem: BaseException | None = None  # why the last size that did not fit failed

    def fits(self, size: int) -> bool:
        """Whether steps with batches of `size` samples leave a tenth of the GPU's memory free."""
        device = self._accelerator.device
        _forget_peak(device)
        try:
            self.train(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.problem = error.with_traceback(None)  # its frames hold tensors
            fits = False
        else:
            fits = device.type != "cuda" or _leaves_margin(device)
        self._optimizer.zero_grad(set_to_none=True)
        _tidy(device)
        logger.debug("Batches of %d samples %s", size, "fit" if fits else "do not fit")
        return fits

    def train(self, size: int) -> None:
        """Some steps with batches of `size` samples."""
        ahead = example_batch(self._data, size, self._accelerator.device)
        for step in range(_STEPS):
            for _ in range(self._parts):
                batch = example_batch(self._data, size, self._accelerator.device)
                if batch.images is not None:
                    batch.images = self._augment(batch.unit_images(), batch)
                with self._accelerator.autocast():
                    loss = self._policy(batch).loss
                loss.backward()
                del batch, loss
            torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            if self._average is not None:
                self._average.update(self._policy, step)
        del ahead


def _leaves_margin(device: torch.device) -> bool:
    memory = GPUMemory.of(device)
    assert memory is not None
    return torch.cuda.max_memory_reserved(device) + memory.elsewhere <= (1 - _MARGIN) * memory.total


def _minimum(number: int, accelerator: Accelerator) -> torch.Tensor:
    """The smallest over all processes."""
    return accelerator.gather(torch.tensor([number], device=accelerator.device)).min()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _tidy(device: torch.device) -> None:
    gc.collect()  # modules whose blocks are set up contain reference cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
