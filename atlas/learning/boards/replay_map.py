"""Maps of a SAC run's replay, drawn offline from its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from atlas.config import Config, SacBaseConfig, load_config
from atlas.drawing.experience_plots import draw_valued_map
from atlas.drawing.figures import draw_map
from atlas.environments.catalog import environment_spec
from atlas.errors import InputError
from atlas.learning.boards.experience_map import THIRDS, project
from atlas.learning.experience_replay import Replay
from atlas.learning.learner_checkpoints import newest_checkpoint
from atlas.learning.residual_view import ResidualView
from atlas.learning.run_parts import RESIDUAL, View, about, view_of
from atlas.learning.sac import SoftActorCritic
from atlas.learning.sac_learner import LEARNER, REPLAY
from atlas.policies.base import load_policy
from atlas.runs.run_directory import LEARNING
from atlas.system.documents import read_json
from atlas.system.file_store import CONFIG
from atlas.system.files import follow
from atlas.system.tensors import load_nested
from atlas.training.media.projection import check_tsne


@dataclass(frozen=True)
class ReplayMap:
    """The maps of a replay, and its size."""

    run: Path
    checkpoint: Path
    decisions: int  # in the replay
    shown: int
    pictures: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """The machine-readable form of `atlas learn map --json`."""
        return {
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "decisions": self.decisions,
            "shown": self.shown,
            "pictures": {name: str(path) for name, path in self.pictures.items()},
        }


def map_replay(run: Path, method: Literal["pca", "tsne"], frames: int, out: Path | None) -> ReplayMap:
    """Draw at most `frames` states of the newest replay of a run: by when they were seen, by what was rewarded from
    there on, and by what the critics think of what was done. out: a folder; None: `<run>/map`. Raises InputError."""
    check_tsne(method, "--method tsne", "--method pca")
    if frames < 4:
        raise InputError(f"--frames {frames}: there must be 4 at least, such as --frames 1000.")
    folder = follow(run.expanduser())
    checkpoint = _newest(folder)
    config = load_config(folder / CONFIG)
    setup = read_json(folder / LEARNING)
    view, settings = _view(config, setup, checkpoint)
    columns = view.columns, view.action_dim
    replay = Replay(settings.replay_capacity, *columns, about(view.policy, setup["env"]), settings.priority)
    replay.load(checkpoint / "trainer" / REPLAY)
    sac = SoftActorCritic(settings, view, config.seed, torch.device("cpu"))
    sac.load_state_dict(load_nested(checkpoint / "trainer" / LEARNER))
    rows = replay.evenly(frames)
    if len(rows) < 4:
        raise InputError(f"The replay of {checkpoint} has {len(rows)} decisions; there must be 4 at least.")
    observations = replay.observations_at(rows)
    with torch.no_grad():
        state = view.state(observations)
        values = sac.critics(state, replay.actions_at(rows)).mean(0).numpy()
    projected = project(state.numpy(), method)
    points, axes = projected.points, projected.axes
    title = f"{len(rows)} of {replay.decisions} decisions in the replay of {folder.name}"
    third = np.minimum(3 * np.arange(len(rows)) // len(rows), 2)
    drawn = {
        "by_time": draw_map(points, third, THIRDS, axes, f"{title}, by when"),
        "by_return": draw_valued_map(
            points, replay.returns_from(rows), "rewards from there to the end of the episode", axes, title
        ),
        "by_value": draw_valued_map(points, values, "what the critics think of what was done", axes, title),
    }
    place = folder / "map" if out is None else out
    place.mkdir(parents=True, exist_ok=True)
    pictures = {name: place / f"replay_{name}_{method}.png" for name in drawn}
    for name, path in pictures.items():
        Image.fromarray(drawn[name]).save(path)
    return ReplayMap(folder, checkpoint, replay.decisions, len(rows), pictures)


def _newest(folder: Path) -> Path:
    """The newest checkpoint that has a replay. Raises InputError."""
    if not (folder / LEARNING).exists():
        raise InputError(f"{folder} is no run of atlas learn; give one of SAC, such as outputs/Pendulum-v1-sac.")
    newest = newest_checkpoint(folder)
    if newest is None or not (newest / "trainer" / REPLAY).exists():
        name = read_json(folder / LEARNING)["algorithm"]
        why = "it has no checkpoint yet" if name in ("sac", RESIDUAL) else f"{name} keeps none"
        raise InputError(f"{folder} has no replay: {why}. SAC keeps one, in its checkpoints.")
    return newest


def _view(config: Config, setup: dict[str, Any], checkpoint: Path) -> tuple[View, SacBaseConfig]:
    """The view of a checkpoint's policy that its run used, and the run's settings."""
    policy, env = load_policy(checkpoint / "policy"), str(setup["env"])
    if setup["algorithm"] == RESIDUAL:
        settings = config.learning.residual
        return ResidualView(policy, environment_spec(env), settings), settings
    return view_of(policy, config, "sac", env), config.learning.sac
