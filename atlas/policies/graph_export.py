"""Writes a policy as one file that runs without Atlas, ONNX or TorchScript, with a description of its inputs.

The file must give the policy's actions in trials; otherwise nothing is written.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from atlas.errors import InputError, first_line
from atlas.policies.base import Policy, load_policy
from atlas.system.files import partial_folder, write_json
from atlas.types import Batch

logger = logging.getLogger(__name__)

FILES = {"onnx": "policy.onnx", "torchscript": "policy.pt"}
TOLERANCE = 1e-4  # of half of an action's usual range
_TRIALS = 8
_OPSET = 20

Answers = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # named inputs to actions [1, H, A]


@runtime_checkable
class HasGraph(Protocol):
    """A policy that can be written as tensor operations alone."""

    def as_graph(self, instructions: Sequence[str], source: int) -> tuple[nn.Module, int]:
        """(a module, D). The module maps images uint8 [1, V, 3, S, S], proprio [1, P], instruction int64 [1] and noise
        [1, H, D] to actions [1, H, A]; for a policy without noise, D is 0 and there is no such input. source: whose
        statistics apply."""
        ...


@dataclass(frozen=True)
class Exported:
    """difference: the largest difference found between the file's actions and the policy's, as a share of half of an
    action's usual range; None for a form that Atlas cannot run."""

    folder: Path
    difference: float | None = None


def export_graph(reference: str | Path, form: str, out: Path, instructions: Sequence[str], env: str | None) -> Exported:
    """Write a policy for these instructions into a folder that is new or empty.

    form: a key of FILES. env: the world whose statistics apply; None: see `processor.source_for`. Raises InputError for
    a policy that cannot be written in this form, an exporter that is not installed or fails, and a file whose actions
    differ from the policy's.
    """
    _check_packages(form)
    policy = load_policy(reference)
    if not isinstance(policy, HasGraph):
        raise InputError(
            f"{reference} is a policy of the type '{policy.config.type}', which cannot be written as {form}; "
            "policies of the type 'modular' can. Serve it instead, by `atlas serve`."
        )
    if not instructions:
        raise InputError(f"--to {form} needs --instruction TEXT, once for each instruction of the file.")
    source = policy.processor.source_for(env)
    graph, noise_dim = policy.as_graph(instructions, source)
    trials = [_inputs(policy, noise_dim, source, number, len(instructions)) for number in range(_TRIALS)]
    with partial_folder(out) as partial:
        file = partial / FILES[form]
        try:
            with _quiet():
                answers = _WRITERS[form](graph, trials[0], file)
        except Exception as error:  # an exporter may raise anything
            raise InputError(f"{reference} cannot be written as {form}: {first_line(error)}") from error
        found = max(_difference(policy, graph, answers, trial, source, instructions) for trial in trials)
        if not found <= TOLERANCE:
            raise InputError(
                f"{reference} as {form} gives other actions than the policy: they differ by {found:.2g} of half of an "
                f"action's range, and at most {TOLERANCE:g} is accepted; nothing was written."
            )
        write_json(partial / "policy.json", _description(policy, form, trials[0], instructions, source, found))
        os.replace(partial, out)
    return Exported(out, found)


def _check_packages(form: str) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if form == "onnx" and missing:
        raise InputError(f"--to onnx needs {' and '.join(missing)}; pip install 'atlas-vla[onnx]'")


def _inputs(policy: Policy, noise_dim: int, source: int, seed: int, instructions: int) -> dict[str, torch.Tensor]:
    """Random images and noise, and a proprio drawn with the data's mean and deviation."""
    processor, draw = policy.processor, torch.Generator().manual_seed(seed)
    proprio = processor.statistics[source].proprio.repeated(processor.history.steps)
    spread = torch.randn(processor.proprio_width, generator=draw) * torch.tensor(proprio.std)
    size, inputs = processor.image_size, {}
    shape = (1, processor.views, 3, size, size)
    inputs["images"] = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    inputs["proprio"] = (torch.tensor(proprio.mean) + spread).float()[None]
    inputs["instruction"] = torch.tensor([seed % instructions])
    if noise_dim:
        inputs["noise"] = torch.randn(1, processor.action_horizon, noise_dim, generator=draw)
    return inputs


def _difference(
    policy: Policy,
    graph: nn.Module,
    answers: Answers,
    inputs: dict[str, torch.Tensor],
    source: int,
    texts: Sequence[str],
) -> float:
    """The largest difference between the file's actions and the policy's, or the graph's where it takes noise."""
    if "noise" in inputs:
        with torch.no_grad():
            wanted = graph(*inputs.values())
    else:
        text = texts[int(inputs["instruction"])]
        wanted = policy.sample(Batch(inputs["images"], inputs["proprio"], [text], torch.tensor([source])))
    actions = policy.processor.statistics[source].action
    usual = (torch.tensor(actions.q99) - torch.tensor(actions.q01)).clamp(min=1e-3) / 2
    return float(((answers(inputs) - wanted).abs() / usual).max())


def _write_onnx(graph: nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> Answers:
    program = torch.onnx.export(
        graph,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=["actions"],
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(file, external_data=False)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def answers(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        found: Any = session.run(["actions"], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(np.asarray(found[0]))

    return answers


def _write_torchscript(graph: nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> Answers:
    traced = torch.jit.trace(graph, tuple(inputs.values()), check_trace=False)
    written = io.BytesIO()
    torch.jit.save(traced, written)
    file.write_bytes(written.getvalue())
    read = torch.jit.load(io.BytesIO(written.getvalue()))

    def answers(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(read(*inputs.values()))

    return answers


_WRITERS: dict[str, Callable[[nn.Module, dict[str, torch.Tensor], Path], Answers]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
}


def _description(
    policy: Policy,
    form: str,
    inputs: dict[str, torch.Tensor],
    instructions: Sequence[str],
    source: int,
    difference: float,
) -> dict[str, Any]:
    """policy.json: all that a user of only this folder needs to know."""
    processor = policy.processor
    meaning = {
        "images": "upright RGB, cropped to a centred square and resized (bilinear, antialiased), of `cameras` in order",
        "proprio": "as the dataset has it, unscaled",
        "instruction": "the number of one of `instructions`",
        "noise": "standard normal; zeros give the same actions each time",
    }
    described = {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "meaning": meaning[name]}
        for name, value in inputs.items()
    }
    return {
        "form": form,
        "file": FILES[form],
        "inputs": described,
        "cameras": list(processor.cameras),
        "history": processor.history.to_dict(),  # images and proprio are those of each frame, the earliest first
        "instructions": list(instructions),
        "output": {"actions": [1, processor.action_horizon, processor.action_spec.dim]},
        "action_spec": processor.action_spec.to_dict(),
        "statistics_of": processor.statistics[source].source,
        "difference_from_policy": difference,
        "torch": torch.__version__,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings and log lines."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for each in loggers:
                each.setLevel(logging.ERROR)
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
