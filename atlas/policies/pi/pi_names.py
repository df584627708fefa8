"""The names of pi's tensors in LeRobot's files and in Atlas."""

from __future__ import annotations

from atlas.policies.adapters import plain_name
from atlas.policies.published.weight_filling import Naming

_PALIGEMMA = "paligemma_with_expert.paligemma."
_EXPERT = "paligemma_with_expert.gemma_expert."

# (in a file, in Atlas); the first match counts. All other names are the same on both sides.
_PREFIXES = (
    (f"{_PALIGEMMA}model.vision_tower.vision_model.", "vision."),
    (f"{_PALIGEMMA}model.multi_modal_projector.linear.", "projector."),
    (f"{_PALIGEMMA}model.language_model.embed_tokens.", "words."),
    (f"{_PALIGEMMA}model.language_model.", "language."),
    (f"{_EXPERT}model.", "expert."),
)
_NEWER_VISION = f"{_PALIGEMMA}model.vision_tower."  # as newer transformers write it

TABLE = f"{_PALIGEMMA}model.language_model.embed_tokens.weight"  # the word table in use
TIED_TABLE = f"{_PALIGEMMA}lm_head.weight"  # the same table's name in base files; unused where a file has both
UNUSED = f"{_EXPERT}lm_head.weight"  # a head that computes nothing


def usual_name(name: str) -> str:
    """The usual form of a name in a file, without the leading `model.`."""
    newer = name.startswith(_NEWER_VISION) and not name.startswith(f"{_NEWER_VISION}vision_model.")
    return name.replace(_NEWER_VISION, f"{_NEWER_VISION}vision_model.") if newer else name


def own_name(name: str) -> str:
    """Atlas's name for a name in a file, without the leading `model.`."""
    name = usual_name(name)
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def published_name(name: str) -> str:
    """The name in a file, without the leading `model.`, for Atlas's name of a weight, adapted or not."""
    name = plain_name(name)
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


NAMING = Naming(published_name, usual_name)
ALIASES = {TABLE: TIED_TABLE}
BESIDE = (TIED_TABLE, UNUSED)  # tensors that a file may have and the network lacks
