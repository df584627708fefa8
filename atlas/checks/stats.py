"""`stats`: the statistics that a policy would be scaled by, and those stored in the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.lerobot.dataset import LeRobotDataset
from atlas.data.statistics import ColumnStatistics, seldom_used
from atlas.system.documents import read_json_object

_SMALLEST_STD = 1e-6
_TAIL = 8.0  # standard deviations from the mean beyond which the largest value alone sets the scale
_AGREE = 0.05  # of a standard deviation
_SOURCES = "meta/stats.json"


def check_stats(context: CheckContext) -> Iterator[Finding]:
    dataset = context.dataset
    train = [int(i) for i in context.train]
    columns = {
        "action": (np.concatenate([dataset.episode(i).actions for i in train]), dataset.action_spec.names),
        "proprio": (np.concatenate([dataset.episode(i).proprio for i in train]), None),
    }
    well = True
    for what, (values, names) in columns.items():
        names = names or tuple(str(i) for i in range(values.shape[1]))
        if not np.isfinite(values).all():
            return  # `actions` reports it
        scaling = getattr(context.processor, f"{what}_normalization")
        kept = {names[d] for d, _ in dataset.action_spec.grippers} if what == "action" else set()
        found = list(_of_column(what, ColumnStatistics.of(values), names, scaling, kept))
        well = well and not found
        yield from found
    if isinstance(dataset, LeRobotDataset):
        yield from _brought(context, dataset)
    if well:
        yield Finding(
            "stats",
            "info",
            f"statistics of {len(train)} training episodes are finite, and each dimension varies",
            None,
            {"frames": len(columns["action"][0]), "episodes": len(train)},
        )


def _of_column(
    what: str, statistics: ColumnStatistics, names: tuple[str, ...], scaling: str, kept: set[str]
) -> Iterator[Finding]:
    """kept: the dimensions that are not scaled by statistics."""
    mean, std, low, high = (np.array(getattr(statistics, key)) for key in ("mean", "std", "min", "max"))
    still = [name for name, deviation in zip(names, std, strict=True) if deviation < _SMALLEST_STD]
    if len(still) == len(names):
        yield Finding(
            "stats",
            "error",
            f"no dimension of {what} varies over the training episodes",
            "Check the columns that were read; there is nothing to learn from.",
            {"column": what},
            fatal=True,
        )
        return
    if still and what == "proprio":
        yield Finding(
            "stats",
            "warning",
            f"the dimensions {still} of {what} do not vary in training: elsewhere, after scaling, they may be far off",
            "Leave them out with data.features.proprio, unless they never vary in the world either.",
            {"column": what, "dimensions": still},
        )
    # For scaling by the smallest and the largest value, `tails` reports it.
    seldom = [] if scaling == "min_max" else [d for d in seldom_used(statistics) if names[d] not in (*still, *kept)]
    for dimension in seldom:
        q01, q99 = statistics.q01[dimension], statistics.q99[dimension]
        farthest = max(low[dimension], high[dimension], key=lambda value: abs(value - (q01 + q99) / 2))
        yield Finding(
            "stats",
            "warning",
            f"{what} {names[dimension]} lies within [{q01:.4g}, {q99:.4g}] in 98% of the frames, but reaches "
            f"{farthest:.4g} in a few" + (": it is scaled by its deviation" if scaling == "quantiles" else ""),
            "Look at these frames; record more of them if they are intended, and leave them out if not.",
            {"column": what, "dimension": names[dimension], "q01": q01, "q99": q99, "farthest": float(farthest)},
        )
    reach = np.maximum(high - mean, mean - low) / np.maximum(std, _SMALLEST_STD)
    tails = [(name, float(r)) for name, r in zip(names, reach, strict=True) if r > _TAIL and name not in still]
    if tails and scaling == "min_max":
        name, r = max(tails, key=lambda tail: tail[1])
        yield Finding(
            "stats",
            "warning",
            f"{what} {name} reaches {r:.0f} standard deviations from its mean: scaling by the smallest and largest "
            "value leaves little room for all others",
            f"Set model.processor.{what}_normalization to quantiles or mean_std, or look at these values.",
            {"column": what, "deviations": {n: round(v, 1) for n, v in tails}},
        )


def _brought(context: CheckContext, dataset: LeRobotDataset) -> Iterator[Finding]:
    """The statistics stored in the dataset. Atlas never uses them, but others do."""
    path = dataset.path / _SOURCES
    stated = read_json_object(path)
    if stated is None:
        return
    everything = ColumnStatistics.of(np.concatenate([dataset.episode(i).proprio for i in range(len(dataset))]))
    wrong: dict[str, float] = {}
    for key in ("mean", "std"):
        values = _vector(stated, "observation.state", key)
        if values is not None and len(values) == len(everything.mean):
            off = np.abs(values - np.array(getattr(everything, key))) / np.maximum(everything.std, _SMALLEST_STD)
            if off.max() > _AGREE:
                wrong[key] = round(float(off.max()), 3)
    if wrong:
        yield Finding(
            "stats",
            "warning",
            f"{path} disagrees with the data: {', '.join(wrong)} of observation.state by up to "
            f"{max(wrong.values()):.2g} standard deviations",
            "Atlas computes its own; compute them again for other programs.",
            {"file": str(path), "deviations": wrong},
        )


def _vector(stated: dict[str, Any], feature: str, key: str) -> np.ndarray | None:
    try:
        values = np.asarray(stated[feature][key], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return values if values.ndim == 1 else None
