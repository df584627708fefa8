"""Policies sharded over two real processes."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from atlas.checkpoints.background_writer import BackgroundWriter
from atlas.policies.base import load_policy
from atlas.training.parallel.sharded import Sharded
from tests.policies.test_policy import make_tiny_encoder
from tests.training.joint import Shown, Training, furthest, make_step, rows, train, whole
from tests.training.ranks import run_ranks

STEPS = 4
FSDP = "distributed.strategy=fsdp"
WAYS = {
    "a part a rank": [FSDP],
    "two parts a rank": [FSDP, "training.gradient_accumulation_steps=2"],
    "activations computed again": [FSDP, "training.activation_checkpointing=true"],
    "without an average": [FSDP, "training.ema_decay=0"],
}


@dataclass
class Folders:
    encoder: Path  # a frozen one
    alone: Path  # a checkpoint of one process after two steps
    run: Path  # of two ranks, with FSDP


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("sharded")
    make_tiny_encoder(root / "t5")
    training = Training().run(range(2))
    contents = training.snapshot(2)
    assert contents is not None
    alone = training.strategy.checkpoints(root / "alone", 1).write(contents)
    return Folders(root / "t5", alone, root / "run")


@pytest.fixture(scope="module")
def alone() -> Shown:
    """One process with the batches of all ranks."""
    return train(STEPS)


@pytest.fixture(scope="module")
def pair(folders: Folders) -> list[Any]:
    """What two processes find."""
    return run_ranks(2, folders.run.parent / "ranks", _two_ranks, folders)


def _two_ranks(folders: Folders) -> dict[str, Any]:
    found: dict[str, Any] = {name: train(STEPS, *overrides) for name, overrides in WAYS.items()}
    found["layout"] = _layout(folders.encoder)
    training = Training(FSDP).run(range(2))
    found |= _save_while_training(training, folders.run)
    found["judged by"] = _judge(training)
    found["inspected"] = _inspect(training)
    found |= _resume(folders)
    found["failures"] = _fail(training, folders.run)
    return found


def _layout(encoder: Path) -> dict[str, Any]:
    training = Training(FSDP, f"model.language={{name: huggingface, pretrained: {encoder}}}").run(range(1))
    policy, optimizer = training.strategy.policy, training.strategy.optimizer
    parameters = dict(policy.named_parameters())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    spread = {name: p for name, p in trained.items() if isinstance(p, DTensor)}
    with training.strategy.judged() as judged:
        shared = [p is judged.get_parameter(name) for name, p in parameters.items() if name not in trained]
        full = sum(p.numel() for p in judged.parameters())
    return {
        "strategy": type(training.strategy).__name__,
        "trained": sorted(trained),
        "spread": sorted(spread),
        "numbers": sum(p.numel() for p in trained.values()),
        "here": sum(p.to_local().numel() for p in spread.values()),
        "moments here": sum(s["exp_avg"].to_local().numel() for s in optimizer.state.values()),
        "uneven": max(abs(2 * len(p.to_local()) - len(p)) for p in spread.values()),
        "frozen shared": shared,
        "in the twin": (full, sum(p.numel() for p in judged.parameters())),
        "blocks": [type(b).__name__.startswith("FSDP") for b in policy.blocks()],
    }


def _save_while_training(training: Training, run: Path) -> dict[str, Any]:
    checkpoints = training.strategy.checkpoints(run, 3)
    writer = BackgroundWriter(checkpoints)
    contents = training.snapshot(2)
    assert contents is not None
    writer.begin(contents)
    training.run(range(2, 4))
    writer.wait()
    dist.barrier()
    assert not writer.failed, writer.failed
    return {"unbroken": training.shown()}


def _judge(training: Training) -> list[float]:
    """Rank 0 judges two batches, rank 1 none."""
    losses = []
    with training.strategy.judged() as policy, torch.no_grad():
        for number in range(2 - 2 * dist.get_rank()):
            losses.append(float(policy(make_step(number)).loss))
            policy.sample(rows(make_step(number), 0, 2))
    return losses


def _inspect(training: Training) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    rank = dist.get_rank()
    batch = make_step(4)
    training.strategy.model(rows(batch, 4 * rank, 4 * rank + 4)).loss.backward()
    try:
        with training.strategy.inspected() as policy:
            if policy is None:
                return None
            named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
            gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
            return {name: whole(p) for name, p in named.items()}, gradients
    finally:
        training.strategy.optimizer.zero_grad(set_to_none=True)


def _resume(folders: Folders) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ours = folders.run / "checkpoints" / "latest"
    for name, checkpoint, overrides in (
        ("resumed", ours, [FSDP]),
        ("resumed whole", ours, []),
        ("resumed spread", folders.alone, [FSDP]),
    ):
        training = Training(*overrides)
        found[f"states {name}"] = len(training.strategy.load(checkpoint))
        found[name] = training.run(range(2, 4)).shown()
    return found


def _fail(training: Training, run: Path) -> dict[str, Any]:
    """Rank 1's disk is full; then the main rank cannot even make a folder; then all is well again."""
    found: dict[str, Any] = {}
    checkpoints = training.strategy.checkpoints(run, 3)
    writer = BackgroundWriter(checkpoints)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    writer.begin(training.snapshot(3))  # type: ignore[arg-type]
    writer.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    dist.barrier()  # the main rank tidies up last
    found["full disk"] = writer.failed[:]
    found["left"] = sorted(p.name for p in checkpoints.root.iterdir())

    (run.parent / "file").touch()
    blocked = BackgroundWriter(training.strategy.checkpoints(run.parent / "file", 3))
    blocked.begin(training.snapshot(3))  # type: ignore[arg-type]
    blocked.wait()
    found["no folder"] = blocked.failed

    writer.begin(training.snapshot(4))  # type: ignore[arg-type]
    writer.wait()
    dist.barrier()
    found["steps"] = checkpoints.steps()
    return found


