"""A published policy's weights go to its device one by one: the host never holds two of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.config.model_section import MODEL
from atlas.policies.base import Policy, build_policy, load_policy
from atlas.policies.published import weight_filling
from atlas.policies.published.lazy_tensors import TensorFile
from tests.policies.golden import FIXTURES

Load = Callable[[str, Path, str], Policy]
THERE = "meta"  # a device that is not the host, and is everywhere
BEGUN: dict[str, dict[str, Any]] = {"smolvla": {}, "pi0": {"lora": {"rank": 2}}, "pi05": {"precision": "bfloat16"}}


def begun(kind: str, saved: Path, device: str) -> Policy:
    section = MODEL.validate({"type": kind, "pretrained": str(FIXTURES / kind), **BEGUN[kind]})
    return build_policy(section, load_policy(FIXTURES / kind, device=device).processor, device=device)


def published(kind: str, saved: Path, device: str) -> Policy:
    return load_policy(FIXTURES / kind, device=device)


def saved_here(kind: str, saved: Path, device: str) -> Policy:
    return load_policy(saved, device=device)


@pytest.mark.parametrize("load", [begun, published, saved_here])
@pytest.mark.parametrize("kind", BEGUN)
def test_the_host_holds_one_tensor_at_a_time(
    kind: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(kind, tmp_path, "cpu").save_pretrained(tmp_path)
    on_host: list[weakref.ref[torch.Tensor]] = []
    read, put = TensorFile.read, weight_filling.put

    def noted(self: TensorFile, name: str) -> torch.Tensor:
        assert not any(tensor() is not None for tensor in on_host)
        values = read(self, name)
        on_host.append(weakref.ref(values))
        return values

    def brought(network: torch.nn.Module, name: str, values: torch.Tensor) -> None:
        assert values.device.type == THERE
        put(network, name, values)

    monkeypatch.setattr(weight_filling, "put", brought)
    monkeypatch.setattr(TensorFile, "read", noted)

    policy = load(kind, tmp_path, THERE)

    assert len(on_host) > 50 and {p.device.type for p in policy.parameters()} == {THERE}
