"""The perturbations by name, and the choice among them. Another package adds its own class in the entry-point group
`atlas.perturbations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.perturbation import LEVELS, Category, Perturbation, perturbation_rng
from atlas.errors import InputError, did_you_mean
from atlas.system.plugins import PluginTable

_HERE = "atlas.environments.perturbations"
PERTURBATIONS: PluginTable[type[Perturbation]] = PluginTable(
    "atlas.perturbations",
    {
        "camera_pose": f"{_HERE}.camera_changes:CameraPose",
        "camera_field": f"{_HERE}.camera_changes:CameraField",
        "light_direction": f"{_HERE}.light_changes:LightDirection",
        "light_colour": f"{_HERE}.light_changes:LightColour",
        "light_intensity": f"{_HERE}.light_changes:LightIntensity",
        "light_shadows": f"{_HERE}.light_changes:LightShadows",
        "table_texture": f"{_HERE}.surface_changes:TableTexture",
        "table_colour": f"{_HERE}.surface_changes:TableColour",
        "background": f"{_HERE}.surface_changes:Background",
        "distractors": f"{_HERE}.layout_changes:Distractors",
        "object_positions": f"{_HERE}.layout_changes:ObjectPositions",
        "start_pose": f"{_HERE}.layout_changes:StartPose",
        "blur": f"{_HERE}.sensor_changes:Blur",
        "jpeg": f"{_HERE}.sensor_changes:Jpeg",
        "brightness": f"{_HERE}.sensor_changes:Brightness",
        "pixel_noise": f"{_HERE}.sensor_changes:PixelNoise",
        "dropped_frames": f"{_HERE}.sensor_changes:DroppedFrames",
        "late_frames": f"{_HERE}.sensor_changes:LateFrames",
        "paraphrase": f"{_HERE}.instruction_changes:Paraphrase",
        "word_order": f"{_HERE}.instruction_changes:WordOrder",
        "typos": f"{_HERE}.instruction_changes:Typos",
        "other_language": f"{_HERE}.instruction_changes:OtherLanguage",
        "colour_synonym": f"{_HERE}.instruction_changes:ColourSynonym",
        "action_noise": f"{_HERE}.action_changes:ActionNoise",
        "action_delay": f"{_HERE}.action_changes:ActionDelay",
        "other_task": f"{_HERE}.task_changes:OtherTask",
    },
)
ALL = "all"
CATEGORIES: tuple[str, ...] = get_args(Category)


@dataclass(frozen=True, order=True)
class PerturbationChoice:
    """One perturbation at one level."""

    name: str
    level: int

    @property
    def kind(self) -> type[Perturbation]:
        """Its class. Raises InputError for an unknown name, and for a plug-in that is not a Perturbation."""
        kind = PERTURBATIONS.find(self.name)
        if kind is None:
            raise InputError(f"Unknown perturbation '{self.name}'.{PERTURBATIONS.unknown(self.name)}")
        if not (isinstance(kind, type) and issubclass(kind, Perturbation)):
            raise InputError(
                f"'{self.name}' in {PERTURBATIONS.group} should be a class derived from Perturbation "
                f"(atlas/environments/perturbations/perturbation.py), and is {kind!r}."
            )
        return kind

    def of_episode(self, seed: int, spec: EnvironmentSpec) -> Perturbation:
        """The perturbation of the episode with this seed."""
        return self.kind(self.level, perturbation_rng(self.name, seed), spec)


def choose_perturbations(asked: Sequence[str], spec: EnvironmentSpec) -> list[PerturbationChoice]:
    """The perturbations that 'NAME[:LEVEL]', 'CATEGORY[:LEVEL]' and 'all[:LEVEL]' mean in a world, in the order of the
    names. LEVEL is 1 to 5, or a range such as 1-3; without it, all five.

    'all' and categories mean the perturbations that the world supports. Raises InputError for an unknown name or level,
    and for a perturbation that the world does not support.
    """
    found: set[PerturbationChoice] = set()
    for text in asked:
        name, _, levels = text.strip().partition(":")
        for each in _named(name, spec):
            found |= {PerturbationChoice(each, level) for level in _levels(text, levels)}
    order = PERTURBATIONS.names()
    return sorted(found, key=lambda choice: (order.index(choice.name), choice.level))


def why_not(name: str, spec: EnvironmentSpec) -> str | None:
    """Why a world does not support this perturbation; None where it does."""
    return PerturbationChoice(name, 1).kind.missing(spec)


def _named(name: str, spec: EnvironmentSpec) -> list[str]:
    known = PERTURBATIONS.names()
    if name == ALL or name in CATEGORIES:
        there = [each for each in known if name in (ALL, PerturbationChoice(each, 1).kind.category)]
        there = [each for each in there if why_not(each, spec) is None]
        if not there:
            raise InputError(f"The environment '{spec.name}' has no perturbation of the category '{name}'.")
        return there
    if name not in known:
        near = did_you_mean(name, [*known, *CATEGORIES, ALL])
        raise InputError(
            f"Unknown perturbation '{name}'.{near} Known: {', '.join(known)}; categories: {', '.join(CATEGORIES)}; or "
            f"{ALL}."
        )
    if reason := why_not(name, spec):
        having = [each for each in known if why_not(each, spec) is None]
        raise InputError(
            f"The environment '{spec.name}' does not support the perturbation '{name}': {reason}. It supports: "
            f"{', '.join(having)}."
        )
    return [name]


def _levels(text: str, levels: str) -> list[int]:
    if ":" not in text:
        return list(LEVELS)
    first, _, last = levels.partition("-")
    ends = [first, last or first]
    if not all(end in map(str, LEVELS) for end in ends) or ends[0] > ends[1]:
        raise InputError(
            f"'{text}': '{levels}' is not a level; give one from {LEVELS[0]} to {LEVELS[-1]}, or a range such as "
            f"{text.partition(':')[0]}:1-3."
        )
    return list(range(int(ends[0]), int(ends[1]) + 1))
