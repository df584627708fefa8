"""Whole policies on each rank: two processes train as one does, and resume from checkpoints of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.checkpoints.shards import Shards, write_shard
from atlas.errors import InputError
from atlas.train import share_embeddings
from atlas.training.parallel.strategy import Replicated, ddp_settings
from tests.policies.test_policy import make_tiny_encoder
from tests.training.joint import Shown, Training, furthest, train
from tests.training.ranks import run_ranks

STEPS = 4
INSTRUCTIONS = [f"put {number} cups on the shelf" for number in ("one", "two", "three", "four", "five")]
WAYS = {
    "a part a rank": [],
    "two parts a rank": ["training.gradient_accumulation_steps=2"],
    "activations computed again": ["training.activation_checkpointing=true"],
}


@pytest.fixture(scope="module")
def alone() -> Shown:
    """One process with the batches of all ranks."""
    return train(STEPS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two processes find."""
    folder = tmp_path_factory.mktemp("pair")
    make_tiny_encoder(folder / "t5")
    return run_ranks(2, folder / "ranks", _two_ranks, folder / "t5")


def _two_ranks(encoder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: train(STEPS, *overrides) for name, overrides in WAYS.items()}
    frozen = Training(f"model.language={{name: huggingface, pretrained: {encoder}}}").run(range(1))
    found["exchanged"] = frozen.strategy.model._get_ddp_logging_data()
    found["trained"] = sum(p.numel() for p in frozen.strategy.policy.parameters() if p.requires_grad)
    found["frozen"] = sum(p.numel() for p in frozen.strategy.policy.parameters() if not p.requires_grad)
    return found | _read_instructions(frozen, encoder.parent / "instructions.safetensors")


def _read_instructions(training: Training, file: Path) -> dict[str, Any]:
    """What this process has read of five, and what it knows of all."""
    encoder, read = training.strategy.policy.language, []
    encoder.model.register_forward_hook(lambda *_: read.append(1))
    share_embeddings(encoder, INSTRUCTIONS, file, training.accelerator, resumed=False)
    return {"read": len(read), "words": encoder(INSTRUCTIONS).tokens, "read again": len(read)}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(alone: Shown, pair: list[Any], way: str) -> None:
    for shown in (rank[way] for rank in pair):
        assert shown.losses == pytest.approx(alone.losses, abs=1e-5)
        assert shown.norms == pytest.approx(alone.norms, abs=1e-5)
        assert furthest(shown.trained, alone.trained) < 1e-4
        assert furthest(shown.judged, alone.judged) < 1e-4
    assert furthest(pair[0][way].trained, pair[1][way].trained) == 0


def test_frozen_weights_are_neither_trained_nor_exchanged(pair: list[Any]) -> None:
    exchanged = pair[0]["exchanged"]

    assert pair[0]["frozen"] > 0
    assert exchanged["total_parameter_size_bytes"] == 4 * pair[0]["trained"]
    assert exchanged["static_graph"] and exchanged["gradient_as_bucket_view"]
    assert not exchanged["find_unused_parameters"] and not exchanged["broadcast_buffers"]


def test_each_process_has_a_frozen_encoder_read_some_instructions_and_all_know_them(pair: list[Any]) -> None:
    assert [(rank["read"], rank["read again"]) for rank in pair] == [(3, 3), (2, 2)]
    assert torch.equal(pair[0]["words"], pair[1]["words"])


def test_the_graph_is_left_open_where_gradients_are_accumulated() -> None:
    """torch's DDP raises for the other combination; once it does not, this setting can go."""
    training = Training("training.gradient_accumulation_steps=2").config.training

    assert not ddp_settings(training).static_graph
    assert ddp_settings(training.model_copy(update={"gradient_accumulation_steps": 1})).static_graph


