"""A simulator that cannot draw is explained in one message, without the noise of the libraries around it."""

from __future__ import annotations

import os
import warnings

import pytest

from atlas.environments.rendering import VARIABLES, failure_explained
from atlas.errors import InputError
from atlas.rollout.workers import EnvironmentPool


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
        pool.reset(0, 1, "pick up the red cube")
        pool.ready()

    said = str(error.value)
    assert said.startswith("No picture of the simulated world: The MUJOCO_EGL_DEVICE_ID") and "got 70" in said
    assert "(with MUJOCO_EGL_DEVICE_ID=70). Unset what is not meant (MUJOCO_EGL_DEVICE_ID)" in said
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
