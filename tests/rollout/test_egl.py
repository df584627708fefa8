"""Which of EGL's devices a process's simulators render on."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atlas.environments import egl
from atlas.environments.egl import RenderingGPU, egl_addresses, egl_device, render_on

FIRST, SECOND, THIRD = "0000:17:00", "0000:3b:00", "0000:5e:00"


@pytest.mark.parametrize(
    ("gpu", "addresses", "device"),
    [
        (RenderingGPU(0, SECOND), [FIRST, SECOND], 1),  # EGL counts otherwise than CUDA
        (RenderingGPU(1, SECOND), [None, SECOND, FIRST], 1),  # software rendering is a device too
        (RenderingGPU(0, THIRD), [FIRST, SECOND], None),  # not to be seen by EGL
        (RenderingGPU(1, None), [None, FIRST, SECOND], 2),
        (RenderingGPU(1, FIRST), [None, None], 1),
        (RenderingGPU(2, None), [None, None], None),
        (RenderingGPU(0, FIRST), [], None),
    ],
)
def test_a_gpu_is_found_by_its_address_else_by_its_number(
    gpu: RenderingGPU, addresses: list[str | None], device: int | None
) -> None:
    assert egl_device(gpu, addresses) == device


@pytest.mark.parametrize("shown", [None, "4,6", "GPU-5e1b,GPU-77aa"])
def test_a_process_knows_its_gpu_by_the_machines_number(monkeypatch: pytest.MonkeyPatch, shown: str | None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)

    assert RenderingGPU.of(torch.device("cuda", 1)) == RenderingGPU(6 if shown == "4,6" else 1, SECOND)
    assert RenderingGPU.of(torch.device("cpu")) is None


def test_the_choice_is_made_for_mujoco_and_leaves_the_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egl, "egl_addresses", lambda: [FIRST, SECOND])
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for chosen, expected in ((None, "1"), ("0", "0")):
        with monkeypatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", "0")
            patch.setenv("MUJOCO_EGL_DEVICE_ID", chosen or "")
            if chosen is None:
                patch.delenv("MUJOCO_EGL_DEVICE_ID")
            render_on(RenderingGPU(0, SECOND))
            assert os.environ["MUJOCO_EGL_DEVICE_ID"] == expected
            assert ("CUDA_VISIBLE_DEVICES" in os.environ) == (chosen is not None)


def test_an_address_is_what_the_system_links_a_file_to(tmp_path: Path) -> None:
    (tmp_path / "card1").mkdir()
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "card1" / "device").symlink_to(tmp_path / "0000:3b:00.0")

    assert egl._address(b"/dev/dri/card1", tmp_path) == SECOND
    assert egl._address(b"/dev/dri/card7", tmp_path) is None and egl._address(None, tmp_path) is None


def test_asking_egl_ends_well_whatever_there_is() -> None:
    assert isinstance(egl_addresses(), list)