@pytest.mark.parametrize("decay", ["0", "0.9"])
def test_training_goes_on_bit_for_bit(tmp_path: Path, decay: str) -> None:
    average = f"training.ema_decay={decay}"
    whole = Training(average).run(range(4)).shown()
    first = Training(average).run(range(2))
    contents = first.snapshot(2)
    assert contents is not None
    saved = first.strategy.checkpoints(tmp_path, 1).write(contents)

    second = Training(average)
    states = second.strategy.load(saved)
    resumed = second.run(range(2, 4)).shown()

    assert len(states) == 1
    assert [*first.losses, *resumed.losses] == whole.losses
    assert furthest(resumed.trained, whole.trained) == furthest(resumed.judged, whole.judged) == 0


def test_what_is_judged_is_the_average_and_training_goes_on_after_it() -> None:
    training = Training().run(range(2))
    policy = training.strategy.policy

    with training.strategy.judged() as judged:
        assert judged is not policy and not any(m.training for m in judged.modules())
        difference = furthest(dict(judged.named_parameters()), dict(policy.named_parameters()))
        assert 0 < difference < 0.1
    assert all(m.training for m in policy.modules())

    training = Training("training.ema_decay=0").run(range(2))
    with training.strategy.judged() as judged:
        assert judged is training.strategy.policy and not judged.training
    assert training.strategy.policy.training


def test_an_average_is_neither_made_up_nor_dropped(tmp_path: Path) -> None:
    saved = {}
    for decay in ("0", "0.9"):
        training = Training(f"training.ema_decay={decay}").run(range(1))
        contents = training.snapshot(1)
        assert contents is not None
        saved[decay] = training.strategy.checkpoints(tmp_path / decay, 1).write(contents)

    with pytest.raises(InputError, match=r"saved without training\.ema_decay"):
        Training("training.ema_decay=0.9").strategy.load(saved["0"])
    with pytest.raises(InputError, match=r"saved with training\.ema_decay"):
        Training("training.ema_decay=0").strategy.load(saved["0.9"])


def test_one_process_has_nothing_to_spread(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        training = Training("distributed.strategy=fsdp")

    assert isinstance(training.strategy, Replicated)
    assert "nothing to shard" in caplog.text


# ---- parts of checkpoints --------------------------------------------------------------------------------


def write_parts(folder: Path, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of 5 rows and one row in parts, as ranks have them."""
    matrix, row = torch.arange(10.0).view(5, 2), torch.ones(1, 3)
    for rank in range(ranks):
        own = {f"weights/{name}": _chunk(tensor, ranks, rank) for name, tensor in (("matrix", matrix), ("row", row))}
        write_shard(folder, rank, ranks, {**own, "step/row": torch.tensor(7.0)})
    return matrix, row


def _chunk(tensor: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    chunks = tensor.chunk(ranks)
    return chunks[rank] if rank < len(chunks) else tensor[:0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_parts_are_read_as_any_rows(tmp_path: Path, ranks: int) -> None:
    matrix, row = write_parts(tmp_path, ranks)

    shards = Shards(tmp_path)

    assert torch.equal(shards.weight("matrix", (5, 2)), matrix)
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(shards.weight("matrix", (5, 2), slice(start, stop)), matrix[start:stop])
    assert torch.equal(shards.weight("row", (1, 3)), row)
    assert shards.weight("row", (1, 3), slice(1, 1)).shape == (0, 3)
    assert shards.has_weights and shards.has_moments


def test_parts_that_are_missing_damaged_or_of_another_policy_are_named(tmp_path: Path) -> None:
    write_parts(tmp_path, 3)
    parts = tmp_path / "trainer" / "shards"

    with pytest.raises(InputError, match=r"'weights/matrix' has the shape \[5, 2\], expected \[4, 2\]"):
        Shards(tmp_path).weight("matrix", (4, 2))
    with pytest.raises(InputError, match=r"'weights/vector' is missing"):
        Shards(tmp_path).weight("vector", (4,))
    (parts / "00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"shards is incomplete: it has 2 files of 3"):
        Shards(tmp_path)
    write_parts(tmp_path, 3)
    (parts / "00001.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"00001\.safetensors is damaged"):
        Shards(tmp_path)
    (parts / "00001.safetensors").unlink()
    with pytest.raises(InputError, match=r"shards is incomplete: it has 2 files of 3"):
        Shards(tmp_path)
