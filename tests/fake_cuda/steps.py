"""What the process with the fake device does: a Trainer for each kind of policy, its steps, validation and saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

import atlas.training.checkpoint_manager
import atlas.training.trainer
from atlas.config import Config, load_config
from atlas.data.sampling.augment import _luma
from atlas.data.training_data import TrainingData
from atlas.policies.base import Policy
from atlas.policies.feature_cache_filling import begin_cache, fill_cache, frozen_encoder
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.vlm.vlm_policy import VLMPolicy
from atlas.train import make_policy
from atlas.training import Trainer
from atlas.training.parallel.sharded import Sharded, trained_shards
from atlas.training.prepared_run import PreparedRun
from atlas.training.schedule import make_schedule
from tests.conftest import made_up_episode
from tests.fake_cuda.census import Census, Collectives, pin_memory
from tests.policies.golden import FIXTURES
from tests.policies.image_text_models import save_image_text_model
from tests.policies.test_policy import SMALL, VISIONS, make_tiny_encoder
from tests.policies.test_vggt_backbone import WEIGHTS, backbone_config
from tests.training.joint import make_job, make_step, rows

CUDA = torch.device("cuda", 0)
FLOW = "model.head={name: flow_matching, dim: 32, layers: 1, heads: 2, steps: 1}"
BOTH_WAYS = "model.fusion={name: bidirectional, dim: 32, layers: 1, exchange_layers: 1, heads: 2}"
TEACHER = f"{{name: vggt_pretrained, pretrained: {WEIGHTS}, embed_dim: 48, depth: 4, num_heads: 3, img_size: 56, "
TEACHER += "patch_embed_depth: 2, patch_embed_num_heads: 3}"
RECOMPUTED = "training.activation_checkpointing=true"
FP32 = "training.precision=fp32"
BF16 = "precision: bf16"  # what "auto" is with a GPU


# What a folder says, and rows of words that were made before, hold the host's own tensors, which an average copies and
# the fake mode cannot.
OF_THE_HOST = ("atlas.policies.published.description.Description", "atlas.policies.vlm.prompts.Prompts")
VALIDATED = "keypoints"


def cases(folder: Path) -> dict[str, list[str]]:
    """Every vision, language, fusion and head, with and without recomputing, accumulation, an average, a cache; and
    every other type, with adapters, an expert alone, or whole."""
    text = f"name: huggingface, pretrained: {folder / 't5'}"
    return {
        "keypoints": [*VISIONS["keypoints"], f"model.language={{{text}}}", "training.ema_decay=0"],
        "vggt of keypoints": [*VISIONS["vggt-keypoints"], FLOW, BOTH_WAYS, RECOMPUTED],
        "vggt of convolutions": [
            *VISIONS["vggt-conv"],
            f"model.alignment={{teacher: {TEACHER}, image_size: 56}}",
            "training.gradient_accumulation_steps=2",
            "training.fused_optimizer=false",
        ],
        "vggt of patches": [*VISIONS["vggt-patch"], f"model.language={{{text}, freeze: false}}", FP32],
        "frozen": [*backbone_config(BF16), FLOW],
        "cached": [*backbone_config(), f"data.feature_cache={folder / 'cache'}"],
        "adapters": [*backbone_config(BF16, "lora: {rank: 4}"), FLOW],
        "trained on": [*backbone_config("freeze: false", "recompute: true")],
        "smolvla": published("smolvla"),
        "pi0": [*published("pi0"), "model.lora={rank: 2, alpha: 4}"],
        "pi05": [*published("pi05"), RECOMPUTED],
        "vlm": [
            f"model={{type: vlm, backbone: {{pretrained: {folder / 'smolvlm'}, precision: bf16, lora: {{rank: 2}}}}, "
            "head: {name: vlm-expert, dim: 32, mlp_dim: 48, steps: 3}}"
        ],
    }


def published(kind: str) -> list[str]:
    return [f"model={{type: {kind}, pretrained: {FIXTURES / kind}, statistics: dataset, sampling_steps: 2}}"]


def run_all(folder: Path, names: list[str]) -> dict[str, Any]:
    make_tiny_encoder(folder / "t5")
    save_image_text_model("smolvlm", folder / "smolvlm")
    data = made_up_data(folder / "data")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with as_on_a_gpu():
        settings = cases(folder)
        found = {name: run(name, folder, [f"data.path={data}", *settings[name]], mode) for name in names}
    return found | {"spread": run_spread()}


def made_up_data(folder: Path) -> Path:
    from atlas.data.hdf5.libero_writer import write_libero_file

    for number, task in enumerate(("open the drawer", "put the red cup into the upper drawer")):
        rng = np.random.default_rng(number)
        episodes = [made_up_episode(rng, task, 8, number, size=32) for number in range(2)]
        write_libero_file(folder / f"task_{number}_demo.hdf5", task, episodes, {"env_name": "elsewhere"})
    return folder


def as_on_a_gpu() -> ExitStack:
    """What torch's CPU build lacks, and what only a driver could tell."""
    stack = ExitStack()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "torch.cuda.Stream": lambda device: stream,
        "torch.cuda.stream": lambda stream: nullcontext(),
        "torch.cuda.current_stream": lambda device: stream,
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.max_memory_allocated": lambda *_: 0,
        "torch.Tensor.pin_memory": pin_memory,
        "torch.Tensor.record_stream": lambda tensor, stream: None,
        # It ends the process now and then where the storage is of the device that is not there.
        "torch.multiprocessing.reductions.StorageWeakRef.__del__": lambda reference: None,
        "atlas.training.trainer.sample_cost": lambda *_: None,
        "atlas.training.trainer.make_loader": outside_of_fake_mode(atlas.training.trainer.make_loader),
    }.items():
        stack.enter_context(patch(name, value))
    for name in OF_THE_HOST:
        stack.enter_context(patch(f"{name}.__deepcopy__", lambda self, memo: self, create=True))
    return stack


