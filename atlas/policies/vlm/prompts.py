"""Prompts as rows of tokens, with the places of images, words and a head's own tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from atlas.errors import InputError
from atlas.policies.modular.language_encoders.language_tokens import distinct
from atlas.policies.vlm.families import Family
from atlas.policies.vlm.vlm_section import BACKBONE_KEY as KEY
from atlas.policies.vlm.vlm_section import IMAGES, INSTRUCTION, BackboneConfig
from atlas.system.device_copies import send

logger = logging.getLogger(__name__)

_MARKERS = re.compile(r"<[^<>\s]+>")  # such as <|im_end|>: each must be one token

# (ids [1, L], of which the last E are the head's; bool [1, L], true at images) to positions [1, L] or [3, 1, L]
Positions = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PromptBatch(NamedTuple):
    """B samples of T positions each: the prompt, the head's E tokens, then padding."""

    ids: torch.Tensor  # int64 [B, T]; 0 where there is no word
    is_there: torch.Tensor  # bool [B, T]
    image_slots: torch.Tensor  # int64 [B, V * N]
    extra_slots: torch.Tensor  # int64 [B, E]
    positions: torch.Tensor  # int64 [B, T], or [3, B, T]


class _Row(NamedTuple):
    """A prompt followed by the head's tokens, on the CPU."""

    ids: torch.Tensor  # int64 [L + E]
    image_slots: torch.Tensor  # int64 [V * N]
    positions: torch.Tensor  # int64 [1 or 3, L + E]


class Prompts:
    """Makes the row of each instruction once, for views of N tokens each.

    Raises InputError where the tokenizer lacks a token of the prompt, or a row is too long.
    """

    def __init__(
        self,
        config: BackboneConfig,
        family: Family,
        tokenizer: Any,
        image_token: int,
        words: int,
        tokens: int,
        positions: Positions | None,
        longest: int,
        name: str,
    ) -> None:
        """image_token: the id of the placeholder for each of an image's `tokens`. words: the number of ids that the
        model knows. positions: None: counted from `family.first_position`. longest: the longest row for which the model
        has positions. name: the model's, for messages."""
        self._family, self._tokenizer, self._name = family, tokenizer, name
        self._form = config.prompt or family.prompt
        for mark, token in (("{bos}", tokenizer.bos_token), ("{eos}", tokenizer.eos_token)):
            self._form = self._form.replace(mark, token or "")
        self._max_length, self._image_token, self._words = config.max_length, image_token, words
        self._tokens, self._positions, self._longest = tokens, positions, longest
        self._stand_in = _token_named(tokenizer, image_token, name)
        self._check_markers()
        self._rows: dict[tuple[str, int, int], _Row] = {}

    def batch(self, instructions: Sequence[str], views: int, extras: int, device: torch.device) -> PromptBatch:
        """The rows of B instructions, padded to the longest, in two copies to `device`."""
        texts, which = distinct(instructions)
        rows = [self.row(text, views, extras) for text in texts]
        lengths = torch.tensor([len(row.ids) for row in rows])
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        positions = torch.zeros(rows[0].positions.shape[0], len(rows), longest, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = row.ids
            positions[:, place, : len(row.ids)] = row.positions
        packed = torch.cat(
            [ids, torch.stack([row.image_slots for row in rows]), lengths[:, None], *positions.unbind(0)], dim=1
        )
        sent = send(packed[torch.tensor(which)], device)  # [B, ...]
        ids, image_slots, length, *positions_of = sent.split(
            [longest, rows[0].image_slots.numel(), 1, *[longest] * len(positions)], dim=1
        )
        spread = torch.stack(positions_of) if len(positions_of) > 1 else positions_of[0]
        there = torch.arange(longest, device=device) < length
        extra_slots = length - extras + torch.arange(extras, device=device)
        return PromptBatch(ids, there, image_slots, extra_slots, spread)

    def row(self, instruction: str, views: int, extras: int) -> _Row:
        """The row of an instruction, which is made once."""
        key = (instruction, views, extras)
        if key not in self._rows:
            self._rows[key] = self._make(instruction, views, extras)
        return self._rows[key]

    def _make(self, instruction: str, views: int, extras: int) -> _Row:
        image = self._family.before + self._stand_in * self._tokens + self._family.after
        text = self._form.replace(IMAGES, image * views).replace(INSTRUCTION, self._cut(instruction))
        found = torch.tensor(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        is_image = found == self._image_token
        if int(is_image.sum()) != views * self._tokens:
            raise InputError(
                f"{KEY}: the tokenizer of {self._name} makes {int(is_image.sum())} image tokens from {views} images of "
                f"{self._tokens}; it belongs to another model, or the instruction '{instruction}' contains such tokens."
            )
        if len(found) + extras > self._longest:
            raise InputError(
                f"{KEY}: {self._name} has positions for {self._longest} tokens, but {views} images of {self._tokens} "
                f"tokens, '{instruction}' and {extras} more tokens make {len(found) + extras}. Set a smaller "
                "model.backbone.image_size, or fewer data.cameras."
            )
        words = found.masked_fill(is_image, 0)
        if int(words.max()) >= self._words:
            raise InputError(
                f"{KEY}: the tokenizer of {self._name} belongs to another model: it gives the token {int(words.max())} "
                f"for '{instruction}', but the model has {self._words}."
            )
        ids = torch.cat([words, words.new_zeros(extras)])
        images = torch.cat([is_image, is_image.new_zeros(extras)])
        if self._positions is not None:
            positions = self._positions(torch.cat([found, words.new_zeros(extras)])[None], images[None])[:, 0]
        else:
            positions = torch.arange(len(ids))[None] + self._family.first_position
        return _Row(ids, is_image.nonzero()[:, 0], positions)

    def _cut(self, instruction: str) -> str:
        ids = self._tokenizer(instruction, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= self._max_length:
            return instruction
        logger.warning(
            "An instruction has %d tokens, and is cut to model.backbone.max_length, %d: '%s'",
            len(ids),
            self._max_length,
            instruction,
        )
        cut: str = self._tokenizer.decode(ids[: self._max_length])
        return cut

    def _check_markers(self) -> None:
        family = self._family
        for marker in _MARKERS.findall(self._form + family.before + family.after):
            if _id_of(self._tokenizer, marker) is None:
                raise InputError(
                    f"{KEY}: the tokenizer of {self._name} belongs to another model: it has no token '{marker}', which "
                    "the prompt contains (model.backbone.prompt)."
                )


def _token_named(tokenizer: Any, number: int, name: str) -> str:
    """The text of a token. Raises InputError where the tokenizer does not have it."""
    try:
        token = tokenizer.convert_ids_to_tokens(number)
    except (IndexError, OverflowError):
        token = None
    if token is None or _id_of(tokenizer, token) != number:
        raise InputError(
            f"{KEY}: the tokenizer of {name} belongs to another model: it has no token {number}, which stands for "
            "images in the model's config.json."
        )
    return str(token)


def _id_of(tokenizer: Any, token: str) -> int | None:
    """The id of a text that is one token; None for any other text."""
    ids: list[int] = tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
    known = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    return ids[0] if known else None
