"""What is copied between host and device, and what waits for it, by the functions in Atlas that caused it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import atlas

ATLAS = Path(atlas.__file__).parent
_MOVES = ("aten::_to_copy", "aten::copy_")
_PASSED_OVER = ("device_copies.py", "types.py")  # which move what others want moved
_pinned = WeakIdKeyDictionary()


class Census(TorchDispatchMode):
    """seen: how often each (what, where) came. What: "sent" (pinned, no wait), "waits" (the host stands still)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and isinstance(args[0], FakeTensor):
            if args[0].is_cuda:
                self.seen["waits", where()] += 1
            return (
                1.0 if args[0].is_floating_point() else 1 - args[0].is_cuda
            )  # on the device: no stop, no step left out
        if name in _MOVES:
            source = args[0] if name == "aten::_to_copy" else args[1]
            target = kwargs.get("device") if name == "aten::_to_copy" else args[0].device
            target = torch.device(target) if target is not None else source.device
            if {source.device.type, target.type} == {"cpu", "cuda"}:
                pinned = source in _pinned and (kwargs.get("non_blocking") or args[-1] is True)
                self.seen["sent" if pinned else "waits", where()] += 1
        return func(*args, **kwargs)


class Collectives(TorchDispatchMode):
    """seen: how often each exchange between ranks was begun, by its name; without those inside of an operator, such as
    the norm of what is spread."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith(("c10d::", "_c10d_functional::")) and "wait" not in name and "wrap" not in name:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """Instead of torch's, which wants a driver."""
    pinned = tensor.clone()
    _pinned[pinned] = True
    return pinned


def where() -> str:
    """The innermost function of Atlas that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if ATLAS in file.parents and file.name not in _PASSED_OVER:
            return f"{file.relative_to(ATLAS).as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
