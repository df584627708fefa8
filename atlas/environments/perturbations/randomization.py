"""Demonstrations in varied scenes: for each episode, several perturbations of the scene are drawn at once."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.choices import (
    ALL,
    CATEGORIES,
    PERTURBATIONS,
    PerturbationChoice,
    choose_perturbations,
)
from atlas.environments.perturbations.perturbation import Perturbation, perturbation_rng
from atlas.environments.scene_variation import AS_IT_IS, SceneVariation
from atlas.errors import InputError

SHARE = 1 / 3  # of the episodes that have a given perturbation


def choose_randomization(asked: Sequence[str], spec: EnvironmentSpec) -> list[PerturbationChoice]:
    """The perturbations that `NAME[:LEVEL]`, `CATEGORY[:LEVEL]` and `all[:LEVEL]` mean for recording, see
    `choose_perturbations`.

    `all` and categories mean the perturbations that change the scene. Raises InputError for an unknown name or level,
    and for a perturbation that does not change the scene: it would falsify the recording.
    """
    found: set[PerturbationChoice] = set()
    for text in asked:
        name = text.strip().partition(":")[0]
        choices = choose_perturbations([text], spec)
        of_scene = [choice for choice in choices if _changes_scene(choice.kind)]
        if not of_scene or (name not in (ALL, *CATEGORIES) and len(of_scene) < len(choices)):
            raise InputError(
                f"'{name}' changes observations, instructions, actions or the task, and not the scene: demonstrations "
                f"recorded with it would be wrong. Scenes of '{spec.name}' can be randomized by: {_supported(spec)}."
            )
        found.update(of_scene)
    order = PERTURBATIONS.names()
    return sorted(found, key=lambda choice: (order.index(choice.name), choice.level))


def draw_scene(choices: Sequence[PerturbationChoice], seed: int, spec: EnvironmentSpec) -> SceneVariation:
    """The scene of the episode with this seed: each perturbation is drawn independently, with one of its levels."""
    scene = AS_IT_IS
    for name in dict.fromkeys(choice.name for choice in choices):
        rng = perturbation_rng(f"whether {name}", seed)
        there, levels = rng.random() < SHARE, [choice.level for choice in choices if choice.name == name]
        if there:
            drawn = PerturbationChoice(name, levels[int(rng.integers(len(levels)))])
            scene = scene.also(drawn.of_episode(seed, spec).variation())
    return scene


def _supported(spec: EnvironmentSpec) -> str:
    kinds = {name: PerturbationChoice(name, 1).kind for name in PERTURBATIONS.names()}
    having = [name for name, kind in kinds.items() if _changes_scene(kind) and kind.missing(spec) is None]
    return ", ".join(having) or "nothing"


def _changes_scene(kind: type[Perturbation]) -> bool:
    """Whether it changes the scene's look or its start, and not the task."""
    return bool(kind.needs) and "goal" not in kind.needs
