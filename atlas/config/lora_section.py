"""Low-rank adapters, for whatever pretrained part takes them."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field

from atlas.config.section import Names, Probability, Section, Size


class LoRAConfig(Section):
    """Low-rank adapters in the linear layers of a frozen backbone (Hu et al., 2021)."""

    rank: Size = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0  # the adapters' output is scaled by alpha / rank
    dropout: Probability = 0.0
    targets: Names | None = None  # last names of layers, such as [q_proj, v_proj]; null: all of attention and MLP


SomeSection = TypeVar("SomeSection", bound=Section)


def check_one_way_to_train(section: SomeSection) -> SomeSection:
    """Validates any section with `lora` and `freeze`."""
    if section.lora is not None and not section.freeze:  # type: ignore[attr-defined]
        raise ValueError("lora is set and freeze is false; adapters go with frozen weights, so set one of the two")
    return section
