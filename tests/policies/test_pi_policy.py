"""pi0 and pi0.5 of LeRobot's folders: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atlas.data.image_fit import ImageFit
from atlas.errors import InputError
from atlas.policies.pi import pi_policy
from atlas.policies.pi.pi_names import TABLE, TIED_TABLE
from atlas.policies.pi.pi_policy import PiPolicy
from atlas.policies.published import flow_policy
from tests.policies.golden_pi import FOLDER, KINDS, differences, golden, limit, mistakes_of
from tests.policies.pi_policies import batch_of, build, cameras_of, changed, load

Weights = dict[str, torch.Tensor]


@pytest.fixture
def golden_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a training draw the golden noise and time."""

    def use(kind: str) -> None:
        numbers = golden(kind).inputs
        monkeypatch.setattr(flow_policy, "draw_training", lambda *_: (numbers["noise"], numbers["time"]))

    return use


def what_goes_in(policy: PiPolicy, kind: str) -> dict[str, torch.Tensor]:
    """As golden.safetensors calls it."""
    batch = batch_of(policy, kind)
    assert batch.actions is not None
    state = policy.state_scaler.normalize(batch.proprio, batch.source)
    ids, valid = policy.words(policy.prompts(batch, state), torch.device("cpu"))
    return {f"image.{slot}": picture for slot, picture in enumerate(policy.pictures(batch))} | {
        "tokens": ids,
        "token_mask": valid,
        "state_normalized": state,
        "action_normalized": policy.action_scaler.normalize(batch.actions, batch.source),
    }


