"""A policy on an image-text model: learning, saving, features of its image part, arithmetic, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh

import atlas
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.action_distribution import ActionDistribution, Noise
from atlas.policies.base import (
    ActsByFlow,
    CountsTokens,
    LearnsFromTeacher,
    ReadsFeatures,
    ShowsFeatures,
    TakesNoise,
    load_policy,
)
from atlas.policies.summary import summarize
from atlas.policies.vlm.vlm_policy import VLMPolicy
from atlas.training.average import WeightAverage
from atlas.training.parallel.block_setup import plain_copy, set_up_blocks
from atlas.training.parallel.sharded import spread
from atlas.types import Batch
from tests.conftest import MakeLibero, MakeOnce
from tests.policies.image_text_models import VLM_KINDS, save_image_text_model
from tests.policies.test_alignment import alignment
from tests.policies.test_language import go_offline
from tests.policies.test_policy import make_batch, make_processor

Saved = Callable[[str], Path]
HEADS = {
    "vlm-oft": "head: {name: vlm-oft, dim: 32, blocks: 1}",
    "vlm-adapter": "head: {name: vlm-adapter, dim: 32, heads: 2, queries: 5}",
    "vlm-expert": "head: {name: vlm-expert, dim: 32, mlp_dim: 48, steps: 3}",
}
WAYS = ("freeze: true", "lora: {rank: 2}", "freeze: false", "freeze: false, freeze_vision: true")


@pytest.fixture(scope="module")
def saved(make_once: MakeOnce) -> Saved:
    """The folder of a kind of model, written once; to be left as it is."""
    return lambda kind: make_once(f"vlm_{kind}", lambda folder: save_image_text_model(kind, folder))


def model(folder: Path, *backbone: str, head: str = "vlm-oft") -> list[str]:
    """Overrides for a policy on a model; `backbone` are further keys of model.backbone."""
    precision = () if any(key.startswith("precision") for key in backbone) else ("precision: fp32",)
    keys = ", ".join((f"pretrained: {folder}", *precision, *backbone))
    return [f"model={{type: vlm, backbone: {{{keys}}}, {HEADS[head]}}}", "data.image_size=32"]


def make_policy(folder: Path, *backbone: str, head: str = "vlm-oft", more: tuple[str, ...] = ()) -> VLMPolicy:
    torch.manual_seed(0)
    config = load_config({}, [*model(folder, *backbone, head=head), *more])
    policy = config.model.build(make_processor())
    assert isinstance(policy, VLMPolicy)
    return policy


def keyed_batch(size: int = 3) -> Batch:
    """With keys, so that what is random is the same each time."""
    return replace(make_batch(size), key=torch.arange(size))


def learn(policy: VLMPolicy, steps: int = 2) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(steps):
        terms = policy.train()(keyed_batch())
        terms.loss.backward()
        losses.append(float(terms.loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    ("kind", "head"), [(k, h) for k in VLM_KINDS for h in HEADS if (k, h) != ("florence2", "vlm-expert")]
)
def test_all_that_is_trained_learns(kind: str, head: str, saved: Saved) -> None:
    for way in WAYS[1:3]:
        policy = make_policy(saved(kind), way, head=head).train()

        for _ in range(2):  # the first step moves B of adapters only, and gates, which start at zero
            policy(keyed_batch()).loss.backward()

        idle = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
        frozen = [name for name, p in policy.named_parameters() if not p.requires_grad and p.grad is not None]
        assert not idle and not frozen


@pytest.mark.parametrize("head", HEADS)
def test_it_says_where_it_looks_though_it_is_frozen(head: str, saved: Saved) -> None:
    policy, batch = make_policy(saved("smolvlm"), WAYS[0], head=head).eval(), keyed_batch()
    learn(policy, steps=2)  # gates start at zero

    with torch.no_grad():
        maps = policy.attention(batch).maps

    assert maps is not None and maps.shape[:2] == (len(batch), policy.processor.views)
    assert torch.isfinite(maps).all() and (maps >= 0).all() and (maps.amax((2, 3)) > 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_chunk_is_learned_by_heart(head: str, saved: Saved) -> None:
    losses = learn(make_policy(saved("smolvlm"), head=head), steps=60)

    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("way", WAYS)
def test_a_saved_policy_acts_the_same_when_loaded(way: str, head: str, saved: Saved, tmp_path: Path) -> None:
    policy = make_policy(saved("smolvlm"), way, head=head)
    learn(policy)
    policy.eval().save_pretrained(tmp_path)

    loaded = load_policy(tmp_path)

    kept = load_file(tmp_path / "model.safetensors")
    inside = {name.split(".")[0] for name in kept if not name.startswith("head.") and "lora" not in name}
    parts = {"freeze: true": set(), "lora: {rank: 2}": set(), "freeze: false": {"vision", "language"}}
    assert torch.equal(loaded.sample(keyed_batch()), policy.sample(keyed_batch()))
    assert inside - {"token_scale"} == parts.get(way, {"language"})
    assert any("lora" in name for name in kept) == ("lora" in way)
    assert set(policy.frozen) == {"vision", "language"} - inside


def test_a_policy_is_all_that_a_training_asks_of_one(saved: Saved) -> None:
    policy = make_policy(saved("qwen3_vl"), "freeze: false").eval()

    for protocol in (CountsTokens, ReadsFeatures, ShowsFeatures, LearnsFromTeacher):
        assert isinstance(policy, protocol)
    terms, actions = policy.losses_and_sample(keyed_batch())
    assert torch.equal(terms.loss, policy(keyed_batch()).loss) and torch.equal(actions, policy.sample(keyed_batch()))
    assert policy.loss_names == ("loss", "pose_loss", "gripper_loss") == ("loss", *terms.terms)
    assert policy.image_features(keyed_batch()).shape[0] == 3
    rates = {policy.learning_rate_factor(f"{part}.model.x") for part in ("vision", "language")}
    assert rates == {0.1} and policy.learning_rate_factor("head.queries") == 1.0
    inside = [id(m) for block in policy.blocks() for m in block.modules()]
    assert len(inside) == len(set(inside))


@pytest.mark.parametrize("head", list(HEADS))
def test_each_head_says_how_likely_a_chunk_is(head: str, saved: Saved) -> None:
    """As learning by reward needs it, with gradients into all that is trained."""
    policy = make_policy(saved(VLM_KINDS[0]), "freeze: false", head=head).eval()
    batch = make_batch(2)

    def found() -> ActionDistribution:
        if policy.acts_by_flow:
            return policy.flow_distribution(batch, 0.5)
        return policy.noisy_distribution(batch, Noise(0.05, 0.8))

    assert isinstance(policy, TakesNoise) and isinstance(policy, ActsByFlow)
    assert policy.takes_noise != policy.acts_by_flow
    with torch.no_grad():
        chunk, log_prob = found().sample(torch.Generator().manual_seed(0))
    again = found().log_prob(chunk)
    again.sum().backward()

    torch.testing.assert_close(again, log_prob, atol=1e-3, rtol=1e-3)
    assert all(any(p.grad is not None for p in part.parameters()) for part in policy.parts().values())
    if policy.acts_by_flow:
        acted = policy.flow_distribution(batch, 1e-6).sample(torch.Generator().manual_seed(0))[0]
        start = torch.Generator().manual_seed(0)
        torch.randint(3, (2,), generator=start)  # the step that is random
        wanted = policy.action_scaler.normalize(policy.sample(batch, start), batch.source)
        torch.testing.assert_close(acted[..., -1 - wanted.shape[-1] : -1], wanted, atol=1e-4, rtol=1e-4)


def test_padding_does_not_count(saved: Saved) -> None:
    policy, batch = make_policy(saved("smolvlm")).eval(), keyed_batch()
    assert batch.actions is not None and batch.action_is_pad is not None
    batch.action_is_pad[1:, 2:] = True
    before = policy(batch).loss

    batch.actions[1:, 2:] = 77.0

    torch.testing.assert_close(policy(batch).loss, before)


@pytest.mark.parametrize("kind", ["smolvlm", "qwen3_vl"])
def test_features_instead_of_images_give_the_same_loss(kind: str, saved: Saved) -> None:
    policy, batch = make_policy(saved(kind)).eval(), keyed_batch()
    encoder = policy.config.cached_encoder.build_cached()
    features = encoder(batch.unit_images())

    tokens, dim = policy.config.cached_encoder.feature_shape(32)
    assert features.shape == (3, 2 * tokens, dim) and features.dtype == torch.bfloat16
    assert encoder.frozen == policy.frozen["vision"] and encoder.frozen.sha256 == policy.cached_encoder_hash()
    assert policy.config.cached_encoder.weights_hash() == policy.cached_encoder_hash()
    assert torch.equal(policy(batch).loss, policy(replace(batch, images=None, features=features)).loss)


@pytest.mark.parametrize("way", ["freeze: true", "lora: {rank: 2}", "freeze: false"])
@pytest.mark.parametrize("head", HEADS)
def test_running_blocks_again_gives_the_same_gradients(head: str, way: str, saved: Saved) -> None:
    gradients = []
    for recompute in (False, True):
        policy = make_policy(saved("qwen3_vl"), way, head=head).train()
        set_up_blocks(policy, recompute, compiled=False)
        policy(keyed_batch()).loss.backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])

    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, again)


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("way", ["freeze: true", "lora: {rank: 2}", "freeze: false"])
def test_spread_over_processes_it_learns_the_same(way: str, head: str, saved: Saved, one_process_group: None) -> None:
    policy = make_policy(saved("smolvlm"), way, head=head).train()
    policy(keyed_batch()).loss.backward()
    expected = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    spread(policy, init_device_mesh("cpu", (1,)), low_precision=False)
    policy(keyed_batch()).loss.backward()

    found = {name: p.grad.full_tensor() for name, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_weights_stay_near_float32(head: str, saved: Saved) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        policy = make_policy(saved("smolvlm"), f"precision: {precision}", "lora: {rank: 2}", head=head).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = policy(keyed_batch()).loss
        loss.backward()
        losses.append(loss.item())
        trained = [p for p in policy.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)
        assert all(p.dtype == policy.language.model.dtype for p in policy.vision.parameters())

    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


def test_an_average_of_the_weights_shares_what_is_frozen(saved: Saved) -> None:
    policy = make_policy(saved("smolvlm"))

    average = WeightAverage(policy, 0.9).policy

    assert average.vision is policy.vision and average.head is not policy.head
    assert torch.equal(average.sample(keyed_batch()), policy.eval().sample(keyed_batch()))


@pytest.mark.parametrize("kind", VLM_KINDS)
def test_arithmetic_is_counted_without_numbers(kind: str, saved: Saved) -> None:
    found = summarize(load_config({}, [*model(saved(kind), "freeze: false"), "data.action_horizon=4"]))

    vision, language, head = found["parts"]
    policy = make_policy(saved(kind), "freeze: false")
    assert found["parameters"] == sum(p.numel() for p in policy.parameters())
    assert min(part["flops"] for part in found["parts"]) > 0 and head["trainable"] == head["parameters"]
    assert vision["tokens"] and found["training_flops_per_sample"] > 2 * found["flops_per_sample"]
    counted = plain_copy(policy, "meta")
    assert counted.count_tokens(keyed_batch(1).to("meta"))["vision"] == vision["tokens"]


# ---- frozen weights ----------------------------------------------------------------------------------------


def test_other_weights_than_those_trained_with_are_refused_and_a_full_copy_needs_none(
    saved: Saved, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved("smolvlm"), tmp_path / "model")
    policy = make_policy(folder, "language_layers: 2").eval()
    policy.save_pretrained(tmp_path / "policy")
    policy.save_pretrained(tmp_path / "full", full=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.text_model.layers.0.mlp.up_proj.weight"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(InputError, match=r"other frozen language weights.*Give it the original weights"):
        load_policy(tmp_path / "policy")
    shutil.rmtree(folder)
    assert torch.equal(load_policy(tmp_path / "full").sample(keyed_batch()), policy.sample(keyed_batch()))


# ---- alignment ---------------------------------------------------------------------------------------------


def aligned(layer: str = "") -> tuple[str, ...]:
    return tuple(alignment()) + ((f"model.alignment.layer={layer}",) if layer else ())


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "florence2"])
def test_image_tokens_of_an_inner_layer_are_drawn_towards_a_teachers(kind: str, saved: Saved, tmp_path: Path) -> None:
    policy = make_policy(saved(kind), "lora: {rank: 2}", more=aligned("2"))
    policy.load_teacher()

    terms = policy.train()(keyed_batch())
    terms.terms["alignment_loss"].backward()

    assert 0 < terms.terms["alignment_loss"].item() < 2 and policy.loss_names[-1] == "alignment_loss"
    touched = {
        name.split(".layers.")[1][0] for name, p in policy.named_parameters() if p.grad is not None and "lora" in name
    }
    assert touched == {"0", "1"}  # what lies behind the second layer has no part in it
    policy.eval().save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert torch.equal(loaded.sample(keyed_batch()), policy.sample(keyed_batch()))
    assert not any("teacher" in name for name in load_file(tmp_path / "model.safetensors"))


# ---- a whole run -------------------------------------------------------------------------------------------


def test_a_run_trains_from_images_and_from_features_alike(
    saved: Saved, make_libero: MakeLibero, tmp_path: Path, atlas: Callable[..., int]
) -> None:
    settings = [*model(saved("smolvlm")), f"data.path={make_libero()}", "data.batch_size=8", "data.num_workers=0"]
    settings += ["data.augment={brightness: 0, contrast: 0, saturation: 0}", "data.val_fraction=0.3"]
    cache = tmp_path / "features"
    assert atlas("data", "cache-features", "--out", str(cache), "--cpu", *settings) == 0

    losses = [
        run(tmp_path, name, [*settings, *more], "training.max_steps=3")["val/loss"]
        for name, more in (("images", []), ("features", [f"data.feature_cache={cache}"]))
    ]

    assert losses[0] == losses[1] > 0
    run(tmp_path, "images", settings, "training.max_steps=4", resume="auto")
    assert load_policy(tmp_path / "images").sample(keyed_batch(1)).shape == (1, 8, 7)


@pytest.mark.parametrize("head", ["vlm-adapter", "vlm-expert"])
def test_a_run_with_each_head_leaves_a_policy_that_acts(
    head: str, saved: Saved, make_libero: MakeLibero, tmp_path: Path
) -> None:
    settings = [*model(saved("qwen3_vl"), "lora: {rank: 2}", head=head), f"data.path={make_libero()}"]
    settings += ["data.batch_size=8", "data.num_workers=0", "data.val_fraction=0.3", "data.action_horizon=4"]

    metrics = run(tmp_path, "run", settings, "training.max_steps=2", "training.activation_checkpointing=true")

    assert metrics["val/loss"] > 0 and metrics["train/step"] == 2
    assert load_policy(tmp_path / "run").sample(keyed_batch(2)).shape == (2, 4, 7)


def run(folder: Path, name: str, settings: list[str], *more: str, resume: str | None = None) -> dict[str, float]:
    steps = ["training.warmup_steps=1", "training.log_interval=2", "distributed.cpu=true", *more]
    where = [f"output_dir={folder}", f"run_name={name}"]
    result = atlas.train({}, [*settings, *steps, *where], **({"resume": resume} if resume else {}))  # type: ignore[operator]
    return dict(result.metrics)


# ---- wrong input, from the command line --------------------------------------------------------------------


def untouched(folder: Path) -> None: ...


def a_text_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def another_tokenizer(folder: Path) -> None:
    from tests.policies.test_language import make_tokenizer

    make_tokenizer().save_pretrained(folder)


def no_images(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def no_size(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["size"], settings["max_image_size"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def a_tensor_less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.connector.modality_projection.proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


BAD = {
    "gone": (gone, (), (), "model.backbone.pretrained: there is no folder"),
    "text model": (a_text_model, (), (), "'llama', which does not read images and text together"),
    "no tokenizer": (no_tokenizer, (), (), "model.backbone.pretrained: the tokenizer of"),
    "another tokenizer": (another_tokenizer, (), (), "the tokenizer of"),
    "no image settings": (no_images, (), (), "does not say how images are scaled"),
    "no image size": (no_size, (), (), "does not say which size of square images it takes"),
    "missing tensor": (a_tensor_less, (), (), "connector.modality_projection.proj.weight' is missing"),
    "no such target": (
        untouched,
        ("lora: {targets: [q_prej]}",),
        (),
        "model.backbone.lora.targets names 'q_prej', but no linear layer there has that name. Did you mean 'q_proj'?",
    ),
    "too many layers": (
        untouched,
        ("language_layers: 9",),
        (),
        "model.backbone.language_layers is 9, but",
    ),
    "no images": (untouched, (), ("data.cameras=[]",), "'data.cameras': list should have at least 1 item"),
    "lora without freeze": (untouched, ("lora: {}", "freeze: false"), (), "lora is set and freeze is false"),
    "prompt": (untouched, ("prompt: '{images} go'",), (), "must contain {instruction} exactly once"),
    "unknown mark": (untouched, ("prompt: '{images}<mark>{instruction}'",), (), "it has no token '<mark>'"),
    "trained features": (
        untouched,
        ("freeze: false",),
        ("data.feature_cache=there",),
        "set model.backbone.freeze or model.backbone.freeze_vision",
    ),
    "aligned but frozen": (untouched, (), aligned(), "the whole model is frozen"),
    "alignment layer": (
        untouched,
        ("lora: {}",),
        aligned("7"),
        "model.alignment.layer is 7, but the model has 3 language layers",
    ),
    "unknown head": (untouched, (), ("model.head={name: vlm-ofd}",), "'model.head'"),
}


SEEN_LATE = {"missing tensor"}  # when the weights are read


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_ends_a_run_with_exit_code_2(
    case: str,
    saved: Saved,
    make_libero: MakeLibero,
    tmp_path: Path,
    atlas: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, backbone, more, complaint = BAD[case]
    folder = shutil.copytree(saved("smolvlm"), tmp_path / "model")
    spoil(folder)
    where = [f"data.path={make_libero()}", f"output_dir={tmp_path / 'out'}", "training.max_steps=1"]

    code = atlas("train", "run_name=run", "--cpu", *model(folder, *backbone), *where, *more)

    assert code == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert case in SEEN_LATE or not (tmp_path / "out").exists(), "a run was begun"


def test_a_name_that_is_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    go_offline(monkeypatch, tmp_path / "cache")

    code = atlas("model", "summary", "model.type=vlm", "model.backbone.pretrained=nobody/nothing")

    assert code == 2
    assert "model.backbone.pretrained: 'nobody/nothing' could not be downloaded" in capsys.readouterr().err


def test_an_expert_needs_keys_that_turn(saved: Saved) -> None:
    with pytest.raises(InputError, match="vlm-expert, but this model has no rotary keys"):
        make_policy(saved("florence2"), head="vlm-expert")


@pytest.mark.parametrize("kind", ["smolvlm", "qwen3_vl"])
def test_an_expert_reads_images_and_words(kind: str, saved: Saved) -> None:
    policy, batch = make_policy(saved(kind), head="vlm-expert").eval(), keyed_batch()
    with torch.no_grad():
        for parameter in policy.head.parameters():  # gates are shut at first
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    actions = policy.sample(batch)

    assert batch.images is not None and torch.equal(actions, policy.sample(batch))
    for changed in (replace(batch, images=255 - batch.images), replace(batch, instruction=["open it"] * 3)):
        assert not torch.allclose(policy.sample(changed)[:2], actions[:2], atol=1e-4)
    first = {name: tensor[:1] for name, tensor in batch.tensors().items()}
    alone = policy.sample(replace(batch, **first, instruction=batch.instruction[:1]))
    torch.testing.assert_close(alone, actions[:1], atol=1e-4, rtol=1e-4)


def test_a_batch_without_images_is_refused(saved: Saved) -> None:
    with pytest.raises(InputError, match="needs images"):
        make_policy(saved("smolvlm"))(replace(keyed_batch(), images=None))
