"""Any environment of gymnasium, by its id, as an Environment."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from atlas.config.action_sections import grown_by
from atlas.config.gym_section import GymConfig
from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.environments.gym.gym_name import read_name
from atlas.environments.gym.gym_presets import PRESETS
from atlas.environments.gym.gym_spaces import (
    RENDER,
    ActionMeaning,
    ObservationParts,
    action_meaning,
    leaf_of,
    observation_parts,
    part_of,
)
from atlas.environments.installed_worlds import ELSEWHERE, check_installed, conflicting_pins, pins_explained
from atlas.environments.rendering import choose_renderer
from atlas.errors import InputError, did_you_mean, first_line
from atlas.types import Observation

logger = logging.getLogger(__name__)

EXTRAS = {"gym_aloha": "aloha", "gym_pusht": "pusht"}  # {module: the extra of Atlas that installs it}
SUCCESS_KEYS = ("is_success", "success")  # of info, where the config does not name one
TERMINATED = "terminated"
_RATE, _HORIZON = 20.0, 1000  # Hz and steps, where the environment does not give them
_SEEDS = 2**32  # numpy's older generators, which many worlds use, take no larger seeds


@dataclass(frozen=True)
class GymDescription:
    """The facts about an environment that are known once it has been started. success: see GymConfig; None: success is
    unknown."""

    parts: ObservationParts
    action: ActionMeaning
    success: str | float | None
    horizon: int
    image_sizes: dict[str, tuple[int, int]]  # (height, width) of each camera's images, before scaling
    undrawn: str | None  # why it draws no pictures; None where it draws them


def gym_spec(name: str, image_size: int) -> EnvironmentSpec:
    """Describe what an environment offers. This starts the environment to find out, once per process.

    Raises InputError for an unknown environment, and for one that cannot be read with these settings.
    """
    found = describe(name)
    _, config = read_name(name)
    sizes = [_scaled_size(size, image_size) for size in found.image_sizes.values()]
    low, high = (found.action.low, found.action.high) if config.clip else (None, None)
    return EnvironmentSpec(
        name=name,
        instructions=() if config.instruction is None else (config.instruction,),
        cameras=tuple(found.parts.cameras),
        image_size=sizes[0] if sizes else (image_size, image_size),
        proprio_dim=found.parts.proprio_dim + grown_by(config.proprio_rotations),
        horizon=found.horizon,
        action_spec=found.action.spec,
        action_bounds=None if low is None or high is None else (tuple(low.tolist()), tuple(high.tolist())),
        choices=found.action.choices,
        judged=found.success is not None,
    )


class GymEnvironment:
    """An environment of gymnasium. A seed gives the start that the environment has for it.

    Actions are clipped to the space. An episode ends where the environment ends it, or after `horizon` steps. It is a
    success from the step on at which the environment reports one. Images larger than `image_size` are scaled down until
    their shorter side fits.
    """

    def __init__(self, name: str, image_size: int = 128) -> None:
        """Raises InputError, see `gym_spec`."""
        self.spec = gym_spec(name, image_size)
        self._known = describe(name)
        identifier, self._config = read_name(name)
        self._env = _make(identifier, self._config, name)
        space = self._env.observation_space
        self._numbers = [(part, leaf_of(space, part)) for part in self._known.parts.proprio]  # with their spaces
        self._image_size = image_size
        self._instruction = self._config.instruction or ""
        self._last: Any = None
        self._steps, self._reward, self._success = 0, 0.0, False

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        """See `Environment.reset`."""
        if instruction and instruction != self._instruction:
            has = f"only the instruction '{self._instruction}'" if self._instruction else "no instructions"
            raise InputError(f"The environment '{self.spec.name}' has {has}; it cannot take '{instruction}'.")
        self._last, _ = self._env.reset(seed=None if seed is None else seed % _SEEDS)
        self._steps, self._reward, self._success = 0, 0.0, False
        return self._observe()

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """Apply one action [A]; a discrete one is rounded to the nearest choice."""
        taken, executed = self._fitted(np.asarray(action, np.float64))
        self._last, reward, terminated, truncated, info = self._env.step(taken)
        self._steps += 1
        self._reward += float(reward)
        self._success = self._judge(info, bool(terminated))
        return StepResult(
            observation=self._observe() if observe else None,
            reward=float(reward),
            terminated=bool(terminated),
            truncated=not terminated and (bool(truncated) or self._steps >= self.spec.horizon),
            success=self._success,
            executed=executed,
        )

    @property
    def simulation(self) -> Any:
        """What gym-aloha's environments run on, dm_control's Environment, for experts."""
        return self._env.unwrapped._env

    def picture(self, size: int) -> np.ndarray | None:
        """See `Pictured.picture`."""
        if self._known.undrawn is not None:
            return None
        drawn = Image.fromarray(self._drawn(size))
        return np.asarray(ImageOps.pad(drawn, (size, size)))

    def close(self) -> None:
        self._env.close()

    # ---- inside ------------------------------------------------------------------------------------------

    def _fitted(self, action: np.ndarray) -> tuple[Any, np.ndarray]:
        """The action in the environment's form, and as float64 [A]."""
        meaning = self._known.action
        if action.shape != (meaning.spec.dim,):
            raise InputError(f"'{self.spec.name}' takes {meaning.spec.dim} numbers, got {action.shape}.")
        if meaning.choices is not None:
            choice = int(np.clip(np.rint(action[0]), 0, meaning.choices - 1))
            return int(self._env.action_space.start) + choice, np.array([choice], np.float64)
        space = self._env.action_space
        clipped = np.clip(action, meaning.low, meaning.high) if self._config.clip else action
        return clipped.reshape(space.shape).astype(space.dtype), clipped

    def _drawn(self, shorter: int) -> np.ndarray:
        draw = PRESETS[self.spec.name].draw if self.spec.name in PRESETS else None
        return _drawn(self._env) if draw is None else draw(self._env, shorter)

    def _judge(self, info: Mapping[str, Any], terminated: bool) -> bool:
        wanted = self._known.success
        if wanted is None:
            return False
        if isinstance(wanted, float):
            return self._reward >= wanted
        return self._success or (terminated if wanted == TERMINATED else bool(np.any(info.get(wanted, False))))

    def _observe(self) -> Observation:
        from gymnasium.spaces import flatten

        images = {}
        for camera, part in self._known.parts.cameras.items():
            image = self._drawn(self._image_size) if part == RENDER else np.asarray(part_of(self._last, part))
            images[camera] = _scaled(image, self._image_size)
        numbers = [
            np.asarray(flatten(space, part_of(self._last, part)), np.float32).reshape(-1)
            for part, space in self._numbers
        ]
        proprio = np.concatenate([np.zeros(0, np.float32), *numbers])
        if self._config.proprio_rotations:
            from atlas.data.lerobot.action_columns import convert_state  # imports torch, which worlds do without

            proprio = convert_state(proprio[None], self._config.proprio_rotations)[0]
        return Observation(images, proprio, self._instruction)


