"""Steps of every kind of policy on "cuda", without a GPU: on a device that computes nothing, whose tensors have only
shapes, types and places.

It shows what is computed on which device, what is trained in which precision, and what the host sends and waits for. It
cannot show numbers, memory, streams or speed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TORCH = "2.13"  # whose internals the device is made of
SOURCE = Path(__file__).with_name("device.cpp")
BATCHES = 2  # the step's own and the next one, which is on its way
# A batch's tensors; what is said of its words, in one; and the one wait, for the two numbers that all must agree on.
BATCH = {"sent training/perf/prefetch.py:_sent": 6 * BATCHES}
WORDS = {"sent policies/modular/language_encoders/language_tokens.py:pad_and_send": 1}
REMEMBERED = {
    "sent policies/modular/language_encoders/language_tokens.py:__init__": 1,
    "sent policies/modular/language_encoders/language_tokens.py:of": 1,
}
PUBLISHED_WORDS = {"sent policies/published/flow_policy.py:words": 1}
STATE_IN_WORDS = {"waits policies/pi/pi_policy.py:state_prompts": 1}  # which are the host's to look up
AGREED = {"waits training/parallel/strategy.py:largest": 2}
STEPS = {
    "keypoints": BATCH | REMEMBERED | AGREED,
    "vggt of keypoints": BATCH | WORDS | AGREED,
    "vggt of convolutions": {"sent training/perf/prefetch.py:_sent": 6 * (BATCHES + 1)}  # in two parts
    | {"sent policies/modular/language_encoders/language_tokens.py:pad_and_send": 2}
    | AGREED,
    "vggt of patches": BATCH | WORDS | AGREED,
    "frozen": BATCH | WORDS | AGREED,
    "cached": BATCH | WORDS | AGREED,
    "adapters": BATCH | WORDS | AGREED,
    "trained on": BATCH | WORDS | AGREED,
    "smolvla": BATCH | PUBLISHED_WORDS | AGREED,
    "pi0": BATCH | PUBLISHED_WORDS | AGREED,
    "pi05": BATCH
    | PUBLISHED_WORDS
    | AGREED
    | {"waits policies/pi/pi_policy.py:state_prompts": 1},  # the state in words
    "vlm": BATCH
    | AGREED
    | {
        "sent policies/vlm/prompts.py:batch": 1,
        "sent policies/modular/vision_encoders/huggingface_images.py:apply": 1,  # by what pixels are scaled
    },
}
VALIDATED = "keypoints"
SLOW = ("frozen", "trained on")  # what is special in them, others have: a teacher is frozen, and adapters are trained
POLICIES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in STEPS]


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest, shared_folder: Path) -> Path:
    """device.cpp, compiled once for this torch, or once a run of the tests where pytest keeps no cache."""
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    if not torch.__version__.startswith(f"{TORCH}.") or torch.version.cuda is not None or sys.platform != "linux":
        pytest.skip(f"needs torch {TORCH}'s build for CPUs, on Linux")
    version = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    cache = getattr(request.config, "cache", None)
    library = (Path(cache.mkdir("fake_cuda")) if cache is not None else shared_folder) / f"device_{version}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        include = Path(torch.__file__).parent / "include"
        command = [compiler, "-O0", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(partial), f"-I{include}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and re.search("std=c\\+\\+20", done.stderr):
            pytest.skip("the compiler has no C++20")
        assert done.returncode == 0, done.stderr
        partial.replace(library)
    return library


@pytest.fixture(scope="module")
def found(library: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the process with the device has found, of all policies."""
    folder = tmp_path_factory.mktemp("fake_cuda")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    asked = {item.callspec.params.get("policy") for item in request.session.items if hasattr(item, "callspec")}
    names = [name for name in STEPS if name in asked or name == VALIDATED]
    command = [sys.executable, "-m", "tests.fake_cuda.process", str(library), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return answers


def counted(census: list[tuple[str, str, int]]) -> dict[str, int]:
    return {f"{what} {place}": count for what, place, count in census}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_sends_its_batch_ahead_and_waits_once(found: dict[str, Any], policy: str) -> None:
    """That it ran shows that nothing is on the wrong device. A new transfer, or a new wait, is named here with its
    function in Atlas: it costs every step of every training on a GPU."""
    assert counted(found[policy]["step"]) == STEPS[policy]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_trained_is_in_float32_on_the_device(found: dict[str, Any], policy: str) -> None:
    assert found[policy]["trained in"] == found[policy]["moments in"] == ["torch.float32"]
    assert found[policy]["devices"] == ["cuda:0"]


@pytest.mark.parametrize("policy", POLICIES)
def test_ranks_send_each_other_no_tensor_of_a_gpu(found: dict[str, Any], policy: str) -> None:
    assert found[policy]["saved from"] == ["cpu"]


def test_validation_waits_when_it_is_over(found: dict[str, Any]) -> None:
    census = counted(found[VALIDATED]["validation"])

    assert {place for place in census if place.startswith("waits")} == {"waits training/metrics.py:read"}
    assert census["sent training/perf/prefetch.py:_sent"] == 6 * 2  # batches


def test_a_spread_policy_exchanges_each_group_once_a_pass(found: dict[str, Any]) -> None:
    """Eight ranks, of which seven do not exist: what this one asks for."""
    spread = found["spread"]
    back = spread["groups"] - 1  # the outermost group is not given up after the way forward

    assert spread["step"] == {
        "c10d::_allgather_base_": spread["groups"] + back,
        "c10d::_reduce_scatter_base_": spread["groups"],
    }
    assert spread["judging"] == {"_c10d_functional::all_gather_into_tensor": len(spread["weights"])}
    for name, rows in spread["weights"].items():
        share = -(-rows // 8)
        assert spread["rows"][name] == max(0, min(rows - 3 * share, share)), name
