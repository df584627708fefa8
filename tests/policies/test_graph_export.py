"""Policies as one file that runs without Atlas: ONNX and TorchScript."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atlas.config import load_config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.errors import InputError
from atlas.policies import graph_export
from atlas.policies.exporting import export_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor
from atlas.types import ActionSpec, Batch

TEXTS = ["lift the red cube", "put the green one away"]
SMALL = ["model.fusion={dim: 32, layers: 1, heads: 2}", "model.language={dim: 16, layers: 1, heads: 2}"]
KEYPOINTS = "model.vision={name: keypoints, width: 8, keypoints: 8}"
OTHERS = {
    "flow": [KEYPOINTS, "model.head={name: flow_matching, dim: 32, layers: 1, heads: 2, steps: 2}"],
    "vggt": ["model.vision={name: vggt, stem_width: 8, keypoints: 8, embed_dim: 32, depth: 1, num_heads: 2}"],
}
Make = Callable[..., tuple[Path, ModularPolicy]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A policy of two sources with weights at random, those that begin at zero too, saved."""

    def make(settings: list[str]) -> tuple[Path, ModularPolicy]:
        rng = np.random.default_rng(0)
        config = load_config({}, [*SMALL, *settings])
        sources = tuple(
            DatasetStatistics(
                name, 10, 2, *(ColumnStatistics.of(rng.normal(size=(50, width))) for width in (7, 8)), env
            )
            for name, env in (("first", None), ("second", "cubes"))
        )
        torch.manual_seed(0)
        processor = PolicyProcessor(("front", "wrist"), 32, 32, 4, 8, ActionSpec(), sources, config.model.processor)
        policy = ModularPolicy(config.model, processor).eval()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        policy.save_pretrained(tmp_path / "policy")
        return tmp_path / "policy", policy

    return make


def inputs(noise: int = 0) -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(3)
    images = torch.randint(256, (1, 2, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    made = [images, torch.randn(1, 8, generator=drawn), torch.tensor([1])]
    return made + ([torch.randn(1, 4, noise, generator=drawn)] if noise else [])


def answer(policy: ModularPolicy, given: list[torch.Tensor], source: int) -> torch.Tensor:
    return policy.sample(Batch(given[0], given[1], [TEXTS[int(given[2])]], torch.tensor([source])))


def test_a_torchscript_file_answers_as_the_policy(make: Make, tmp_path: Path) -> None:
    reference, policy = make([KEYPOINTS])

    done = export_policy(reference, "torchscript", tmp_path / "out", instructions=TEXTS, env="cubes")

    given = inputs()
    answers = torch.jit.load(done.folder / "policy.pt")(*given)
    torch.testing.assert_close(answers, answer(policy, given, source=1))
    assert (answers - answer(policy, given, source=0)).abs().max() > 0.01  # the other source's statistics
    assert done.difference is not None and done.difference < 1e-4
    described = json.loads((done.folder / "policy.json").read_text())
    assert described["cameras"] == ["front", "wrist"] and described["instructions"] == TEXTS
    assert described["inputs"]["images"]["shape"] == [1, 2, 3, 32, 32] and described["statistics_of"] == "second"
    assert ActionSpec.from_dict(described["action_spec"]) == ActionSpec()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_parts_are_followed_too(kind: str, make: Make, tmp_path: Path) -> None:
    reference, policy = make(OTHERS[kind])

    done = export_policy(reference, "torchscript", tmp_path / "out", instructions=TEXTS)

    given = inputs(noise=7 if kind == "flow" else 0)
    answers = torch.jit.load(done.folder / "policy.pt")(*given)
    if kind == "flow":  # with torch's generator in the same state, the policy draws the same noise
        draw = torch.Generator().manual_seed(5)
        given[3] = torch.randn(1, 4, 7, generator=draw)
        batch = Batch(given[0], given[1], [TEXTS[1]], torch.tensor([1]))
        wanted = policy.sample(batch, torch.Generator().manual_seed(5))
        torch.testing.assert_close(torch.jit.load(done.folder / "policy.pt")(*given), wanted, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(answers, answer(policy, given, source=1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_answers_as_the_policy(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    reference, policy = make([KEYPOINTS])

    done = export_policy(reference, "onnx", tmp_path / "out", instructions=TEXTS)

    session = onnxruntime.InferenceSession(done.folder / "policy.onnx", providers=["CPUExecutionProvider"])
    given = inputs()
    named = zip(("images", "proprio", "instruction"), given, strict=True)
    (answers,) = session.run(["actions"], {name: value.numpy() for name, value in named})
    torch.testing.assert_close(torch.from_numpy(answers), answer(policy, given, source=1), rtol=1e-4, atol=1e-4)


def test_a_file_that_answers_otherwise_is_not_left_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, _ = make([KEYPOINTS])

    def wrong(graph: Any, given: Any, file: Path) -> Any:
        file.write_bytes(b"other weights")
        return lambda _: torch.zeros(1, 4, 7)

    monkeypatch.setitem(graph_export._WRITERS, "torchscript", wrong)
    with pytest.raises(InputError, match=r"gives other actions than the policy: they differ by .* nothing was written"):
        export_policy(reference, "torchscript", tmp_path / "out", instructions=TEXTS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "torchscript"}, "needs --instruction TEXT"),
        ({"form": "torchscript", "instructions": TEXTS, "merge_lora": True}, "--merge-lora is for --to lerobot"),
        ({"form": "lerobot", "instructions": TEXTS}, "--instruction and --env are for --to onnx and torchscript"),
        ({"form": "onx"}, "Did you mean 'onnx'"),
    ],
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], said: str, make: Make, tmp_path: Path) -> None:
    reference, _ = make([KEYPOINTS])
    with pytest.raises(InputError, match=said):
        export_policy(reference, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_type_that_has_no_such_form_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another = SimpleNamespace(config=SimpleNamespace(type="smolvla"))
    monkeypatch.setattr(graph_export, "load_policy", lambda _: another)
    with pytest.raises(InputError, match=r"of the type 'smolvla', which cannot be written as torchscript.*atlas serve"):
        export_policy("outputs/any", "torchscript", tmp_path / "out", instructions=TEXTS)
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, _ = make([KEYPOINTS])
    monkeypatch.setattr(graph_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxscript and onnxruntime; pip install 'atlas-vla\[onnx\]'"):
        export_policy(reference, "onnx", tmp_path / "out", instructions=TEXTS)
