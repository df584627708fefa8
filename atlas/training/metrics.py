"""Means over the valid elements of all processes, so that one process and eight give the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from atlas.system.device_copies import send
from atlas.types import ActionSpec, LossTerms


class LossMeter:
    """The mean of each loss term since it was last read, weighted by valid action steps. Holds sums on the device."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """names: `loss`, and the names of the LossTerms' terms."""
        self._names = tuple(names)
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=device)

    def add(self, terms: LossTerms) -> None:
        n = terms.n_valid.detach().double()
        values = [terms.loss if name == "loss" else terms.terms[name] for name in self._names]
        self._sums += torch.cat([torch.stack([v.detach().double() for v in values]) * n, n[None]])

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """The sums since the last read, on this process."""
        return {"losses": self._sums}

    def set_sums(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `sums` returned; an empty mapping starts from zero."""
        if "losses" in sums:
            self._sums = sums["losses"].to(self._sums)

    def read(self, accelerator: Accelerator, prefix: str) -> dict[str, float]:
        """`prefix/loss` and so on, over all processes; then starts again. Every process must call it."""
        sums = accelerator.reduce(self._sums, "sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        return {f"{prefix}/{name}": sums[i] / max(sums[-1], 1) for i, name in enumerate(self._names)}


class ActionErrors:
    """The errors of sampled actions against the recorded ones: the means of `ActionSpec.errors`.

    Sums are kept per task, so that the means per task and over all come from the same numbers.
    """

    def __init__(self, spec: ActionSpec, tasks: list[str], device: torch.device) -> None:
        self._spec, self._tasks, self._names = spec, tasks, spec.error_names
        self._sums = torch.zeros(len(tasks), len(self._names) + 1, dtype=torch.float64, device=device)

    def add(self, predicted: torch.Tensor, target: torch.Tensor, is_pad: torch.Tensor, instructions: list[str]) -> None:
        """predicted, target float [B, H, A]; is_pad bool [B, H]."""
        errors = self._spec.errors(predicted, target)
        steps = torch.ones_like(errors[self._names[0]])
        values = torch.stack([*(errors[name] for name in self._names), steps], dim=-1)  # [B, H, names + 1]
        per_sample = (values * (~is_pad).unsqueeze(-1)).sum(1)
        rows = send(torch.tensor([self._tasks.index(text) for text in instructions]), per_sample.device)
        self._sums.index_add_(0, rows, per_sample)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """`val/…` over all tasks and `val/<task>/…`, over all processes. Every process must call it."""
        sums = accelerator.reduce(self._sums, "sum").cpu()
        metrics = _means("val", sums.sum(0), self._names)
        if len(self._tasks) > 1:
            for task, row in zip(self._tasks, sums, strict=True):
                if row[-1] > 0:
                    metrics |= _means(f"val/{task.replace(' ', '_')}", row, self._names)
        return metrics


def _means(prefix: str, sums: torch.Tensor, names: tuple[str, ...]) -> dict[str, float]:
    count = max(float(sums[-1]), 1.0)
    return {f"{prefix}/{name}": float(sums[i]) / count for i, name in enumerate(names)}
