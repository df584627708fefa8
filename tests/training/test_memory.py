"""What is said when a GPU's memory runs out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import atlas.cli
from atlas.config import Config, load_config
from atlas.training.perf.cost import SampleCost
from atlas.training.perf.memory_estimate import GPUMemory, OutOfMemory, explain, out_of_memory_explained
from tests.policies.test_policy import make_batch, make_policy

CPU = torch.device("cpu")
COST = SampleCost(flops=1e9, tokens={"vision": 138, "language": 21})
GIB = 2**30
FULL = GPUMemory("NVIDIA H100 80GB HBM3", total=80 * GIB, allocated=76 * GIB, reserved=78 * GIB, free=GIB)


def fill_memory(*_: object) -> None:
    """As a GPU's allocator does when it has nothing left."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ...")


def run_out(config: Config) -> OutOfMemory:
    policy = make_policy()
    policy.head.register_forward_hook(fill_memory)
    with pytest.raises(OutOfMemory) as raised, out_of_memory_explained(config, 2, CPU, COST):
        policy(make_batch()).loss.backward()
    return raised.value


def test_the_message_says_what_was_too_large_and_what_to_lower() -> None:
    message = str(run_out(load_config({}, ["data.batch_size=48", "training.gradient_accumulation_steps=2"])))

    assert message.splitlines()[:2] == [
        "Out of GPU memory: 20.00 MiB more were asked for.",
        "data.batch_size is 48: samples of 2 views of 64 x 64 pixels, 138 tokens of vision and 21 of language each.",
    ]
    assert "- data.batch_size=24 with training.gradient_accumulation_steps=4: the same training" in message
    for key in ("training.activation_checkpointing=true", "distributed.strategy=fsdp", "data.image_size"):
        assert f"{key}" in message


def test_the_total_batch_stays_the_same_as_the_advice_says() -> None:
    for size in (2, 7, 24, 63):
        config = load_config({}, [f"data.batch_size={size}", "training.gradient_accumulation_steps=3"])

        found = re.search(
            r"data.batch_size=(\d+) with \S+_steps=(\d+):", explain(RuntimeError("full"), config, 2, None)
        )

        assert found is not None and int(found[1]) < size
        assert int(found[1]) * int(found[2]) == 3 * size


def test_what_is_done_already_is_not_advised() -> None:
    settings = ["training.activation_checkpointing=true", "distributed.strategy=fsdp", "data.batch_size=1"]

    message = explain(RuntimeError("full"), load_config({}, settings), 1, None)

    for key in ("activation_checkpointing", "fsdp", "gradient_accumulation_steps", "freeze", "fp32"):
        assert key not in message.split("What helps")[1]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["model.vision={name: vggt_pretrained, freeze: false}", "data.image_size=56"], "model.vision.freeze=true"),
        (["model.language={name: huggingface, pretrained: t5, freeze: false}"], "model.language.freeze=true"),
        (["training.precision=fp32"], "training.precision=bf16"),
    ],
)
def test_what_could_be_frozen_or_rounded_is_advised(settings: list[str], advice: str) -> None:
    assert advice in explain(RuntimeError("full"), load_config({}, settings), 1, None)


def test_where_the_memory_is_is_said() -> None:
    message = explain(RuntimeError("full"), load_config(), 2, FULL)

    assert (
        "Of the 80.0 GiB of NVIDIA H100 80GB HBM3, 76.0 GiB are allocated, 2.0 GiB more are reserved by torch, 1.0 GiB "
        "belong to other programs and to CUDA itself, and 1.0 GiB are free." in message
    )
    assert "nvidia-smi" not in message and "expandable_segments" not in message


def test_memory_of_other_programs_and_in_pieces_comes_first() -> None:
    crowded = explain(RuntimeError("full"), load_config(), 2, replace(FULL, allocated=20 * GIB, reserved=40 * GIB))

    advice = crowded.split("What helps, the cheapest first:\n")[1].splitlines()
    assert "end the other programs on this GPU, which use up to 39.0 GiB" in advice[0]
    assert "expandable_segments:True" in advice[1]


def test_memory_that_cuda_itself_lacks_is_explained_too() -> None:
    with pytest.raises(OutOfMemory, match="What helps"), out_of_memory_explained(load_config(), 2, CPU):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("no")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, out_of_memory_explained(load_config(), 2, CPU):
        raise error
    assert raised.value is error


def test_the_command_shows_the_message_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run_out(load_config())

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(atlas.cli, "app", fail)
    monkeypatch.setattr("sys.argv", ["atlas", "train"])

    with pytest.raises(SystemExit) as ended:
        atlas.cli.main()

    shown = capsys.readouterr().err
    assert ended.value.code == 1
    assert shown.strip() == str(error) and "Traceback" not in shown


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_full_gpu_is_described() -> None:
    device = torch.device("cuda", 0)
    memory = GPUMemory.of(device)
    assert memory is not None

    with pytest.raises(OutOfMemory, match=memory.name), out_of_memory_explained(load_config(), 2, device, COST):
        torch.empty(2 * memory.total, dtype=torch.uint8, device=device)


@pytest.mark.parametrize(
    ("version", "environment", "advised"),
    [
        ("2.13.0+cu130", {}, "PYTORCH_ALLOC_CONF=expandable_segments:True"),
        ("2.9.1+cu128", {}, "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        (
            "2.13.0",
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
            "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64,expandable_segments:True",
        ),
        ("2.9.1", {"PYTORCH_ALLOC_CONF": "a:1"}, "PYTORCH_ALLOC_CONF=a:1,expandable_segments:True"),
        ("2.13.0", {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, None),
        ("2.13.0", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, None),
    ],
)
def test_the_allocators_setting_is_advised_by_the_name_that_works_here(
    monkeypatch: pytest.MonkeyPatch, version: str, environment: dict[str, str], advised: str | None
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "__version__", version)

    said = explain(RuntimeError("full"), Config(), 2, replace(FULL, allocated=40 * GIB))

    assert ("expandable_segments" in said) == (advised is not None)
    assert f"- {advised or 'data.batch_size'}" in said
