"""The names of pi's tensors in LeRobot's files, and here."""

from __future__ import annotations

from atlas.policies.adapters import plain_name
from atlas.policies.published.weight_filling import Naming

_PALIGEMMA = "paligemma_with_expert.paligemma."
_EXPERT = "paligemma_with_expert.gemma_expert."

# (in a file, here); the first that fits. The rest has the same name on both sides.
_PREFIXES = (
    (f"{_PALIGEMMA}model.vision_tower.vision_model.", "vision."),
    (f"{_PALIGEMMA}model.multi_modal_projector.linear.", "projector."),
    (f"{_PALIGEMMA}model.language_model.embed_tokens.", "words."),
    (f"{_PALIGEMMA}model.language_model.", "language."),
    (f"{_EXPERT}model.", "expert."),
)
_NEWER_VISION = f"{_PALIGEMMA}model.vision_tower."  # as newer transformers write it

TABLE = f"{_PALIGEMMA}model.language_model.embed_tokens.weight"  # the word table that is used
TIED_TABLE = f"{_PALIGEMMA}lm_head.weight"  # the same one under the name that base files have; unused where both are
UNUSED = f"{_EXPERT}lm_head.weight"  # of which nothing is computed


def usual_name(name: str) -> str:
    """The usual name in files, of one without `model.` in front."""
    newer = name.startswith(_NEWER_VISION) and not name.startswith(f"{_NEWER_VISION}vision_model.")
    return name.replace(_NEWER_VISION, f"{_NEWER_VISION}vision_model.") if newer else name


def own_name(name: str) -> str:
    """Here, of a name in a file without `model.` in front."""
    name = usual_name(name)
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def published_name(name: str) -> str:
    """In a file, of a name here; without `model.` in front, and whether the weight is adapted or not."""
    name = plain_name(name)
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


NAMING = Naming(published_name, usual_name)
ALIASES = {TABLE: TIED_TABLE}
BESIDE = (TIED_TABLE, UNUSED)  # what a file may have and the network does not
