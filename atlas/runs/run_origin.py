"""The origin of a run and how long it took, from its event files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.runs.scalars import boards, event_files, events
from atlas.system.documents import parse_yaml

_CONFIG_TAG = "config/text_summary"  # what TensorBoard makes of the name under which a run's config is logged


@dataclass(frozen=True)
class RunOrigin:
    """facts: `run` of the config that was logged last (packages, platform, machine, git, world_size, device,
    parameters); empty where nothing was logged. segments: the first and the last event of each start of the run, in
    seconds since 1970."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    segments: Sequence[tuple[float, float]] = ()

    @property
    def seconds(self) -> float:
        """The time that the run has trained, summed over its starts."""
        return sum(last - first for first, last in self.segments)


def read_origin(run_dir: Path) -> RunOrigin:
    """Read a run's event files, of a run of learning its learner's. Raises InputError for a damaged one."""
    facts: Mapping[str, Any] = {}
    segments = []
    for file in event_files(boards(run_dir)[-1]):
        times = []
        for event in events(file):
            times.append(event.wall_time)
            for value in event.summary.value:
                if value.tag == _CONFIG_TAG and value.tensor.string_val:
                    facts = _facts(value.tensor.string_val[0]) or facts
        if times:
            segments.append((min(times), max(times)))
    return RunOrigin(facts, segments)


def _facts(text: bytes) -> Mapping[str, Any]:
    """`run` of a logged config, which is YAML in an indented block of Markdown; {} for any other text."""
    try:
        found = parse_yaml(textwrap.dedent(text.decode("utf-8")))
    except ValueError:
        return {}
    facts = found.get("run") if isinstance(found, dict) else None
    return facts if isinstance(facts, dict) else {}
