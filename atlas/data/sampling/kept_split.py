"""The side of the split that each episode is on, kept with a run so that a growing dataset is not split again.

Episodes are identified by their content, so files may be renamed or reordered, and others may be added.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from atlas.data.episode import EpisodeDataset, Side
from atlas.data.mixture import sources_of


@dataclass(frozen=True)
class KeptSplit:
    """The identities of the episodes of both sides, int64 [n] each, in the order in which they were numbered."""

    training: np.ndarray
    validation: np.ndarray

    @classmethod
    def of(cls, dataset: EpisodeDataset, training: np.ndarray, validation: np.ndarray) -> KeptSplit:
        """training, validation: episode numbers int64 [n]."""
        identities = episode_identities(dataset)
        return cls(identities[training], identities[validation])

    def sides(self, identities: np.ndarray) -> np.ndarray:
        """int8, a `Side` for each identity; UNSAID for new ones."""
        sides = np.full(len(identities), Side.UNSAID, np.int8)
        sides[np.isin(identities, self.training)] = Side.TRAINING
        sides[np.isin(identities, self.validation)] = Side.VALIDATION
        return sides

    def change(self, identities: np.ndarray) -> str | None:
        """Say how a dataset with these episodes differs from the one that was split; None if it does not."""
        known = np.concatenate([self.training, self.validation])
        new, gone = int((~np.isin(identities, known)).sum()), int((~np.isin(known, identities)).sum())
        if gone == len(known):
            return f"it has none of the {len(known)} episodes that were trained on and validated with"
        parts = [
            f"{count} episode{'s' if count > 1 else ''} of {of} {'are' if count > 1 else 'is'} {what}"
            for count, of, what in ((new, len(identities), "new"), (gone, len(known), "gone"))
            if count
        ]
        return " and ".join(parts) or None


def episode_identities(dataset: EpisodeDataset) -> np.ndarray:
    """int64 [episodes]: hashes of the instruction, actions and proprio, and of how many equal episodes came before."""
    found = np.empty(len(dataset), np.int64)
    alike: Counter[bytes] = Counter()
    for source in sources_of(dataset):
        actions, proprio = source.dataset.numbers()
        for index in range(len(source.dataset)):
            rows = source.dataset.rows(index)
            instruction = source.dataset.tasks[source.dataset.task_of[index]]
            content = hashlib.blake2b(repr((instruction, actions.shape[1], proprio.shape[1])).encode(), digest_size=16)
            for numbers in (actions, proprio):
                content.update(np.ascontiguousarray(numbers[rows], np.float32).data)
            digest = content.digest()
            number = alike[digest].to_bytes(8, "little")
            alike[digest] += 1
            identity = hashlib.blake2b(digest + number, digest_size=8).digest()
            found[source.first + index] = int.from_bytes(identity, "little", signed=True)
    return found