@lru_cache(maxsize=32)
def describe(name: str) -> GymDescription:
    """Start an environment, take one step, and close it. Raises InputError, see `gym_spec`."""
    identifier, config = read_name(name)
    env = _make(identifier, config, name)
    try:
        metadata = env.metadata or {}
        rate = config.control_hz or float(metadata.get("render_fps") or _RATE)
        parts = observation_parts(env.observation_space, config, f"'{name}'")
        action = action_meaning(env.action_space, config, rate, f"'{name}'")
        if config.proprio_rotations and (end := config.proprio_rotations[-1].columns[1]) > parts.proprio_dim:
            raise InputError(
                f"'{name}': proprio_rotations names dimensions up to {end}, but proprio has {parts.proprio_dim}."
            )
        info = _first_step(env, name)
        undrawn = _undrawn(env, name)
        if RENDER in parts.cameras.values() and undrawn is not None:
            raise InputError(
                f"'{name}' has a camera with the environment's picture, but the environment draws none: {undrawn}."
            )
        sizes = {}
        for camera, part in parts.cameras.items():
            shape = _drawn(env).shape if part == RENDER else leaf_of(env.observation_space, part).shape
            sizes[camera] = (int(shape[0]), int(shape[1]))
        limit = env.spec.max_episode_steps if env.spec is not None else None
        return GymDescription(
            parts, action, _success(config, info, env, name), config.horizon or limit or _HORIZON, sizes, undrawn
        )
    finally:
        env.close()


def _success(config: GymConfig, info: Mapping[str, Any], env: Any, name: str) -> str | float | None:
    """Find what reports success. Raises InputError for a key that info lacks."""
    wanted = config.success
    if isinstance(wanted, str):
        if wanted != TERMINATED and wanted not in info:
            has = ", ".join(sorted(info)) or "no keys at all"
            raise InputError(
                f"'{name}': success names '{wanted}', which is not a key of its info.{did_you_mean(wanted, info)} It "
                f"has: {has}. Expected one of them, {TERMINATED}, or the sum of rewards to reach."
            )
        return wanted
    if wanted is not None:
        return float(wanted)
    named = next((key for key in SUCCESS_KEYS if key in info), None)
    if named is None and env.spec is not None and env.spec.reward_threshold is not None:
        return float(env.spec.reward_threshold)
    return named


