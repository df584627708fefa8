"""The names of the numbers of a dataset's proprio."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.data.episode import EpisodeDataset, NamesProprio

# The end effector's position and axis-angle, and two fingers: name and unit.
LIBERO_PROPRIO = (
    *((name, "m") for name in ("x", "y", "z")),
    *((name, "rad") for name in ("rx", "ry", "rz")),
    *((name, "m") for name in ("finger 1", "finger 2")),
)


def has_libero_proprio(dataset: EpisodeDataset) -> bool:
    """Whether the proprio is LIBERO's, known from its size, unless the dataset says what its proprio is."""
    if dataset.proprio_dim != len(LIBERO_PROPRIO):
        return False
    return not isinstance(dataset, NamesProprio) or dataset.has_libero_proprio


def state_columns(dataset: EpisodeDataset, names: Sequence[str]) -> list[int] | None:
    """The proprio's dimensions that say where the actions of these names are: those of the same names, or in the same
    places where proprio and actions are equally many and other names do not contradict it; None if that is not told."""
    own, spec = [name for name, _ in proprio_names(dataset)], dataset.action_spec
    if all(own.count(name) == 1 for name in names):
        return [own.index(name) for name in names]
    unnamed = all(name == f"state {place}" for place, name in enumerate(own))
    if unnamed and len(own) == spec.dim:
        return [spec.names.index(name) for name in names]
    return None


def proprio_names(dataset: EpisodeDataset) -> list[tuple[str, str]]:
    """Name and unit of each number: LIBERO's if it is LIBERO's, otherwise the dataset's; '' if it names none."""
    if has_libero_proprio(dataset):
        return list(LIBERO_PROPRIO)
    names = dataset.proprio_names if isinstance(dataset, NamesProprio) else []
    return [(names[i] if i < len(names) else f"state {i}", "") for i in range(dataset.proprio_dim)]
