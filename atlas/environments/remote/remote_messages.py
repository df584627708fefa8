"""The messages between a world's server and its client: msgpack frames with arrays (atlas/system/array_codec.py).

    -> {"do": "start", "image_size": 64}     <- {"value": the world's spec}
    -> {"do": "reset", "seed": 3, …}         <- {"value": an observation}
    -> {"do": "step", "action": […], …}      <- {"value": the step's result}
    -> {"do": "get_state"}, and so on        <- {"value": …}

or <- {"error": text, "input": whether the request was at fault}. Each connection has its own world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.errors import InputError
from atlas.types import ActionSpec, Observation

FORMAT = 1  # raised when the messages change
WorldKind = Literal["world", "simulator", "feeling simulator"]
_RESULT = ("reward", "terminated", "truncated", "success")


def spec_to_message(spec: EnvironmentSpec, simulator: bool, feels: bool) -> dict[str, Any]:
    """simulator: whether the world is a Simulator. feels: whether it also reports what its robot touches."""
    values = asdict(spec) | {"action_spec": spec.action_spec.to_dict(), "variable": []}
    del values["object_numbers"]  # only simulators in the same process have them
    return {"format": FORMAT, "simulator": simulator, "feels": feels, "spec": values}


def spec_from_message(message: Any, name: str) -> tuple[EnvironmentSpec, WorldKind]:
    """The spec, under this world's local name, and the kind of world. Raises InputError."""
    try:
        if message["format"] != FORMAT:
            raise InputError(f"The world at {name} speaks version {message['format']} of the messages, not {FORMAT}.")
        values = dict(message["spec"])
        values |= {"name": name, "action_spec": ActionSpec.from_dict(values["action_spec"]), "variable": frozenset()}
        for key in ("instructions", "cameras", "image_size"):
            values[key] = tuple(values[key])
        if values["action_bounds"] is not None:
            values["action_bounds"] = tuple(tuple(ends) for ends in values["action_bounds"])
        values["tiers"] = tuple((tier, tuple(members)) for tier, members in values["tiers"])
        kind: WorldKind = "simulator" if message["simulator"] else "world"
        if kind == "simulator" and message.get("feels"):  # an older server does not send it
            kind = "feeling simulator"
        return EnvironmentSpec(**values), kind
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The server at {name} is not an Atlas world ({error!r:.200}).") from None


def observation_to_message(observation: Observation | None) -> dict[str, Any] | None:
    if observation is None:
        return None
    return {
        "images": observation.images,
        "proprio": observation.proprio,
        "instruction": observation.instruction,
    }


def observation_from_message(message: Mapping[str, Any] | None) -> Observation | None:
    if message is None:
        return None
    images = {camera: np.array(image) for camera, image in message["images"].items()}
    return Observation(images, np.array(message["proprio"], np.float32), str(message["instruction"]))


def result_to_message(result: StepResult) -> dict[str, Any]:
    values: dict[str, Any] = {"reward": float(result.reward)}
    values |= {key: bool(getattr(result, key)) for key in _RESULT[1:]}
    return values | {"observation": observation_to_message(result.observation), "executed": result.executed}


def result_from_message(message: Mapping[str, Any]) -> StepResult:
    executed = message["executed"]
    return StepResult(
        observation=observation_from_message(message["observation"]),
        executed=None if executed is None else np.array(executed),
        **{key: message[key] for key in _RESULT},
    )
