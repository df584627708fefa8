"""The FLOPs of a run's own policy and data, and what share of known GPUs they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atlas.config import load_config
from atlas.data.formats import open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.summary import summarize
from atlas.system.gpu_facts import GPU_PEAKS, peak_of
from atlas.training.parallel.block_setup import set_up_blocks
from atlas.training.perf.cost import SampleCost, Utilisation, example_batch, sample_cost
from tests.conftest import MakeLibero
from tests.policies import test_alignment, test_vggt_backbone
from tests.policies.test_policy import HORIZON, SIZE, SMALL, VISIONS, make_policy

TASKS = ("open it", "close the upper drawer")


@pytest.fixture
def data_of(make_libero: MakeLibero) -> Callable[..., ChunkDataset]:
    def make(image_size: int = SIZE) -> ChunkDataset:
        dataset = open_dataset(make_libero({task: [9, 10] for task in TASKS}))
        episodes = torch.arange(len(dataset)).numpy()
        return ChunkDataset(dataset, episodes, ["agentview", "eye_in_hand"], image_size, HORIZON)

    return make


def counted_flops(policy: ModularPolicy, data: ChunkDataset, size: int) -> int:
    """For a real step, with attention as the products that define it: torch does not count the CPU's fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        policy.train()(example_batch(data, size, "cpu")).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("vision", VISIONS)
def test_the_count_is_that_of_a_real_step(vision: str, data_of: Callable[..., ChunkDataset]) -> None:
    policy, data = make_policy(vision, "model.head={name: flow_matching, dim: 32}"), data_of()
    before = {name: value.clone() for name, value in policy.state_dict().items()}

    cost = sample_cost(policy, data, 6)

    assert cost.flops == counted_flops(policy, data, 6) / 6
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert all(p.grad is None for p in make_policy(vision).parameters())


def test_tokens_are_those_that_fusion_reads(data_of: Callable[..., ChunkDataset]) -> None:
    cost = sample_cost(make_policy("vggt-conv"), data_of(), 4)

    assert cost.tokens["vision"] == 2 * (1 + 4 + (SIZE // 16) ** 2)  # a camera token and registers in each view
    assert cost.tokens["language"] == len(max(TASKS, key=len)) + 1  # bytes and the end


def test_operations_of_recomputing_are_not_the_models(data_of: Callable[..., ChunkDataset]) -> None:
    policy, data = make_policy("vggt-conv"), data_of()
    plain, done = sample_cost(policy, data, 4), counted_flops(policy, data, 4)

    set_up_blocks(policy, recompute=True, compiled=False)

    assert sample_cost(policy, data, 4) == plain
    assert counted_flops(policy, data, 4) > 1.1 * done  # it does run more


def test_an_instruction_is_encoded_once_a_batch(data_of: Callable[..., ChunkDataset]) -> None:
    policy, data = make_policy("keypoints", "model.language.layers=4"), data_of()

    small, large = sample_cost(policy, data, 2).flops, sample_cost(policy, data, 20).flops

    assert large < small
    assert large == counted_flops(policy, data, 20) / 20


def test_frozen_parts_go_forward_only(data_of: Callable[..., ChunkDataset]) -> None:
    data = data_of(test_vggt_backbone.SIZE)

    frozen = sample_cost(test_vggt_backbone.make_policy(), data, 2).flops
    trained = sample_cost(test_vggt_backbone.make_policy("freeze: false"), data, 2).flops

    assert 2.5 * frozen < trained < 3.5 * frozen


def test_a_teacher_is_counted(data_of: Callable[..., ChunkDataset]) -> None:
    data = data_of()

    plain = sample_cost(test_alignment.make_policy(), data, 2).flops
    taught = test_alignment.make_policy(*test_alignment.alignment())

    assert sample_cost(taught, data, 2).flops > 2 * plain
    assert sample_cost(taught, data, 2).flops == counted_flops(taught, data, 2) / 2


def test_cached_features_cost_no_backbone(
    data_of: Callable[..., ChunkDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, data = test_vggt_backbone.make_policy(), data_of(test_vggt_backbone.SIZE)
    with_images = sample_cost(policy, data, 2)
    features = torch.zeros(1, with_images.tokens["vision"], policy.vision.dim, dtype=torch.bfloat16)
    monkeypatch.setattr(data, "_features", object())
    monkeypatch.setattr(data, "_cached_features", lambda index, key: features)

    cached = sample_cost(policy, data, 2)

    assert cached.tokens["vision"] == with_images.tokens["vision"]
    assert cached.flops < 0.2 * with_images.flops


def test_the_summary_of_a_config_counts_the_same(data_of: Callable[..., ChunkDataset]) -> None:
    config = load_config(
        {}, [*SMALL, *VISIONS["vggt-conv"], f"data.image_size={SIZE}", f"data.action_horizon={HORIZON}"]
    )

    assert sample_cost(make_policy("vggt-conv"), data_of(), 1).flops == pytest.approx(
        summarize(config)["training_flops_per_sample"], rel=0.02
    )


# ---- of a GPU's peak ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GH200 144G HBM3e", "gh200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_gpus_are_known_by_their_names(name: str, gpu: str) -> None:
    assert peak_of(name) == GPU_PEAKS[gpu]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",  # a seventh of one
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA L40",
        "Tesla V100-SXM2-16GB",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_other_gpus_are_not_taken_for_known_ones(name: str) -> None:
    assert peak_of(name) is None


def test_peaks_of_faster_kinds_are_higher() -> None:
    for peak in GPU_PEAKS.values():
        assert peak.at(bf16=True, tf32=True) == peak.bf16 > peak.at(bf16=False, tf32=True) >= peak.at(False, False) > 0


def test_the_utilisation_is_a_share_of_all_gpus_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    cost = SampleCost(flops=989e9, tokens={})

    found = Utilisation.on(torch.device("cuda", 0), 8, cost, bf16=True, tf32=True)

    assert found is not None
    assert found.metrics(samples_per_second=4000.0) == {"perf/mfu": pytest.approx(0.5)}


def test_without_a_known_gpu_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = SampleCost(1e9, {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Something New")

    assert Utilisation.on(torch.device("cpu"), 1, cost, False, False) is None
    assert Utilisation.on(torch.device("cuda", 0), 1, cost, True, True) is None
