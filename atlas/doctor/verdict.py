"""What a check of the machine says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# problem: training cannot work; warning: it can, and something of it will not, or not well.
Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. seen: what is there, in words; fix: what to do where that is not well."""

    check: str
    status: Status
    seen: str
    fix: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # the same as plain values, for scripts

    def __post_init__(self) -> None:
        assert (self.fix is None) == (self.status == "ok"), "what is not well comes with what to do, and nothing else"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gib(size: float) -> str:
    """Bytes as '12.3 GiB'."""
    return f"{size / 2**30:.1f} GiB"
