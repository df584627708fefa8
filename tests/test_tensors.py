"""Tensors in files: the layout of safetensors, and nested values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._pytree import tree_flatten

from atlas.errors import InputError
from atlas.system.tensors import _write, load_nested, save_nested, save_tensors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {
        f"{dtype} {shape}": torch.ones(shape).to(dtype) for dtype in DTYPES for shape in ((), (3,), (0, 2), (5, 3))
    }
    tensors["turned"] = torch.arange(6.0).view(2, 3).t()
    tensors["müde"] = torch.arange(3)

    save_tensors(tmp_path / "file", tensors, {"b": "2", "a": "ä"})

    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"a": "ä", "b": "2"}


def test_the_order_in_which_tensors_come_does_not_change_the_file(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3), "b": torch.rand(3).double(), "c": torch.rand(2).bfloat16()}

    save_tensors(tmp_path / "one", tensors)
    save_tensors(tmp_path / "other", dict(reversed(tensors.items())))

    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


NESTED: list[Any] = [
    torch.rand(3),
    {},
    {"state": {0: {"step": torch.tensor(3.0), "max": None}, 12: {}}, "groups": [{"betas": (0.9, 0.95), "fused": True}]},
    [[1, [2.5, float("inf"), "text"], None], (), {"tensor": "a word", "dict": [torch.zeros(0)]}],
]


@pytest.mark.parametrize("value", NESTED)
def test_nested_values_come_back_as_they_were(tmp_path: Path, value: Any) -> None:
    save_nested(tmp_path / "file", value)
    back = load_nested(tmp_path / "file")

    (ours, form), (theirs, expected_form) = tree_flatten(back), tree_flatten(value)
    assert form == expected_form
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else (a == b and type(a) is type(b))


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, size: int) -> None:
    file = tmp_path / "optimizer.safetensors"
    with pytest.raises(InputError, match=r"optimizer\.safetensors is missing"):
        load_nested(file)
    save_nested(file, {"weights": torch.rand(100)})
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(InputError, match=r"optimizer\.safetensors is damaged"):
        load_nested(file)


def test_a_disk_that_takes_a_write_in_parts_gets_all_of_it() -> None:
    class InParts(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:3]))

    file = InParts()
    _write(file, memoryview(b"0123456789"))

    assert file.getvalue() == b"0123456789"


@pytest.mark.parametrize(
    "described", ['{"dict": [[[1], 2]]}', '{"tensor": []}', '{"list": 5}', "[" * 3000, "{}", '{"tensor": "b"}']
)
def test_a_description_of_another_form_is_damage(tmp_path: Path, described: str) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {"nested": described})
    with pytest.raises(InputError, match="damaged"):
        load_nested(tmp_path / "a.safetensors")