@pytest.mark.parametrize("way", ["a part a rank", "two parts a rank", "activations computed again"])
def test_spread_policies_train_as_whole_ones_do(alone: Shown, pair: list[Any], way: str) -> None:
    for shown in (rank[way] for rank in pair):
        assert shown.losses == pytest.approx(alone.losses, abs=1e-5)
        assert shown.norms == pytest.approx(alone.norms, abs=1e-5)
        assert furthest(shown.trained, alone.trained) < 1e-4
        assert furthest(shown.judged, alone.judged) < 1e-4
        assert furthest(shown.trained, shown.judged) > 1e-3  # the average is behind


def test_without_an_average_the_trained_weights_are_judged(alone: Shown, pair: list[Any]) -> None:
    shown = pair[0]["without an average"]

    assert furthest(shown.judged, shown.trained) == 0
    assert furthest(shown.trained, alone.trained) < 1e-4


def test_each_rank_has_half_of_what_is_trained_and_all_that_is_frozen(pair: list[Any]) -> None:
    for layout in (rank["layout"] for rank in pair):
        assert layout["strategy"] == "Sharded"
        assert layout["spread"] == layout["trained"] != []
        assert layout["blocks"] and all(layout["blocks"])
        assert 0.45 < layout["here"] / layout["numbers"] < 0.55
        assert layout["moments here"] == layout["here"]
        assert layout["uneven"] <= 1
        assert layout["frozen shared"] and all(layout["frozen shared"])
    assert sum(rank["layout"]["here"] for rank in pair) == pair[0]["layout"]["numbers"]


def test_the_whole_policy_takes_memory_only_while_it_is_judged(pair: list[Any]) -> None:
    layout = pair[0]["layout"]
    while_judged, after = layout["in the twin"]

    assert while_judged - after == layout["numbers"]


def test_ranks_judge_as_much_as_they_like(pair: list[Any]) -> None:
    assert len(pair[0]["judged by"]) == 2 and pair[1]["judged by"] == []


def test_gradients_are_whole_where_they_are_inspected(alone: Shown, pair: list[Any]) -> None:
    """Those of one process, which takes the mean over the ranks' losses."""
    weights, gradients = pair[0]["inspected"]
    policy = Training().strategy.policy
    policy.load_state_dict(weights, strict=False)
    batch = make_step(4)
    ((policy(rows(batch, 0, 4)).loss + policy(rows(batch, 4, 8)).loss) / 2).backward()

    assert pair[1]["inspected"] is None
    assert furthest(weights, alone.trained) < 1e-4
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert furthest(gradients, expected) < 1e-6


