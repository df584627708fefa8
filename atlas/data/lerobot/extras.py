"""Facts about a dataset that Atlas knows and LeRobot's format has no place for: the folder meta/atlas of a dataset.

LeRobot's reader ignores the folder, and the hub keeps it with the rest. The states of a simulator are an ordinary
feature of the dataset, `sim_state`; the folder says how many of its numbers each episode uses.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atlas.config.action_sections import SourceActionsConfig, SourceGroupConfig
from atlas.data.lerobot.tables import open_parquet, parquet_table, readable_parquet
from atlas.data.orientation import ORIENTATIONS, Orientation
from atlas.data.origin import mend
from atlas.errors import InputError, first_line
from atlas.system.documents import read_json
from atlas.system.files import atomic_path, write_json
from atlas.types import LIBERO_GROUPS, ActionSpec

SIM_STATE = "sim_state"  # float64 [D], if the source has it
_FOLDER = "meta/atlas"
_DATASET, _EPISODES, _MODELS = "dataset.json", "episodes.parquet", "models.parquet"
_FORMAT = 1


@dataclass(frozen=True)
class About:
    """Facts about all episodes."""

    environment: str | None  # the world they were recorded in
    spec: ActionSpec
    libero_proprio: bool  # whether the proprio is LIBERO's eight numbers


@dataclass(frozen=True)
class EpisodeExtras:
    """Facts about one episode; None if its source has none."""

    sim_dim: int | None = None  # how many numbers of `sim_state` it uses; the rest is zero
    init_state: np.ndarray | None = None  # float64 [D]
    model_xml: str | None = None


class Extras:
    """meta/atlas of a dataset. The facts about single episodes are read when they are first asked for."""

    def __init__(self, root: Path, about: About, orientation: Orientation) -> None:
        self.environment, self.action_spec, self.libero_proprio = about.environment, about.spec, about.libero_proprio
        self.orientation = orientation
        self._root = root

    @property
    def source_actions(self) -> SourceActionsConfig:
        """The ActionSpec, described like a source's. Caches derive their names from it: LIBERO's stays in ranges."""
        spec = self.action_spec
        if spec.groups == LIBERO_GROUPS:
            return SourceActionsConfig(position_unit_m=0.05, rotation_unit_rad=0.5, control_hz=spec.control_hz)
        groups = [SourceGroupConfig(columns=(part.start, part.stop), **group.to_dict()) for group, part in spec.spans()]
        return SourceActionsConfig(groups=groups, control_hz=spec.control_hz)

    def episode(self, number: int) -> EpisodeExtras:
        """number: the dataset's own. Raises InputError if the folder is damaged, or belongs to another dataset."""
        table, models = self._tables
        if number not in table:
            raise InputError(
                f"{self._root / _FOLDER}/{_EPISODES} does not know episode {number}: the dataset was changed after "
                "Atlas wrote it. Delete that folder; its contents are lost then."
            )
        row = table[number]
        state, model, sim_dim = row["init_state"], row["model"], row["sim_dim"]
        try:
            return EpisodeExtras(
                sim_dim=None if sim_dim is None else operator.index(sim_dim),
                init_state=None if state is None else np.array(state, np.float64),
                model_xml=None if model is None else models[model],
            )
        except (ValueError, TypeError, LookupError) as error:
            path = self._root / _FOLDER
            raise InputError(f"{path}: episode {number} cannot be used ({first_line(error)}). {mend(path)}") from None

    @cached_property
    def _tables(self) -> tuple[dict[int, dict[str, Any]], list[str]]:
        episodes = _read(self._root / _FOLDER / _EPISODES, ("episode_index", "sim_dim", "init_state", "model"))
        models = _read(self._root / _FOLDER / _MODELS, ("model_xml",))
        return {row["episode_index"]: row for row in episodes}, [row["model_xml"] for row in models]


def read_extras(root: Path) -> Extras | None:
    """Read what Atlas noted about a dataset; None if Atlas did not write it. Raises InputError that names the key."""
    path = root / _FOLDER / _DATASET
    try:
        values = read_json(path)
        if values["format"] != _FORMAT:
            raise InputError(f"{path}: format is {values['format']}, but this Atlas reads {_FORMAT}; update Atlas.")
        try:
            spec = ActionSpec.from_dict(values["action_spec"])
        except InputError as error:
            raise InputError(f"{path} cannot be used ({first_line(error)}). {mend(path)}") from None
        about = About(values["environment"], spec, values["libero_proprio"])
        orientation = values["orientation"]
        if orientation not in ORIENTATIONS or not isinstance(about.environment, str | None):
            raise ValueError(f"orientation is {orientation!r} and environment {about.environment!r}")
        extras = Extras(root, about, orientation)
        assert extras.source_actions is not None  # checks that a config may have it
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be used ({first_line(error)}). {mend(path)}") from None
    return extras


def write_extras(root: Path, about: About, episodes: Sequence[EpisodeExtras]) -> None:
    """Write the folder for a dataset whose images are stored upright."""
    models = list(dict.fromkeys(e.model_xml for e in episodes if e.model_xml is not None))
    number = {xml: i for i, xml in enumerate(models)}
    states = [None if e.init_state is None else e.init_state.tolist() for e in episodes]
    table = {
        "episode_index": pa.array(range(len(episodes)), pa.int64()),
        "sim_dim": pa.array([e.sim_dim for e in episodes], pa.int64()),
        "init_state": pa.array(states, pa.list_(pa.float64())),
        "model": pa.array([None if e.model_xml is None else number[e.model_xml] for e in episodes], pa.int64()),
    }
    for name, columns in ((_EPISODES, table), (_MODELS, {"model_xml": pa.array(models, pa.string())})):
        with atomic_path(root / _FOLDER / name) as partial:
            pq.write_table(pa.table(columns), partial, compression="zstd", use_dictionary=False)
    values = {
        "format": _FORMAT,
        "environment": about.environment,
        "orientation": "upright",
        "libero_proprio": about.libero_proprio,
        "action_spec": about.spec.to_dict(),
    }
    write_json(root / _FOLDER / _DATASET, values)


def read_sim_states(path: Path, first: int, count: int, width: int) -> np.ndarray:
    """Rows of a data file's `sim_state`, float64 [count, width]; only their row groups are read. Raises InputError."""
    with readable_parquet(path):
        file = open_parquet(path)
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        groups = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, first + count)) + 1)
        skipped = int(ends[groups[0] - 1]) if groups[0] else 0
        column = file.read_row_groups(list(groups), [SIM_STATE]).column(SIM_STATE).combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        found = values[first - skipped : first - skipped + count, :width].astype(np.float64)
    if found.shape != (count, width):
        raise InputError(f"{path}: '{SIM_STATE}' lacks rows or numbers. {mend(path)}")
    return found


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    table = parquet_table(path, columns)
    with readable_parquet(path):  # its texts may not be text
        return list(table.to_pylist())
