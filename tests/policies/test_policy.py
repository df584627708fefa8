"""The policy as a whole: losses, sampling, saving and loading."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from atlas.config import load_config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics, scaling_of
from atlas.errors import InputError
from atlas.policies.attention import ShowsAttention
from atlas.policies.base import load_policy
from atlas.policies.modular.parts import HuggingFaceLanguageConfig
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.modular.vision_encoders.keypoints import SpatialSoftmax
from atlas.policies.processor import PolicyProcessor, Scaler, scaled_well
from atlas.types import ActionSpec, Batch, Observation

HORIZON, SIZE = 4, 32
SMALL = ["model.fusion.dim=32", "model.fusion.layers=1", "model.language.dim=16", "model.language.layers=1"]
VISIONS = {
    "keypoints": ["model.vision={name: keypoints, width: 8, keypoints: 8}"],
    "vggt-keypoints": [
        "model.vision={name: vggt, stem_width: 8, keypoints: 8, keypoint_groups: 4, embed_dim: 32, depth: 1}"
    ],
    "vggt-conv": ["model.vision={name: vggt, stem: conv, embed_dim: 32, depth: 1}"],
    "vggt-patch": ["model.vision={name: vggt, stem: patch, embed_dim: 32, depth: 1}"],
}


def make_processor(sources: int = 1) -> PolicyProcessor:
    rng = np.random.default_rng(0)
    statistics = tuple(
        DatasetStatistics(
            f"set {i}",
            10,
            2,
            ColumnStatistics.of(rng.normal(i, 1, (50, 7))),
            ColumnStatistics.of(rng.normal(size=(50, 8))),
        )
        for i in range(sources)
    )
    scaling = load_config({}).model.processor
    return PolicyProcessor(("agentview", "eye_in_hand"), SIZE, SIZE, HORIZON, 8, ActionSpec(), statistics, scaling)


def make_policy(vision: str = "keypoints", *overrides: str) -> ModularPolicy:
    torch.manual_seed(0)
    return ModularPolicy(load_config({}, [*SMALL, *VISIONS[vision], *overrides]).model, make_processor())


def make_batch(size: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    actions = torch.rand(size, HORIZON, 7, generator=generator) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    return Batch(
        images=torch.randint(0, 256, (size, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        proprio=torch.randn(size, 8, generator=generator),
        instruction=["pick up the red cube", "pick up the green cube", "open it"][:size],
        source=torch.zeros(size, dtype=torch.int64),
        actions=actions,
        action_is_pad=torch.zeros(size, HORIZON, dtype=torch.bool),
    )


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("fusion", ["queries", "bidirectional"])
def test_it_says_where_it_looks_and_stays_as_it_is(vision: str, fusion: str) -> None:
    policy, batch = make_policy(vision, f"model.fusion.name={fusion}").eval(), make_batch()
    before = policy.sample(batch, torch.Generator().manual_seed(0))

    found = policy.attention(batch)

    assert isinstance(policy, ShowsAttention) and found is not None
    if found.points is not None:
        assert found.points.shape[:2] == (3, 2) and found.points.shape[3] == 3
        assert found.points.min() >= 0 and found.points.max() <= 1
    else:
        assert found.maps is not None and found.maps.shape[:2] == (3, 2) and found.maps.ndim == 4
        assert (found.maps >= 0).all() and (found.maps.sum((1, 2, 3)) <= 1 + 1e-5).all() and found.maps.max() > 0
    assert torch.equal(policy.sample(batch, torch.Generator().manual_seed(0)), before)


@pytest.mark.parametrize("vision", VISIONS)
def test_every_part_learns(vision: str) -> None:
    policy = make_policy(vision)

    terms = policy(make_batch())
    terms.loss.backward()

    assert torch.isfinite(terms.loss) and float(terms.n_valid) == 3 * HORIZON
    idle = [name for name, p in policy.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize("vision", ["keypoints", "vggt-keypoints"])
def test_where_things_are_is_not_rounded_by_autocast(vision: str) -> None:
    policy, batch = make_policy(vision), make_batch()
    stem = policy.vision.stems[0]
    maps, places, made = [], [], []
    (stem if vision == "keypoints" else stem.maps).register_forward_hook(lambda *io: maps.append(io[-1]))
    softmax = policy.vision.positions[0] if vision == "keypoints" else stem.softmax
    softmax.register_forward_hook(lambda *io: places.append(io[-1]))
    first = policy.vision.project[0] if vision == "keypoints" else stem
    first.register_forward_hook(lambda *io: made.append(io[-1] if vision == "keypoints" else io[-1][0]))

    with torch.autocast("cpu", torch.bfloat16):
        policy(batch)

    assert maps[0].dtype == torch.bfloat16
    assert torch.equal(places[0], SpatialSoftmax()(maps[0].float()))
    assert made[0].dtype == torch.float32


def test_losses_and_sample_take_one_look() -> None:
    policy, batch = make_policy().eval(), make_batch()
    looks: list[int] = []
    policy.vision.register_forward_hook(lambda *_: looks.append(1))

    terms, actions = policy.losses_and_sample(batch)

    assert len(looks) == 1
    torch.testing.assert_close(terms.loss, policy(batch).loss.detach())  # without gradients, some sums are others
    torch.testing.assert_close(actions, policy.sample(batch))


@pytest.mark.parametrize("vision", VISIONS)
def test_a_saved_policy_acts_the_same_when_loaded(vision: str, tmp_path: Path) -> None:
    policy = make_policy(vision).eval()
    policy.save_pretrained(tmp_path)

    loaded = load_policy(tmp_path)

    torch.testing.assert_close(loaded.sample(make_batch()), policy.sample(make_batch()), rtol=0, atol=0)
    assert loaded.processor == policy.processor and loaded.config == policy.config
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.yaml", "processor.json", "README.md"}


def test_a_policy_that_was_saved_without_a_type_is_modular(tmp_path: Path) -> None:
    policy = make_policy().eval()
    policy.save_pretrained(tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved.pop("type") == "modular"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))

    loaded = load_policy(tmp_path)

    assert isinstance(loaded, ModularPolicy) and loaded.config == policy.config


def test_padding_does_not_count() -> None:
    policy, batch = make_policy(), make_batch()
    assert batch.actions is not None and batch.action_is_pad is not None
    batch.action_is_pad[1:, 2:] = True
    before = policy(batch)

    batch.actions[1:, 2:] = 77.0
    after = policy(batch)

    assert float(before.n_valid) == HORIZON + 2 * 2
    torch.testing.assert_close(after.loss, before.loss)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    policy = make_policy("keypoints", "model.head.pose_weight=2", "model.head.gripper_weight=0.5")
    terms = policy(make_batch())

    torch.testing.assert_close(terms.loss, 2 * terms.terms["pose_loss"] + 0.5 * terms.terms["gripper_loss"])


@pytest.mark.parametrize("kind", ["l1", "mse", "smooth_l1"])
def test_pose_losses_are_of_normalised_actions(kind: str) -> None:
    policy, batch = make_policy("keypoints", f"model.head.pose_loss={kind}").eval(), make_batch()
    assert batch.actions is not None
    scaler = policy.action_scaler
    error = scaler.normalize(policy.sample(batch), batch.source) - scaler.normalize(batch.actions, batch.source)
    error = error[..., :6]
    expected = {
        "l1": error.abs(),
        "mse": error.square(),
        "smooth_l1": torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5),
    }[kind].mean()

    torch.testing.assert_close(policy(batch).terms["pose_loss"], expected)


def test_the_instruction_and_the_images_matter() -> None:
    policy, batch = make_policy().eval(), make_batch(1)
    before = policy.sample(batch)

    assert not torch.allclose(policy.sample(replace(batch, instruction=["something else"])), before)
    assert not torch.allclose(policy.sample(replace(batch, images=torch.zeros_like(batch.images))), before)


def test_an_answer_does_not_depend_on_the_company_in_the_batch() -> None:
    policy, batch = make_policy().eval(), make_batch()
    alone = replace(
        batch,
        images=batch.images[1:2],
        proprio=batch.proprio[1:2],
        instruction=batch.instruction[1:2],
        source=batch.source[1:2],
    )

    torch.testing.assert_close(policy.sample(alone)[0], policy.sample(batch)[1], rtol=1e-4, atol=1e-5)


def test_each_source_has_its_own_scale() -> None:
    torch.manual_seed(0)
    policy = ModularPolicy(load_config({}, [*SMALL, *VISIONS["keypoints"]]).model, make_processor(sources=2)).eval()
    batch = make_batch(2)
    values = torch.randn(2, HORIZON, 7)
    source = torch.tensor([0, 1])

    there_and_back = policy.action_scaler.denormalize(policy.action_scaler.normalize(values, source), source)

    torch.testing.assert_close(there_and_back, values, rtol=1e-5, atol=1e-5)
    first, second = (policy.action_scaler.normalize(batch.actions, torch.full((2,), s)) for s in (0, 1))
    assert not torch.allclose(first[..., :6], second[..., :6])
    torch.testing.assert_close(first[..., 6], batch.actions[..., 6])  # the gripper is left alone


@pytest.mark.parametrize("method", ["quantiles", "mean_std", "min_max"])
def test_a_dimension_that_never_moves_is_not_blown_up(method: str) -> None:
    columns = ColumnStatistics.of(np.full((50, 1), 0.3))

    normalized = Scaler([columns], method).normalize(torch.tensor([[0.3], [0.301]]), torch.zeros(2, dtype=torch.int64))

    torch.testing.assert_close(normalized, torch.tensor([[0.0], [1.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("still", [0.0, 1e-4])
def test_a_dimension_that_is_used_in_one_frame_of_hundreds_is_scaled_by_its_deviation(still: float) -> None:
    rng = np.random.default_rng(0)
    seldom = rng.uniform(-still, still, 400)
    seldom[7] = 0.9
    values = np.stack([rng.uniform(-1, 1, 400), seldom], axis=1)
    source = torch.zeros(400, dtype=torch.int64)
    columns = ColumnStatistics.of(values)
    methods = scaling_of(columns, "quantiles")
    scaler, before = Scaler([columns], "quantiles", methods=[methods]), Scaler([columns], "quantiles")

    normalized = scaler.normalize(torch.from_numpy(values).float(), source)

    assert methods == ("quantiles", "mean_std")
    assert normalized[:, 1].abs().max() < 25 and normalized[:, 1].square().mean() < 1.01
    torch.testing.assert_close(scaler.denormalize(normalized, source), torch.from_numpy(values).float())
    torch.testing.assert_close(normalized[:, 0], before.normalize(torch.from_numpy(values).float(), source)[:, 0])


def test_what_policies_were_scaled_by_is_kept_with_them(tmp_path: Path) -> None:
    old, scaling = make_processor(), load_config({}).model.processor
    (columns,) = old.statistics
    new = replace(old, statistics=(replace(scaled_well(columns, scaling), proprio_scaling=("min_max",) * 8),))
    for processor in (old, new):
        processor.save(tmp_path / "processor.json")
        assert PolicyProcessor.load(tmp_path / "processor.json") == processor

    text = (tmp_path / "processor.json").read_text()
    (tmp_path / "processor.json").write_text(text.replace('"min_max"', '"median"', 1))
    with pytest.raises(InputError, match="proprio_scaling in statistics"):
        PolicyProcessor.load(tmp_path / "processor.json")
    before = json.loads(text)
    for name in ("action_scaling", "proprio_scaling"):  # as they were saved before they had them
        del before["statistics"][0][name]
    (tmp_path / "processor.json").write_text(json.dumps(before))
    assert PolicyProcessor.load(tmp_path / "processor.json") == old


def test_what_the_hand_feels_is_scaled_by_its_source() -> None:
    torch.manual_seed(0)
    processor = make_processor(sources=2)
    policy = ModularPolicy(load_config({}, [*SMALL, *VISIONS["keypoints"]]).model, processor).eval()
    batch = replace(make_batch(2), source=torch.tensor([1, 0]))
    felt: list[torch.Tensor] = []
    policy.fusion.proprio.register_forward_pre_hook(lambda _, given: felt.append(given[0]))

    policy.sample(batch)

    for row, source in enumerate((1, 0)):
        columns = processor.statistics[source].proprio
        mean, std = torch.tensor(columns.mean), torch.tensor(columns.std)
        torch.testing.assert_close(felt[0][row], (batch.proprio[row] - mean) / std)


def test_what_is_felt_far_outside_of_the_data_is_clipped_if_that_is_asked_for() -> None:
    plain = make_processor()
    clipping, columns = plain.with_margin(0.5), plain.statistics[0].proprio
    low, high = torch.tensor(columns.min), torch.tensor(columns.max)
    rows = torch.stack([low, (low + high) / 2, high, high + 0.4 * (high - low), high + 9 * (high - low), low - 99])
    source = torch.zeros(len(rows), dtype=torch.int64)

    scaled, clipped = (p.proprio_scaler().normalize(rows, source) for p in (plain, clipping))

    torch.testing.assert_close(clipped[:4], scaled[:4], rtol=0, atol=0)
    edges = torch.stack([high + 0.5 * (high - low), low - 0.5 * (high - low)])
    torch.testing.assert_close(clipped[4:], plain.proprio_scaler().normalize(edges, source[:2]))


def test_observations_go_the_way_of_training_images() -> None:
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8) for c in ("eye_in_hand", "agentview", "extra")}
    observation = Observation(images, rng.normal(size=8).astype(np.float32), "go")

    batch = make_processor().batch([observation])

    assert batch.images.shape == (1, 2, 3, SIZE, SIZE)
    np.testing.assert_array_equal(batch.images[0, 0].permute(1, 2, 0), images["agentview"])
    with pytest.raises(InputError, match=r"lacks.*agentview"):
        make_processor().batch([replace(observation, images={"eye_in_hand": images["eye_in_hand"]})])
    with pytest.raises(InputError, match="proprio of 8"):
        make_processor().batch([replace(observation, proprio=np.zeros(5, np.float32))])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)

    save_file({k: v for k, v in weights.items() if k != "head.pose.weight"}, file)
    with pytest.raises(InputError, match=r"'head\.pose\.weight' is missing"):
        load_policy(tmp_path)
    save_file(weights | {"stranger": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="'stranger' is not part"):
        load_policy(tmp_path)
    save_file(weights | {"head.pose.bias": torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"'head\.pose\.bias' has shape \[3\], expected \[6\]"):
        load_policy(tmp_path)
    spoilt = weights["head.pose.bias"].clone()
    spoilt[0] = torch.inf
    save_file(weights | {"head.pose.bias": spoilt}, file)
    with pytest.raises(InputError, match=r"'head\.pose\.bias' holds values that are not finite"):
        load_policy(tmp_path)
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"model\.safetensors.*truncated"):
        load_policy(tmp_path)


def test_a_folder_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds none of"):
        load_policy(tmp_path)
    make_policy().save_pretrained(tmp_path)
    (tmp_path / "processor.json").write_text(json.dumps({"cameras": []}))
    with pytest.raises(InputError, match=r"processor\.json"):
        load_policy(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        load_policy(tmp_path)


def test_a_frozen_text_encoder_is_named_and_a_full_copy_holds_it(tmp_path: Path) -> None:
    make_tiny_encoder(tmp_path / "t5")
    policy = make_policy("keypoints", f"model.language={{name: huggingface, pretrained: {tmp_path / 't5'}}}").train()
    policy(make_batch()).loss.backward()
    policy.eval().save_pretrained(tmp_path / "named")
    policy.save_pretrained(tmp_path / "full", full=True)

    loaded = load_policy(tmp_path / "named")

    assert all(p.grad is None for p in policy.language.parameters())
    assert not any(name.startswith("language.") for name in load_file(tmp_path / "named" / "model.safetensors"))
    assert torch.equal(loaded.sample(make_batch()), policy.sample(make_batch()))

    shutil.rmtree(tmp_path / "t5")
    assert torch.equal(load_policy(tmp_path / "full").sample(make_batch()), policy.sample(make_batch()))
    with pytest.raises(InputError, match=r"model\.language\.pretrained: there is no folder"):
        load_policy(tmp_path / "named")


def test_a_text_encoder_that_is_trained_learns_more_slowly() -> None:
    policy = make_policy()
    config = policy.config.model_copy(
        update={"language": HuggingFaceLanguageConfig(pretrained="t5", freeze=False, learning_rate_factor=0.2)}
    )
    policy.config = config

    assert policy.learning_rate_factor("language.model.shared.weight") == 0.2
    assert policy.learning_rate_factor("fusion.queries") == 1.0


def make_tiny_encoder(folder: Path) -> None:
    """A random T5 encoder with the byte tokenizer, saved as the hub would have it."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    config = T5Config(vocab_size=384, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)


def test_the_config_of_a_saved_policy_is_checked(tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["vision"]["widht"] = 3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    with pytest.raises(InputError, match="widht"):
        load_policy(tmp_path)