@pytest.mark.parametrize("case", ["full", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_is_golden(kind: str, case: str) -> None:
    policy, known = build(kind, cameras_of(kind, case)), golden(kind).of(case)

    found = what_goes_in(policy, kind)

    worst = differences(found, known)
    assert worst.keys() == found.keys()
    assert {name: d for name, d in worst.items() if d > limit(name)} == {}
    assert torch.equal(found["tokens"], known["tokens"]) and torch.equal(found["token_mask"], known["token_mask"])


@pytest.mark.parametrize("case", ["full", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_golden(kind: str, case: str, golden_draws: Callable[[str], None]) -> None:
    policy, known = build(kind, cameras_of(kind, case)).eval(), golden(kind).of(case)
    golden_draws(kind)

    with torch.no_grad():
        terms = policy(batch_of(policy, kind))
        padded = policy(batch_of(policy, kind, padding=True))

    assert abs(float(terms.loss - known["loss"])) < limit("loss")
    is_pad = golden(kind).inputs["action_is_pad"]
    real = known["loss_elements"][..., : golden(kind).actions].mean(-1)
    assert is_pad.any()
    assert abs(float(padded.loss - real[~is_pad].mean())) < limit("loss")
    assert float(padded.n_valid) == float((~is_pad).sum())


@pytest.mark.parametrize("case", ["full", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_of_sampling_is_golden(kind: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, known = build(kind, cameras_of(kind, case)).eval(), golden(kind).of(case)
    steps: list[tuple[torch.Tensor, ...]] = []
    velocity = policy.velocity

    def watched(prefix: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        v = velocity(prefix, x, time)
        steps.append((time[0], x, v))
        return v

    monkeypatch.setattr(policy, "velocity", watched)
    batch = batch_of(policy, kind)
    actions = policy.sample_chunk(batch, start=golden(kind).inputs["sample_noise"])

    times, xs, vs = (torch.stack(each) for each in zip(*steps, strict=True))
    found = {"sample.timestep": times, "sample.x_t": xs, "sample.v_t": vs, "sample.actions": actions}
    found["sample.actions_normalized"] = policy.action_scaler.normalize(actions, batch.source)
    worst = differences(found, known)
    assert worst.keys() == found.keys()
    assert {name: d for name, d in worst.items() if d > limit(name)} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_real_time_chunking_is_golden(kind: str) -> None:
    told = json.loads((FOLDER / kind / "inputs.json").read_text())["rtc"]
    policy, known = load(FOLDER / kind), golden(kind).of("full")
    batch = batch_of(policy, kind)

    guide = policy.guidance(known["rtc.prev_chunk_left_over"], told["inference_delay"], told["execution_horizon"])
    start = golden(kind).inputs["sample_noise"].flip(0)
    chunk = policy.grow(batch, policy.look(batch), start=start, guide=guide)

    actions = chunk[..., : golden(kind).actions]
    assert (actions - known["rtc.actions_normalized"]).abs().max() < limit("rtc.")
    assert (policy.grow(batch, policy.look(batch), start=start) - chunk).abs().max() > 0.01


def test_the_step_of_sampling_is_compiled_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own tracing; what is made of it then is the compiler's, which takes minutes here."""
    compile_as_it_is = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, mode: compile_as_it_is(function, dynamic=dynamic))
    policy = build("pi05", compile_sampling=True, sampling_steps=2).eval()
    batch, start = batch_of(policy, "pi05"), golden("pi05").inputs["sample_noise"]
    torch._dynamo.utils.counters.clear()

    actions = policy.sample_chunk(batch, start)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.network.action_out_proj.bias.add_(1)
    changed = other.sample_chunk(batch, start)

    assert sum(torch._dynamo.utils.counters["stats"].values()) > 0
    plain = build("pi05", sampling_steps=2).eval()
    assert (actions - plain.sample_chunk(batch, start)).abs().max() < 1e-5
    assert (changed - actions).abs().max() > 0.1, "a copy goes by its own weights"
    assert policy.config.compiling_key == "model.compile_sampling"


def test_cuda_graphs_are_not_left_out_silently() -> None:
    policy = build("pi0", compile_sampling=True, cuda_graphs=True).eval()

    with pytest.raises(InputError, match="cuda_graphs is true, but the policy is on the device 'cpu'"):
        policy.sample(batch_of(policy, "pi0"))
    with pytest.raises(ValueError, match="cuda_graphs is true, but compile_sampling is false"):
        build("pi0", cuda_graphs=True)


# ---- mistakes that are noticed ---------------------------------------------------------------------------


def _fit(**change: Any) -> Callable[[PiPolicy, pytest.MonkeyPatch], None]:
    def plant(policy: PiPolicy, _: pytest.MonkeyPatch) -> None:
        policy.processor = replace(policy.processor, fit=replace(policy.fit, **change))

    return plant


def _stretched(policy: PiPolicy, patch: pytest.MonkeyPatch) -> None:
    def wrong(fit: ImageFit, images: torch.Tensor) -> torch.Tensor:
        flat = images.reshape(-1, *images.shape[-3:])
        size = fit.height, fit.width
        return F.interpolate(flat, size, mode="bilinear", align_corners=False).view(*images.shape[:-2], *size)

    patch.setattr(ImageFit, "__call__", wrong)


def _bicubic(policy: PiPolicy, patch: pytest.MonkeyPatch) -> None:
    right = F.interpolate
    patch.setattr(
        "atlas.data.image_fit.F.interpolate", lambda x, **settings: right(x, **settings | {"mode": "bicubic"})
    )


def _border_of_before(policy: PiPolicy, patch: pytest.MonkeyPatch) -> None:
    right = F.pad
    patch.setattr("atlas.data.image_fit.F.pad", lambda x, sides, value=0.0: right(x, sides, value=-1.0))


def _no_newline(policy: PiPolicy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pi_policy, "command_prompts", lambda texts: [text.rstrip("\n") for text in texts])


def _no_bos(policy: PiPolicy, patch: pytest.MonkeyPatch) -> None:
    words = policy.words
    patch.setattr(policy, "words", lambda *args: tuple(t.roll(-1, dims=1) for t in words(*args)))


def _padded_state(policy: PiPolicy, patch: pytest.MonkeyPatch) -> None:
    right = pi_policy.state_prompts
    width = policy.settings.shape.max_state_dim
    patch.setattr(
        pi_policy, "state_prompts", lambda texts, state: right(texts, F.pad(state, (0, width - state.shape[1])))
    )


def _mean_std(policy: PiPolicy, _: pytest.MonkeyPatch) -> None:
    files = replace(policy.description.files, modes={"STATE": "mean_std", "ACTION": "mean_std"})
    scalers = replace(policy.description, files=files).scalers(policy.processor)
    policy.state_scaler, policy.action_scaler = scalers


MISTAKES = {
    "antialiased_resize": _fit(antialias=True),
    "border_on_the_other_side_or_centred": _fit(placing="right_bottom"),
    "resize_without_keeping_proportions": _stretched,
    "bicubic_resize": _bicubic,
    "border_minus_one_before_scaling_as_in_0_4_4": _border_of_before,
    "newline_not_appended": _no_newline,
    "bos_not_put_in_front": _no_bos,
    "state_padded_before_the_prompt_as_in_0_4_4": _padded_state,
    "mean_std_instead_of_quantiles": _mean_std,
}


def _planted() -> list[tuple[str, str]]:
    return [(kind, name) for kind in KINDS for name in MISTAKES if name in mistakes_of(kind)]


@pytest.mark.parametrize(("kind", "name"), _planted())
def test_a_planted_mistake_shows_where_it_should(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mistakes_of(kind)[name]["first_tensor_that_differs"]
    policy, known = load(FOLDER / kind), golden(kind).of("full")
    MISTAKES[name](policy, monkeypatch)

    worst = differences(what_goes_in(policy, kind), known)
    actions = policy.sample_chunk(batch_of(policy, kind), start=golden(kind).inputs["sample_noise"])

    assert worst[first] > limit(first)
    assert (actions - known["sample.actions"]).abs().max() > limit("sample.")


# ---- forms of a folder -----------------------------------------------------------------------------------


def _prefixed(weights: Weights) -> Weights:
    return {f"model.{name}": tensor for name, tensor in weights.items()}


def _both_tables(weights: Weights) -> Weights:
    """As newer ones are saved: `embed_tokens` is the trained one."""
    table = weights[TIED_TABLE]
    return _prefixed(weights | {TABLE: table.clone(), TIED_TABLE: torch.zeros_like(table)})


def _newer_vision(weights: Weights) -> Weights:
    return {name.replace(".vision_model.", "."): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("form", [_prefixed, _both_tables, _newer_vision])
@pytest.mark.parametrize("kind", KINDS)
def test_all_forms_of_a_file_are_the_same(kind: str, form: Callable[[Weights], Weights], tmp_path: Path) -> None:
    policy = load(changed(kind, tmp_path / "policy", form))

    actions = policy.sample_chunk(batch_of(policy, kind), start=golden(kind).inputs["sample_noise"])

    assert (actions - golden(kind).of("full")["sample.actions"]).abs().max() < limit("sample.")


@pytest.mark.parametrize("kind", KINDS)
def test_processor_files_of_the_release_before(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(FOLDER / kind / "v044", folder)
    for name in ("model.safetensors", "backbone.json"):
        shutil.copy(FOLDER / kind / name, folder)
    shutil.copytree(FOLDER / kind / "tokenizer", folder / "tokenizer")
    policy = load(folder)

    actions = policy.sample_chunk(batch_of(policy, kind), start=golden(kind).inputs["sample_noise"])

    assert (actions - golden(kind).of("full")["sample.actions"]).abs().max() < limit("sample.")


@pytest.mark.parametrize("kind", KINDS)
def test_without_statistics_the_datasets_are_taken_and_it_is_said(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(kind, tmp_path / "policy")
    for file in folder.glob("policy_*"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["normalization_mapping"]  # as in the published base
    (folder / "config.json").write_text(json.dumps(config))

    policy = build(kind, folder=folder, tokenizer=str(folder / "tokenizer"))

    assert "scaled by the dataset's" in caplog.text
    found = policy.state_scaler.normalize(golden(kind).inputs["state"], torch.zeros(3, dtype=torch.int64))
    assert (found - golden(kind).of("full")["state_normalized"]).abs().max() < 1e-6


# ---- what is refused -------------------------------------------------------------------------------------

_LAYER = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.up_proj.weight"


def _without(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name != _LAYER}


def _another(weights: Weights) -> Weights:
    return weights | {"stranger.weight": torch.zeros(1)}


def _misshaped(weights: Weights) -> Weights:
    return weights | {_LAYER: weights[_LAYER][:-1].clone()}


def _not_finite(weights: Weights) -> Weights:
    return weights | {_LAYER: weights[_LAYER] * float("nan")}


def _twice(weights: Weights) -> Weights:
    return weights | _prefixed({_LAYER: weights[_LAYER].clone()})


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (_without, f"'{_LAYER}' is missing"),
        (_another, "'stranger.weight' is not part of this policy"),
        (_misshaped, f"'{_LAYER}' has shape"),
        (_not_finite, "holds values that are not finite"),
        (_twice, "some tensors twice"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    weights: Callable[[Weights], Weights], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        load(changed("pi0", tmp_path / "policy", weights))

    assert said in str(error.value)


@pytest.mark.parametrize("change", [{"use_relative_actions": True}, {"image_resolution": [70, 70]}, {"n_obs_steps": 2}])
def test_values_of_config_json_that_atlas_does_not_have_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(changed("pi05", tmp_path / "policy", config=change))

    assert f"'{next(iter(change))}'" in str(error.value)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = changed("pi0", tmp_path / "policy")
    sizes = json.loads((folder / "backbone.json").read_text())
    sizes["expert"]["depth"] += 1
    (folder / "backbone.json").write_text(json.dumps(sizes))

    with pytest.raises(InputError, match="depth is 3 in text and 4 in expert"):
        load(folder)