def run_spread() -> dict[str, Any]:
    """A step of a policy that is sharded over eight ranks, of which this is the fourth and the others do not exist."""
    dist.init_process_group("fake", rank=3, world_size=8, store=FakeStore())
    config, policy = make_job("distributed.strategy=fsdp")
    weights = {name: p.shape[0] for name, p in policy.named_parameters() if p.requires_grad}
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=8,
        process_index=3,
        mixed_precision="no",
        prepare_model=lambda model, **_: model,
    )
    with patch("torch.distributed.new_group", lambda **_: dist.group.WORLD):
        strategy = Sharded(policy, config, accelerator)
    with Collectives() as step:
        strategy.model(rows(make_step(0), 0, 1)).loss.backward()
        strategy.clip(1.0)
        strategy.optimizer.step()
        strategy.stepped(0)
    with Collectives() as judging, strategy.judged():
        pass
    found = {
        "groups": len(policy.blocks()) + 1,
        "weights": weights,
        "rows": {name: len(shard.to_local()) for name, shard in trained_shards(policy).items()},
        "step": step.seen,
        "judging": judging.seen,
    }
    dist.destroy_process_group()
    return found


def run(name: str, folder: Path, overrides: list[str], mode: FakeTensorMode) -> dict[str, Any]:
    settings = [
        "data.action_horizon=4",
        "data.batch_size=8",
        "data.num_workers=0",
        "training.max_steps=9",
        f"output_dir={folder}",
        "run_name=run",
        "training.ema_decay=0.9",
    ]
    config = load_config({}, [*SMALL, *settings, "data.image_size=32", *overrides])
    prepared, policy = make_parts(config)
    with mode:
        trainer = make_trainer(prepared, to_fake(policy))
        found = {
            "trained in": sorted({str(p.dtype) for p in trainer.policy.parameters() if p.requires_grad}),
        }
        batches, stop = trainer._train_batches(), SimpleNamespace(signal=0)
        trainer.model.train()
        _luma(CUDA)  # once a process
        with Census() as step:
            trainer._optimize(batches, 0, stop)
        with Census() as rest:
            if name == VALIDATED:
                trainer.validate()
        moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
        found["moments in"] = sorted({str(value.dtype) for value in moments})
        found["devices"] = sorted({str(value.device) for value in (*moments, *trainer.policy.parameters())})
        found["saved from"] = saved_from(trainer)
    found["step"], found["validation"] = listed(step), listed(rest)
    return found