def _make(identifier: str, config: GymConfig, name: str) -> Any:
    """gymnasium's environment. Raises InputError, which says how to install what is missing."""
    _prepare_drawing()
    try:
        import gymnasium
        from gymnasium import error as errors
    except ModuleNotFoundError:
        raise InputError(f"The environment '{name}' needs gymnasium: pip install 'atlas-vla[gym]'") from None
    _import_namespace(identifier)
    arguments = {"disable_env_checker": True, **config.make}
    try:
        try:
            made = gymnasium.make(identifier, **{"render_mode": "rgb_array", **arguments})
        except TypeError as error:
            if "render_mode" not in str(error) or "render_mode" in arguments:
                raise
            made = gymnasium.make(identifier, **arguments)  # an environment that draws nothing
        if name in PRESETS:
            PRESETS[name].prepare(made)
        return made
    except errors.DependencyNotInstalled as error:
        raise InputError(f"The environment '{name}' needs a package that is missing: {first_line(error)}.") from None
    except (errors.NamespaceNotFound, ModuleNotFoundError) as error:
        module = identifier.split("/")[0]
        if module in EXTRAS:
            check_installed(name, module, EXTRAS[module])
        raise InputError(
            f"'{name}' is not installed: install the package that provides it (gymnasium: {first_line(error)})."
        ) from None
    except errors.Error as error:
        raise InputError(f"There is no environment '{name}' (gymnasium: {first_line(error)}).") from None
    except Exception as error:  # from the environment's constructor: wrong arguments, missing files
        module = identifier.split("/")[0]
        pins = conflicting_pins(module.replace("_", "-")) if module in EXTRAS else []
        why = f"; its requirements conflict with what is installed: {'; '.join(pins)}. {ELSEWHERE}" if pins else "."
        raise InputError(f"'{name}' cannot be started ({type(error).__name__}: {first_line(error)}){why}") from error


def _prepare_drawing() -> None:
    """Make MuJoCo and pygame, which draw most of these worlds, work without a screen and print nothing."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # otherwise pygame prints on stdout
    if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    choose_renderer()


def _import_namespace(identifier: str) -> None:
    """Import the package in an identifier: packages register their environments at import, usually under their name."""
    package, slash, _ = identifier.partition("/")
    if slash and ":" not in package and package.isidentifier() and importlib.util.find_spec(package) is not None:
        with pins_explained(identifier, package.replace("_", "-")):
            importlib.import_module(package)


def _first_step(env: Any, name: str) -> dict[str, Any]:
    """The entries of info after a reset and after a step."""
    try:
        _, at_start = env.reset(seed=0)
        env.action_space.seed(0)
        *_, after = env.step(env.action_space.sample())
    except Exception as error:  # the environment may raise anything
        raise InputError(f"'{name}' cannot be played ({type(error).__name__}: {first_line(error)}).") from error
    return {**at_start, **after}


def _undrawn(env: Any, name: str) -> str | None:
    """Why an environment draws no pictures; None where it does."""
    if env.render_mode != "rgb_array":
        return "it has no render mode rgb_array"
    try:
        _drawn(env)
    except Exception as error:  # such as a missing package for drawing, or no OpenGL
        logger.info("'%s' draws no pictures: %s.", name, first_line(error))
        return first_line(error)
    return None


def _drawn(env: Any) -> np.ndarray:
    """The picture that the environment draws, uint8 [H, W, 3]."""
    picture = env.render()
    if isinstance(picture, list):
        picture = picture[-1]
    if picture is None:
        raise RuntimeError("render() gives nothing")
    return np.ascontiguousarray(np.asarray(picture, np.uint8)[..., :3])


def _scaled_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Height and width after scaling down until the shorter side has this many pixels; smaller sizes stay."""
    factor = min(1.0, shorter / min(size))
    return round(size[0] * factor), round(size[1] * factor)


def _scaled(image: np.ndarray, shorter: int) -> np.ndarray:
    height, width = _scaled_size((image.shape[0], image.shape[1]), shorter)
    if (height, width) == image.shape[:2]:
        return np.ascontiguousarray(image, np.uint8)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