def test_what_the_policy_does_to_gradients_goes_along(pair: list[Any]) -> None:
    """Biases of keys, which cannot be learned, have none; see `hold_key_bias`."""
    _, gradients = pair[0]["inspected"]
    held = {name: g for name, g in gradients.items() if name.endswith(("in_proj_bias", "head.blocks.0.qkv.bias"))}

    assert len(held) == 4
    for gradient in held.values():
        queries, keys, values = gradient.chunk(3)
        assert keys.abs().max() == 0 and values.abs().max() > 0


def test_a_checkpoint_is_written_while_training_goes_on(pair: list[Any], folders: Folders) -> None:
    saved = folders.run / "checkpoints" / "step_00000002"

    assert furthest(pair[0]["unbroken"].trained, pair[0]["a part a rank"].trained) == 0
    parts = [path.stat().st_size for path in sorted((saved / "trainer" / "shards").iterdir())]
    assert len(parts) == 2 and 0.9 < parts[0] / parts[1] < 1.1


def test_training_goes_on_bit_for_bit(pair: list[Any]) -> None:
    for rank in pair:
        resumed, unbroken = rank["resumed"], rank["unbroken"]
        assert resumed.losses == unbroken.losses[2:]
        assert furthest(resumed.trained, unbroken.trained) == furthest(resumed.judged, unbroken.judged) == 0
        assert rank["states resumed"] == 2


@pytest.mark.parametrize("name", ["resumed whole", "resumed spread"])
def test_the_other_strategy_goes_on_from_a_checkpoint(alone: Shown, pair: list[Any], name: str) -> None:
    """From shards with DDP, and from one process's with FSDP."""
    for shown in (rank[name] for rank in pair):
        assert shown.losses == pytest.approx(alone.losses[2:], abs=1e-5)
        assert furthest(shown.trained, alone.trained) < 1e-4
        assert furthest(shown.judged, alone.judged) < 1e-4


def test_one_process_goes_on_from_the_shards_of_two(alone: Shown, pair: list[Any], folders: Folders) -> None:
    training = Training(FSDP)
    training.strategy.load(folders.run / "checkpoints" / "step_00000002")
    shown = training.run(range(2, 4)).shown()

    assert shown.losses == pytest.approx(alone.losses[2:], abs=1e-5)
    assert furthest(shown.trained, alone.trained) < 1e-4
    assert furthest(shown.judged, alone.judged) < 1e-4


def test_one_process_loads_the_policy(pair: list[Any], folders: Folders) -> None:
    policy = load_policy(folders.run / "checkpoints" / "step_00000004")

    assert furthest(dict(policy.named_parameters()), pair[0]["unbroken"].judged) == 0
    assert policy.sample(make_step(0)).isfinite().all()


def test_a_part_that_cannot_be_written_leaves_the_checkpoint_before(pair: list[Any]) -> None:
    for rank in pair:
        failures = rank["failures"]
        assert len(failures["full disk"]) == 1 and "process 1" in failures["full disk"][0]
        assert failures["left"] == ["latest", "step_00000002"]
        assert len(failures["no folder"]) == 1
        assert failures["steps"] == [2, 4]


def _low_precision(strategy: str) -> tuple[bool, Shown]:
    training = Training(f"distributed.strategy={strategy}", "training.precision=bf16").run(range(2))
    return isinstance(training.strategy, Sharded), training.shown()


def _both_in_low_precision() -> list[tuple[bool, Shown]]:
    return [_low_precision(strategy) for strategy in ("ddp", "fsdp")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bfloat16_gives_about_the_same_spread_or_whole(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")

    (_, whole), (spread, parts) = run_ranks(2, tmp_path, _both_in_low_precision, device=device)[0]

    assert spread
    assert parts.losses == pytest.approx(whole.losses, rel=0.02)
    assert parts.norms == pytest.approx(whole.norms, rel=0.1)
    assert all(weight.dtype == torch.float32 for weight in parts.trained.values())