def listed(census: Census) -> list[tuple[str, str, int]]:
    return sorted((what, place, count) for (what, place), count in census.seen.items())


def make_parts(config: Config) -> tuple[PreparedRun, Policy]:
    torch.manual_seed(0)
    prepared = PreparedRun(config)
    data = prepared.data
    if config.data.feature_cache is not None:
        cache = begin_cache(config, Path(config.data.feature_cache), 0)
        encoder = frozen_encoder(config).build_cached()
        fill_cache(cache, encoder, all_frames(data, config), config, torch.device("cpu"))
    policy = make_policy(prepared)
    if isinstance(policy, ModularPolicy) and "language" in policy.frozen:
        policy.language.embed(data.dataset.tasks)
    if isinstance(policy, VLMPolicy):
        for task in data.dataset.tasks:
            policy._prompts.row(task, policy._views, policy.head.extra_tokens)
    return prepared, policy


def all_frames(data: TrainingData, config: Config) -> Any:
    from atlas.data.sampling.chunks import ChunkDataset

    return ChunkDataset(data.dataset, np.arange(len(data.dataset)), data.cameras, config.data.image_size, horizon=1)


def to_fake(policy: Policy) -> Policy:
    """The policy on the device, with tensors that hold no numbers, in place. Within the fake mode."""
    made: dict[int, nn.Parameter] = {}
    for module in policy.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                there = torch.empty_like(parameter, device=CUDA, requires_grad=False)
                made[id(parameter)] = nn.Parameter(there, requires_grad=parameter.requires_grad)
                for hook in (parameter._backward_hooks or {}).values():
                    made[id(parameter)].register_hook(hook)
            module._parameters[name] = None if parameter is None else made[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device=CUDA)
    policy.to = lambda device: policy  # type: ignore[method-assign]  # torch cannot swap such tensors
    return policy


def make_trainer(prepared: PreparedRun, policy: Policy) -> Trainer:
    config = prepared.config
    bf16 = config.training.precision != "fp32"

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16, enabled=bf16)

    def prepare_model(model: nn.Module) -> nn.Module:
        forward = model.forward

        def cast(*args: Any) -> Any:
            with autocast():
                return forward(*args)

        model.forward = cast  # type: ignore[method-assign]
        return model

    accelerator: Any = SimpleNamespace(
        device=CUDA,
        num_processes=1,
        process_index=0,
        is_main_process=False,  # nothing is written
        mixed_precision="bf16" if bf16 else "no",
        autocast=autocast,
        prepare_model=prepare_model,
        no_sync=lambda model: nullcontext(),
        backward=lambda loss: loss.backward(),
        reduce=lambda tensor, how: tensor,
    )
    tracker: Any = SimpleNamespace(
        log=lambda metrics: None, flush=lambda: None, step=0, stop_requested=False, wandb_id=None, wandb_row=None
    )
    return Trainer(prepared, policy, accelerator, tracker, make_schedule(config, prepared.data.draws, ranks=1))


def saved_from(trainer: Trainer) -> list[str]:
    """The devices of what the ranks send each other for a checkpoint."""
    sent: list[Any] = []
    with patch("atlas.training.checkpoint_manager.gather_object", lambda each: sent.extend(each) or each):
        trainer.save()
    tensors = [leaf for leaf in tree_leaves(sent) if isinstance(leaf, torch.Tensor)]
    assert tensors
    return sorted({tensor.device.type for tensor in tensors})


class outside_of_fake_mode:
    """A function that makes a loader, whose batches hold numbers."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, pin_memory: bool, **kwargs: Any) -> Any:
        return _Real(self._make(*args, **kwargs), pin_memory)


class _Real:
    def __init__(self, loader: Any, pin_memory: bool) -> None:
        self._loader, self._pin_memory = loader, pin_memory

    def __iter__(self) -> Iterator[Any]:
        with unset_fake_temporarily():
            batches = iter(self._loader)
        while True:
            with unset_fake_temporarily():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.pin_memory() if self._pin_memory else batch
