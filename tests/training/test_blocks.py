"""How the policy's blocks run in training: recomputed, compiled, and what stays the same."""

from __future__ import annotations

import copy
import functools
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.modular.policy import ModularPolicy
from atlas.training.parallel import block_setup as blocks
from atlas.training.parallel.block_setup import check_blocks, plain_copy, set_tf32, set_up_blocks
from tests.policies import test_language, test_vggt_backbone
from tests.policies.test_language import Saved, saved
from tests.policies.test_policy import VISIONS, make_batch, make_policy, make_processor
from tests.training.joint import Training
from tests.training.ranks import run_ranks

__all__ = ["saved"]

LARGE = ["model.fusion={name: bidirectional, dim: 32, dropout: 0.1}", "model.head={name: flow_matching, dim: 32}"]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")


def block_names(policy: ModularPolicy) -> list[str]:
    names = {module: name for name, module in policy.named_modules()}
    return [names[block] for block in policy.blocks()]


def learn(policy: ModularPolicy, size: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and every weight's gradient."""
    torch.manual_seed(7)  # of dropout and of the flow's noise
    policy.zero_grad()
    loss = policy(make_batch(size)).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


class Kept(TorchDispatchMode):
    """The bytes of all tensors made within it that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place not in self._sizes:
                    self._sizes[place] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, place, None)
        return out

    def bytes(self) -> int:
        return sum(self._sizes.values())


def kept_for_backward(policy: ModularPolicy) -> int:
    policy(make_batch())  # what is remembered from now on
    with Kept() as kept:
        loss = policy(make_batch()).loss
        assert loss.requires_grad
        return kept.bytes()


# ---- which blocks ------------------------------------------------------------------------------------------


def test_blocks_are_the_repeated_modules_in_the_order_of_their_first_call() -> None:
    policy = make_policy("vggt-keypoints", *LARGE, "model.language.layers=2")
    called: list[str] = []
    for name, module in policy.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))

    policy(make_batch())

    names = block_names(policy)
    assert names == [
        *("language.layers.layers.0", "language.layers.layers.1", "vision.stems.0", "vision.stems.1"),
        *("vision.aggregator.frame_blocks.0", "vision.aggregator.global_blocks.0"),
        *("fusion.exchange.0", "fusion.read.layers.layers.0", "head.blocks.0", "head.blocks.1"),
    ]
    assert [name for name in called if name in names] == names


def test_blocks_hold_most_of_what_is_trained_and_nothing_that_is_frozen() -> None:
    frozen, adapted = test_vggt_backbone.make_policy(), test_vggt_backbone.make_policy("lora: {rank: 2}")

    assert not [name for name in block_names(frozen) if name.startswith("vision")]
    inside = [name for name in block_names(adapted) if name.startswith("vision")]
    assert len(inside) == 2 + 4 + 4  # DINOv2's, and one of each pair in turn
    assert inside[2:4] == ["vision.aggregator.frame_blocks.0", "vision.aggregator.global_blocks.0"]


@pytest.mark.parametrize("kind", test_language.KINDS)
def test_the_layers_of_a_trained_text_model_are_blocks(kind: str, saved: Saved) -> None:
    encoder = test_language.encoder_of(saved(kind), freeze=False)

    kinds = {type(block) for block in encoder.blocks}

    assert len(encoder.blocks) == 2 and len(kinds) == 1
    called = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, __, out: called.append(out))
    encoder(["a word"])
    assert len(called) == 2


# ---- recomputed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[], LARGE], ids=["small", "large"])
@pytest.mark.parametrize("vision", VISIONS)
def test_recomputed_blocks_give_the_same_loss_and_gradients_under_the_same_names(vision: str, parts: list[str]) -> None:
    plain, recomputed = make_policy(vision, *parts).train(), make_policy(vision, *parts).train()
    names = list(recomputed.state_dict()), [name for name, _ in recomputed.named_modules()]
    set_up_blocks(recomputed, recompute=True, compiled=False)

    (loss, gradients), (loss_again, gradients_again) = learn(plain), learn(recomputed)

    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert (list(recomputed.state_dict()), [name for name, _ in recomputed.named_modules()]) == names


@pytest.mark.parametrize("kind", ["t5", "clip", "qwen3"])
def test_a_trained_text_model_can_be_recomputed(kind: str, saved: Saved) -> None:
    language = f"model.language={{name: huggingface, pretrained: {saved(kind)}, freeze: false}}"

    def make() -> ModularPolicy:
        torch.manual_seed(0)
        config = load_config({}, ["model.fusion.dim=32", *VISIONS["vggt-patch"], language]).model
        return ModularPolicy(config, make_processor()).train()

    plain, recomputed = make(), make()
    set_up_blocks(recomputed, recompute=True, compiled=False)

    (loss, gradients), (loss_again, gradients_again) = learn(plain), learn(recomputed)

    assert torch.equal(loss, loss_again)
    assert any(name.startswith("language.") for name in gradients)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)


def test_recomputing_keeps_less_for_the_way_back() -> None:
    large = ["model.fusion.layers=4", "model.head={name: flow_matching, dim: 32, layers: 4}"]
    plain, recomputed = make_policy("vggt-keypoints", *large), make_policy("vggt-keypoints", *large)
    set_up_blocks(recomputed, recompute=True, compiled=False)

    assert kept_for_backward(recomputed) < 0.5 * kept_for_backward(plain)


def test_the_backbones_blocks_are_recomputed_once_even_where_it_recomputes_them_itself() -> None:
    policy = test_vggt_backbone.make_policy("freeze: false", "recompute: true").train()
    block = policy.vision.aggregator.frame_blocks[0]
    runs: list[int] = []
    block.mlp.register_forward_hook(lambda *_: runs.append(1))
    batch = test_vggt_backbone.batch_of(test_vggt_backbone.make_images())

    policy(batch).loss.backward()
    alone = len(runs)
    set_up_blocks(policy, recompute=True, compiled=False)
    policy(batch).loss.backward()

    assert (alone, len(runs) - alone) == (2, 2)


def test_a_copy_of_the_policy_runs_its_own_blocks() -> None:
    policy = make_policy()
    set_up_blocks(policy, recompute=True, compiled=False)
    copied = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()

    assert torch.equal(learn(copied)[0], learn(make_policy())[0])


def _train_three_ways(overrides: list[str]) -> list[tuple[list[float], list[float]]]:
    """Losses and gradient norms with blocks unchanged, recomputed, and recomputed and captured."""
    recompute = "training.activation_checkpointing=true"
    ways = [Training(*overrides), Training(*overrides, recompute), Training(*overrides, recompute)]
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # needs no compiler
    set_up_blocks(ways[2].strategy.policy, recompute=True, compiled=True)
    for training in ways:
        training.run(range(3))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    return [(training.losses, training.norms) for training in ways]


@pytest.mark.parametrize(("strategy", "parts"), [("ddp", 1), pytest.param("fsdp", 2, marks=pytest.mark.slow)])
def test_two_processes_train_the_same_with_recomputed_and_captured_blocks(
    strategy: str, parts: int, tmp_path: Path
) -> None:
    overrides = [f"distributed.strategy={strategy}", f"training.gradient_accumulation_steps={parts}"]

    plain, recomputed, captured = run_ranks(2, tmp_path, _train_three_ways, overrides)[0]

    assert recomputed == plain
    for expected, found in zip(plain, captured, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


# ---- compiled ----------------------------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Blocks are captured as for compiling, and the graphs run as they are; gives how many there are by now."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(blocks.torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_captured_blocks_learn_the_same_under_the_same_names(captured: Callable[[], int], recompute: bool) -> None:
    plain, compiled = make_policy("vggt-keypoints").train(), make_policy("vggt-keypoints").train()
    names = list(compiled.state_dict())
    set_up_blocks(compiled, recompute, compiled=True)

    (loss, gradients), (loss_again, gradients_again) = learn(plain), learn(compiled)

    assert captured() >= 4  # kinds of blocks
    assert list(compiled.state_dict()) == names
    torch.testing.assert_close(loss_again, loss)
    torch.testing.assert_close(gradients_again, gradients, atol=1e-5, rtol=1e-4)


def test_other_shapes_and_validation_compile_nothing_more(captured: Callable[[], int]) -> None:
    plain, compiled = make_policy("vggt-conv").train(), make_policy("vggt-conv").train()
    set_up_blocks(compiled, recompute=False, compiled=True)
    learn(compiled, size=3)
    first = captured()

    (loss, _), (loss_again, _) = learn(plain, size=2), learn(compiled, size=2)
    with torch.no_grad():
        sampled = compiled.eval().sample(make_batch(3))
    learn(compiled.train(), size=3)

    assert first > 0 and captured() == first
    assert torch.equal(loss_again, loss) and torch.equal(sampled, plain.eval().sample(make_batch(3)))


def test_all_layers_of_a_kind_share_one_compiled_form(captured: Callable[[], int]) -> None:
    counts = []
    for layers in (2, 4):  # the first of them may be given inputs of another form
        torch._dynamo.reset()
        before = captured()
        policy = make_policy("vggt-conv", f"model.language.layers={layers}", f"model.fusion.layers={layers}")
        set_up_blocks(policy, recompute=False, compiled=True)
        learn(policy)
        counts.append(captured() - before)

    assert counts[0] == counts[1] > 0


def test_an_adapted_backbone_compiled_by_its_own_setting_can_be_recomputed(captured: Callable[[], int]) -> None:
    settings = ("compile: false", "compile: true")
    plain, both = (test_vggt_backbone.make_policy("lora: {rank: 2}", setting).train() for setting in settings)
    set_up_blocks(both, recompute=True, compiled=False)
    batch = test_vggt_backbone.batch_of(test_vggt_backbone.make_images())

    expected, found = plain(batch).loss, both(batch).loss
    expected.backward()
    found.backward()

    assert captured() > 0
    torch.testing.assert_close(found, expected)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(both.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a compiler is at work, for minutes on busy cores
@needs_compiler
@pytest.mark.parametrize("vision", ["keypoints", "vggt-conv"])
def test_compiled_blocks_learn_the_same(vision: str) -> None:
    torch._dynamo.reset()
    plain, compiled = make_policy(vision, *LARGE[1:]).train(), make_policy(vision, *LARGE[1:]).train()
    set_up_blocks(compiled, recompute=True, compiled=True)

    (loss, gradients), (loss_again, gradients_again) = learn(plain), learn(compiled)

    torch.testing.assert_close(loss_again, loss)
    torch.testing.assert_close(gradients_again, gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("key", ["training.compile", "model.vision.compile"])
def test_compiling_without_a_compiler_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config({}, ["model.vision={name: vggt_pretrained}", "data.image_size=56", f"{key}=true"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CC", "no-such-compiler")

    with pytest.raises(InputError, match=rf"{key} is true.*C\+\+ compiler \('no-such-compiler', which CXX names\)"):
        check_blocks(config, gpu=False)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"C\+\+ compiler \(g\+\+\)"):
        check_blocks(config, gpu=False)
    with pytest.raises(InputError, match=rf"lacks (the package triton|a C compiler).*set {key}=false"):
        check_blocks(config, gpu=True)
    check_blocks(load_config(), gpu=False)  # nothing is compiled


@needs_compiler
def test_compiling_with_a_compiler_is_not_refused() -> None:
    check_blocks(load_config({}, ["training.compile=true"]), gpu=False)


# ---- copies and precision ----------------------------------------------------------------------------------


def test_a_plain_copy_is_the_same_policy_with_blocks_as_they_are() -> None:
    policy = make_policy("vggt-keypoints", *LARGE).train()
    set_up_blocks(policy, recompute=True, compiled=True)

    copied = plain_copy(policy, "cpu")

    assert not any("forward" in block.__dict__ for block in copied.blocks())
    assert torch.equal(learn(copied)[0], learn(make_policy("vggt-keypoints", *LARGE).train())[0])
    theirs = {p.data_ptr() for p in policy.state_dict().values()}
    assert theirs.isdisjoint(p.data_ptr() for p in copied.state_dict().values())


def test_a_plain_copy_without_numbers_costs_nothing_and_touches_nothing() -> None:
    policy = test_vggt_backbone.make_policy("lora: {rank: 2}")
    before = {name: value.clone() for name, value in policy.state_dict().items()}

    with Kept() as kept:
        copied = plain_copy(policy, "meta")
        batch = test_vggt_backbone.batch_of(test_vggt_backbone.make_images()).to("meta")
        copied(batch).loss.backward()
        on_cpu = sum(p.nbytes for p in copied.state_dict().values() if not p.is_meta)

    assert kept is not None and on_cpu == 0
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in policy.parameters()]


@pytest.fixture
def precision_put_back() -> Iterator[None]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    yield
    cuda.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("precision_put_back")
def test_tf32_is_for_gpus_alone() -> None:
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    products = []
    for allowed in (True, False):
        set_tf32(allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.mkldnn.matmul.fp32_precision not in ("tf32", "bf16")
        products.append(a @ b)

    assert torch.equal(*products)


@pytest.mark.usefixtures("precision_put_back")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tf32_rounds_products_on_a_gpu() -> None:
    a, b = torch.randn(256, 256, device="cuda"), torch.randn(256, 256, device="cuda")
    exact = (a.double() @ b.double()).float()
    errors = []
    for allowed in (True, False):
        set_tf32(allowed)
        errors.append(float((a @ b - exact).abs().max()))

    assert errors[0] > 10 * errors[1]
