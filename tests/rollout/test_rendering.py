"""Which GPU a simulator renders on; one that cannot draw is explained in one message, without its libraries' noise."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from atlas.config import Config
from atlas.environments import rendering
from atlas.environments.rendering import (
    VARIABLES,
    RenderingGPU,
    egl_addresses,
    egl_device,
    failure_explained,
    render_on,
)
from atlas.errors import InputError
from atlas.learning.rank_group import RankGroup
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.workers import EnvironmentPool

FIRST, SECOND, THIRD = "0000:17:00", "0000:3b:00", "0000:5e:00"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class GLFWError(UserWarning):
    """As the package's."""


class HalfMade:
    """Fails when it is made, and again when it is removed, as MuJoCo's objects do."""

    def __init__(self) -> None:
        raise RuntimeError("gladLoadGL error")

    def __del__(self) -> None:
        raise AttributeError("_context")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "70")

    with EnvironmentPool("cubes", 32, 1) as pool, pytest.raises(InputError) as error:
        pool.begin(0, PlannedEpisode(0, 1, "pick up the red cube"))
        pool.ready()

    said = str(error.value)
    assert said.startswith("No picture of the simulated world: The MUJOCO_EGL_DEVICE_ID") and "got 70" in said
    assert "(with MUJOCO_EGL_DEVICE_ID=70). Unset what you did not intend (MUJOCO_EGL_DEVICE_ID)" in said
    assert "atlas doctor" in said and "evaluation.env=none" in said
    assert "Traceback" not in capfd.readouterr().err


def test_a_display_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DISPLAY", ":99")

    said = "world: X11: Failed to open display :99 \\(with DISPLAY=:99\\)"
    with pytest.raises(InputError, match=said), failure_explained():
        warnings.warn("(65550) b'X11: Failed to open display :99'", GLFWError, stacklevel=1)
        warnings.warn("(65537) b'The GLFW library is not initialized'", GLFWError, stacklevel=1)
        HalfMade()

    assert capfd.readouterr().err == ""


def test_what_other_packages_lack_and_what_is_no_failure_stays_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError), failure_explained():
        raise ModuleNotFoundError("No module named 'robosuite'", name="robosuite")
    with pytest.warns(UserWarning, match="old"), failure_explained():
        warnings.warn("old", UserWarning, stacklevel=1)
    assert "DISPLAY" not in os.environ


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
    assert RenderingGPU.first_shown() == (RenderingGPU(4, None) if shown == "4,6" else None)


def test_the_choice_is_made_for_mujoco_and_leaves_the_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "egl_addresses", lambda: [FIRST, SECOND])
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


class Asked(Exception):
    """A world would be made now."""


@pytest.fixture
def shown_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth of eight GPUs is shown to this process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "")  # so that it is put back
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "egl_addresses", lambda: [None] * 8)


@pytest.mark.parametrize("process", ["a served world", "an actor", "a check of data", "a run of learning"])
def test_a_process_of_one_world_renders_on_the_first_gpu_that_it_is_shown(
    process: str, shown_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object, **__: object) -> None:
        raise Asked(os.environ.get("MUJOCO_EGL_DEVICE_ID"))

    if process == "a served world":
        from atlas.serving.protocols import environment_protocol

        monkeypatch.setattr(environment_protocol, "_World", made)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        start = lambda: environment_protocol._live(None, "cubes")  # type: ignore[arg-type]  # noqa: E731
    elif process == "a check of data":
        from atlas.checks import data_check
        from atlas.cli.commands.data_commands import check

        monkeypatch.setattr(data_check, "check_data", made)
        start = lambda: check("data")  # noqa: E731
    elif process == "a run of learning":
        from atlas.learning import online_run

        run: Any = SimpleNamespace(group=RankGroup(), env="cubes", view=None, config=None, name="ppo")
        monkeypatch.setattr(online_run, "open_world", made)
        start = lambda: online_run.OnlineRun.open_world(run)  # noqa: E731
    else:
        pytest.importorskip("zmq", reason="actors talk through pyzmq")
        from atlas.learning.actors import actor_role
        from atlas.learning.actors.messages import Address

        end = SimpleNamespace(hello=lambda: None, close=lambda: None)
        for name, instead in {"begun_view": None, "told_to_actors": None, "ActorEnd": end}.items():
            monkeypatch.setattr(actor_role, name, lambda *_, instead=instead: instead)
        monkeypatch.setattr(actor_role, "open_world", made)
        start = lambda: actor_role.act(Config(), "cubes", Address("127.0.0.1", 1), None)  # noqa: E731

    with pytest.raises(Asked, match="4"):
        start()
    if process == "a run of learning":  # which may start others
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_recorded_actions_are_played_on_the_first_gpu_that_is_shown(
    shown_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas.rollout import recorded_actions

    def made(*_: object, gpu: RenderingGPU | None = None) -> None:
        raise Asked(gpu)

    dataset = MagicMock()
    dataset.__len__.return_value = 2
    for name in ("_check_fits", "_planned", "RecordedActions", "image_size_for"):
        monkeypatch.setattr(recorded_actions, name, lambda *_: None)
    monkeypatch.setattr(recorded_actions, "Evaluator", made)

    with pytest.raises(Asked, match=r"RenderingGPU\(ordinal=4"):
        recorded_actions.evaluate_recorded(dataset, "cubes")


def test_an_address_is_what_the_system_links_a_file_to(tmp_path: Path) -> None:
    (tmp_path / "card1").mkdir()
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "card1" / "device").symlink_to(tmp_path / "0000:3b:00.0")

    assert rendering._address(b"/dev/dri/card1", tmp_path) == SECOND
    assert rendering._address(b"/dev/dri/card7", tmp_path) is None and rendering._address(None, tmp_path) is None


def test_asking_egl_ends_well_whatever_there_is() -> None:
    assert isinstance(egl_addresses(), list)
