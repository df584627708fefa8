"""The findings of the machine's checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# problem: training cannot work; warning: training works, but something else does not, or not well.
Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check. seen: what was found, in words; fix: what to do, unless all is well."""

    check: str
    status: Status
    seen: str
    fix: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # the same as plain values, for scripts

    def __post_init__(self) -> None:
        assert (self.fix is None) == (self.status == "ok"), "a finding has a fix unless its status is ok"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gib(size: float) -> str:
    """Bytes as '12.3 GiB'."""
    return f"{size / 2**30:.1f} GiB"
