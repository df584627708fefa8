"""The published VGGT inside a policy: frozen, adapted or trained further; saved by name only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

import atlas.cli
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.modular.vision_encoders.vggt_backbone import pool_patches
from atlas.training.average import WeightAverage
from atlas.training.optimizer import make_optimizer, set_learning_rate
from tests.conftest import MakeLibero
from tests.policies.test_policy import SMALL, make_batch, make_processor

WEIGHTS = Path(__file__).parents[1] / "fixtures" / "vggt_parity" / "weights.safetensors"
SIZES = "embed_dim: 48, depth: 4, num_heads: 3, img_size: 56, patch_embed_depth: 2, patch_embed_num_heads: 3"
SIZE = 56


def backbone_config(*changes: str, weights: Path = WEIGHTS) -> list[str]:
    """Overrides for the small published form; `changes` are further keys of model.vision."""
    precision = () if any(change.startswith("precision") for change in changes) else ("precision: fp32",)
    keys = ", ".join((f"name: vggt_pretrained, pretrained: {weights}, {SIZES}", *precision, *changes))
    return [f"model.vision={{{keys}}}", f"data.image_size={SIZE}"]


def make_policy(*changes: str, weights: Path = WEIGHTS) -> ModularPolicy:
    torch.manual_seed(0)
    config = load_config({}, [*SMALL, *backbone_config(*changes, weights=weights)])
    return ModularPolicy(config.model, replace(make_processor(), image_size=SIZE, camera_size=SIZE))


def make_images(batch: int = 3, views: int = 2) -> torch.Tensor:
    return torch.rand(batch, views, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def batch_of(images: torch.Tensor):  # type: ignore[no-untyped-def]
    return replace(make_batch(len(images)), images=images)


@pytest.fixture
def own_weights(tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return Path(shutil.copyfile(WEIGHTS, tmp_path / "backbone.safetensors"))


# ---- frozen ------------------------------------------------------------------------------------------------


def test_frozen_weights_are_not_trained_and_all_else_is() -> None:
    policy = make_policy()

    policy.train()(batch_of(make_images())).loss.backward()

    for name, parameter in policy.named_parameters():
        frozen = name.startswith("vision.")
        assert (parameter.grad is None) == frozen and parameter.requires_grad != frozen
    optimized = {
        id(p) for group in make_optimizer(policy, load_config({}).training).param_groups for p in group["params"]
    }
    assert optimized == {id(p) for p in policy.parameters() if p.requires_grad}
    assert not policy.vision.training


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_frozen_weights_are_not_in_the_buckets_of_data_parallel_training(one_process_group: None) -> None:
    policy = make_policy()

    ddp = DistributedDataParallel(policy)

    in_buckets = sum(map(int, ddp._get_ddp_logging_data()["bucket_sizes"].split(",")))
    assert in_buckets == 4 * sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_a_checkpoint_names_the_backbone_and_does_not_hold_it(tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path)

    saved = load_file(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        frozen = json.loads(file.metadata()["frozen"])
    assert saved and not any(name.startswith("vision.") for name in saved)
    assert frozen["vision"]["reference"] == str(WEIGHTS) and len(frozen["vision"]["sha256"]) == 64


def test_a_saved_policy_acts_the_same_when_loaded(tmp_path: Path) -> None:
    policy = make_policy().eval()
    policy.save_pretrained(tmp_path)

    loaded = load_policy(tmp_path)

    batch = batch_of(make_images())
    assert torch.equal(loaded.sample(batch), policy.sample(batch))


def test_another_backbone_than_the_one_trained_with_is_refused(tmp_path: Path, own_weights: Path) -> None:
    make_policy(weights=own_weights).save_pretrained(tmp_path / "policy")
    tensors = load_file(own_weights)
    tensors["aggregator.camera_token"] += 1
    save_file(tensors, own_weights)

    with pytest.raises(InputError, match=r"other frozen vision weights.*Give it the original weights"):
        load_policy(tmp_path / "policy")


def test_changes_of_the_published_heads_do_not_matter(tmp_path: Path, own_weights: Path) -> None:
    make_policy(weights=own_weights).save_pretrained(tmp_path / "policy")
    save_file({k: v for k, v in load_file(own_weights).items() if k.startswith("aggregator.")}, own_weights)

    load_policy(tmp_path / "policy")


def test_a_full_copy_needs_nothing_else(tmp_path: Path, own_weights: Path) -> None:
    policy = make_policy(weights=own_weights).eval()
    policy.save_pretrained(tmp_path / "policy", full=True)
    own_weights.unlink()

    loaded = load_policy(tmp_path / "policy")

    batch = batch_of(make_images())
    assert torch.equal(loaded.sample(batch), policy.sample(batch))
    assert not any(name.startswith("camera_head") for name in load_file(tmp_path / "policy" / "vision.safetensors"))


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.vision\.pretrained: there is no file or folder .*absent"):
        make_policy(weights=tmp_path / "absent.safetensors")


def test_an_average_of_the_weights_shares_the_backbone() -> None:
    policy = make_policy()

    average = WeightAverage(policy, 0.9).policy

    assert average.vision is policy.vision
    assert average.fusion is not policy.fusion
    own = {p.data_ptr() for p in policy.fusion.parameters()}
    assert not own & {p.data_ptr() for p in average.fusion.parameters()}


def test_features_in_place_of_images_give_the_same_loss() -> None:
    policy = make_policy()
    batch = batch_of(make_images())
    with torch.no_grad():
        features = policy.vision(batch.images)

    from_images = policy(batch).loss
    from_features = policy(replace(batch, images=None, features=features)).loss

    assert features.dtype == torch.bfloat16
    assert torch.equal(from_images, from_features)


# ---- pooling, precision, compilation -----------------------------------------------------------------------


def test_patches_are_averaged_two_by_two_and_at_the_border_over_those_there_are() -> None:
    grid, specials = (3, 5), 2
    tokens = torch.rand(2, 3, specials + 15, 4)

    pooled = pool_patches(tokens, grid, specials, pool=2)

    patches = tokens[:, :, specials:].unflatten(2, grid)
    expected = [patches[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2, 4)]
    torch.testing.assert_close(pooled[:, :, :specials], tokens[:, :, :specials])
    torch.testing.assert_close(pooled[:, :, specials:], torch.stack(expected, dim=2))


@pytest.mark.parametrize(("pool", "patches"), [(1, 16), (2, 4), (3, 4)])
def test_the_number_of_tokens_follows_from_the_pooling(pool: int, patches: int) -> None:
    policy = make_policy(f"pool: {pool}")

    assert policy.vision(make_images()).shape == (3, 2 * (5 + patches), 96)


def test_bfloat16_weights_stay_near_float32() -> None:
    images = make_images()

    exact, rounded = (make_policy(f"precision: {p}").vision(images).float() for p in ("fp32", "bf16"))

    # The tokens have a standard deviation of about 2; autocast to bfloat16 moves them by up to 0.12.
    assert 0 < (exact - rounded).abs().max() < 0.3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.slow
@pytest.mark.parametrize("case", "wide native tall same_count up down single".split())
def test_compiled_blocks_match_the_published_network(case: str) -> None:
    encoder = make_policy("compile: true").vision
    images = load_file(WEIGHTS.with_name("inputs.safetensors"))[f"{case}.images_u8"].float() / 255
    golden = load_file(WEIGHTS.with_name("golden.safetensors"))[f"{case}.layer3"]

    with torch.inference_mode():
        compiled = encoder.aggregator(images)[0]

    torch.testing.assert_close(compiled, golden, atol=1e-4, rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_only_the_first_shape_is_compiled_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    encoder, eager = make_policy("compile: true").vision, make_policy().vision
    first, other = make_images(batch=3), make_images(batch=2)

    compiled = encoder(first)
    after_first = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    encoder(other)

    assert after_first > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == after_first
    torch.testing.assert_close(compiled.float(), eager(first).float(), atol=0.04, rtol=0)
    assert torch.equal(encoder(other), eager(other))


# ---- not frozen --------------------------------------------------------------------------------------------


def test_an_unfrozen_backbone_trains_at_its_own_rate_and_is_saved(tmp_path: Path) -> None:
    policy = make_policy("freeze: false", "learning_rate_factor: 0.25")
    policy.train()(batch_of(make_images())).loss.backward()
    optimizer = make_optimizer(policy, load_config({}).training)
    set_learning_rate(optimizer, 0.01)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    policy.save_pretrained(tmp_path)

    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.0025 if name.startswith("vision.") else 0.01)
            assert parameter.grad is not None
    assert "vision.aggregator.camera_token" in load_file(tmp_path / "model.safetensors")


def test_running_blocks_again_gives_the_same_gradients() -> None:
    batch = batch_of(make_images())
    gradients = []
    for recompute in ("false", "true"):
        policy = make_policy("freeze: false", f"recompute: {recompute}").train()
        policy(batch).loss.backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])

    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, again)


def test_adapters_train_while_the_weights_stay(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    policy = make_policy("lora: {rank: 4}")
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    optimizer = make_optimizer(policy, load_config({}).training)
    batch = batch_of(make_images())
    for _ in range(2):  # the first step moves B only, which starts at zero
        policy.train()(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    changed = {k for k, v in policy.state_dict().items() if not torch.equal(v, before[k])}
    in_backbone = {k for k in changed if k.startswith("vision.")}
    assert in_backbone and all("lora_" in k for k in in_backbone)
    assert {k for k in before if "lora_" in k} == in_backbone

    policy.save_pretrained(tmp_path)
    saved = {k for k in load_file(tmp_path / "model.safetensors") if k.startswith("vision.")}
    assert saved == in_backbone
    assert torch.equal(load_policy(tmp_path).sample(batch), policy.eval().sample(batch))


def test_adapters_of_weights_in_bfloat16_take_small_steps() -> None:
    pytest.importorskip("peft")
    policy = make_policy("lora: {rank: 4}", "precision: bf16").train()
    optimizer = make_optimizer(policy, load_config({}, ["training.learning_rate=1e-5"]).training)
    adapters = {k: p for k, p in policy.named_parameters() if "lora_A" in k}
    before = {k: p.detach().clone() for k, p in adapters.items()}
    for _ in range(2):  # the first step moves B only, which starts at zero
        policy(batch_of(make_images())).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    moved = torch.cat([(p != before[k]).flatten() for k, p in adapters.items()])
    assert moved.float().mean() > 0.9
    assert {p.dtype for p in policy.vision.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_adapters_and_unfrozen_weights_contradict_each_other() -> None:
    with pytest.raises(InputError, match="lora is set and freeze is false"):
        make_policy("lora: {rank: 4}", "freeze: false")


def test_image_sizes_must_fit_the_patches() -> None:
    with pytest.raises(InputError, match=r"data\.image_size is 64; it must be a multiple of .*\(14\), such as 70"):
        load_config({}, [*backbone_config(), "data.image_size=64"])


# ---- wrong input, from the command line --------------------------------------------------------------------


def truncated(weights: Path) -> str:
    weights.write_bytes(weights.read_bytes()[:100_000])
    return "cannot be read as safetensors; it may be truncated"


def without_a_tensor(weights: Path) -> str:
    tensors = load_file(weights)
    del tensors["aggregator.camera_token"]
    save_file(tensors, weights)
    return "aggregator.camera_token is missing"


def of_another_width(weights: Path) -> str:
    tensors = load_file(weights)
    tensors["aggregator.camera_token"] = torch.zeros(1, 2, 1, 64)
    save_file(tensors, weights)
    return "aggregator.camera_token is [1, 2, 1, 64], but should be [1, 2, 1, 48]"


def of_another_network(weights: Path) -> str:
    save_file({"layer.weight": torch.zeros(2)}, weights)
    return "does not hold the weights of this VGGT aggregator"


def gone(weights: Path) -> str:
    weights.unlink()
    return "model.vision.pretrained: there is no file or folder"


@pytest.mark.parametrize("spoil", [truncated, without_a_tensor, of_another_width, of_another_network, gone])
def test_weights_that_will_not_do_end_a_run_before_it_begins(
    spoil: Callable[[Path], str],
    make_libero: MakeLibero,
    own_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    complaint = spoil(own_weights)
    arguments = [*backbone_config(weights=own_weights), f"data.path={make_libero()}", f"output_dir={tmp_path / 'out'}"]

    code = call_atlas("train", "run_name=run", "--cpu", *arguments)

    assert code == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("data.cameras=[]", "'data.cameras': list should have at least 1 item"),
        ("data.image_size=60", "data.image_size is 60; it must be a multiple of model.vision.patch_size (14)"),
        ("model.head={name: flow_matching, steps: 0}", "'model.head.steps'"),
        ("model.vision.pool=0", "'model.vision.pool'"),
        ("model.vision.lora={rank: 0}", "'model.vision.lora.rank'"),
    ],
)
def test_settings_that_will_not_do_are_refused(
    override: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call_atlas("train", "--cpu", *backbone_config(), f"output_dir={tmp_path / 'out'}", override)

    assert code == 2 and complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def call_atlas(*arguments: str) -> int:
    """The command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["atlas", *arguments])
        return atlas.cli._run()
