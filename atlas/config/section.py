"""The types that sections are built from."""

from __future__ import annotations

from os.path import expanduser
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=65536)]  # for anything allocated: widths, pixels, tokens
Layers = Annotated[int, Field(ge=1, le=1000)]
NotNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
UserPath = Annotated[str, AfterValidator(expanduser)]  # `~` is the user's home, as in a shell
Names = Annotated[list[str], Field(min_length=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


SomeSection = TypeVar("SomeSection", bound=Section)


def check_heads(section: SomeSection) -> SomeSection:
    """Validator for any section with `dim` and `heads`."""
    dim, heads = section.dim, section.heads  # type: ignore[attr-defined]
    if dim % heads:
        near = max(1, round(dim / heads)) * heads
        raise ValueError(f"dim is {dim}; it must be a multiple of heads ({heads}), such as {near}")
    return section


def differences(key: str, was: object, now: object) -> list[str]:
    """Say how two values of the setting `key` differ, in sentences; of sections, each setting in them."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [d for k in sorted({*was, *now}) for d in differences(f"{key}.{k}", was.get(k), now.get(k))]
    return [] if was == now else [f"{key} was {was} and is {now}"]
