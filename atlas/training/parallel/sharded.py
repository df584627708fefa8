"""A policy sharded over the ranks: each keeps a part of every weight, gradient and optimizer state (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from atlas.checkpoints.contents import RankState, TrainingState, answers_at, load_rank_states, save_state
from atlas.checkpoints.host_memory import HostMemory
from atlas.checkpoints.run_folder import Retention
from atlas.checkpoints.shards import JointCheckpoints, name_training, open_training, restore_moments, write_shard
from atlas.config import Config
from atlas.policies.base import Policy
from atlas.policies.reference_answers import ReferenceAnswers
from atlas.system.tensors import save_nested
from atlas.training.average import follow, twin_of
from atlas.training.optimizer import make_optimizer
from atlas.training.parallel.strategy import check_average

Hook = Callable[[torch.Tensor], torch.Tensor | None]


class Sharded:
    """Rank r of n has the r-th n-th of the rows of every trained weight, its gradient, its moments and its average.

    A block's weights are gathered just before it runs, and again in the backward pass (Zhao et al., 2023; torch's
    `fully_shard`, block by block as the policy names them). Frozen weights stay whole on every rank: they have neither
    gradients nor optimizer state, and often another precision. See `Strategy` for the methods.
    """

    def __init__(self, policy: Policy, config: Config, accelerator: Accelerator) -> None:
        """policy: on the accelerator's device, the same on every rank; it is sharded in place."""
        self._twin = twin_of(policy)
        self._forms = {name: p.stride() for name, p in policy.named_parameters() if p.requires_grad}
        self._empty_twin()
        self.model: nn.Module = accelerator.prepare_model(policy, device_placement=False, evaluation_mode=True)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        spread(policy, mesh, low_precision=accelerator.mixed_precision == "bf16")
        self.policy = policy
        self.optimizer: torch.optim.Optimizer = make_optimizer(policy, config.training)
        self._weights = trained_shards(policy)
        self._decay = config.training.ema_decay
        self._averages: dict[str, DTensor] | None = None
        if self._decay:
            self._averages = {name: _spread_like(w, w.to_local().detach().clone()) for name, w in self._weights.items()}
        # A separate group: checkpoints are written while training goes on.
        self._saving = dist.new_group(backend="gloo", timeout=config.distributed.group_timeout)
        self._rank, self._ranks = accelerator.process_index, accelerator.num_processes
        self._memory = HostMemory()
        self._host: dict[str, torch.Tensor] = {}

    @property
    def _judged(self) -> dict[str, DTensor]:
        return self._weights if self._averages is None else self._averages

    # ---- a step ------------------------------------------------------------------------------------------

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._exchange(False)
        try:
            yield
        finally:
            self._exchange(True)

    def _exchange(self, wanted: bool) -> None:
        assert isinstance(self.policy, FSDPModule)
        self.policy.set_requires_gradient_sync(wanted)
        self.policy.set_is_last_backward(wanted)

    def clip(self, max_norm: float) -> torch.Tensor:
        weights = list(self._weights.values())
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        assert isinstance(norm, DTensor)
        whole = norm.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(weights, max_norm, whole)
        return whole

    def stepped(self, step: int) -> None:
        if self._averages is not None:
            averages = [average.to_local() for average in self._averages.values()]
            follow(averages, [weight.to_local() for weight in self._weights.values()], self._decay, step)

    # ---- whole policies ----------------------------------------------------------------------------------

    @contextmanager
    def inspected(self) -> Iterator[Policy | None]:
        for name, shard in self._weights.items():
            whole = shard.full_tensor().detach()
            gradient = shard.grad.full_tensor() if isinstance(shard.grad, DTensor) else None
            if self._rank == 0:
                weight = self._allot(name, whole)
                weight.requires_grad_(True).grad = gradient
        try:
            yield self._twin if self._rank == 0 else None
        finally:
            self._empty_twin()

    @contextmanager
    def judged(self) -> Iterator[Policy]:
        for name, shard in self._judged.items():
            self._allot(name, shard.full_tensor().detach())
        try:
            yield self._twin.eval()
        finally:
            self._empty_twin()
            self.policy.train()  # including what the twin shares with the policy

    def _allot(self, name: str, values: torch.Tensor) -> nn.Parameter:
        """Give a weight of the twin memory, in the policy's original memory format, and its values."""
        weight = self._twin.get_parameter(name)
        memory = torch.empty_strided(values.shape, self._forms[name], dtype=values.dtype, device=weight.device)
        weight.data = memory.copy_(values)
        return weight

    def _empty_twin(self) -> None:
        """Outside of use the twin has no weights, so that training has the memory."""
        for name in self._forms:
            weight = self._twin.get_parameter(name).requires_grad_(False)
            weight.grad = None
            weight.data = weight.data.new_empty(0)

    # ---- checkpoints -------------------------------------------------------------------------------------

    def checkpoints(self, run_dir: Path, retention: Retention | int) -> JointCheckpoints:
        return JointCheckpoints(run_dir, retention, self._saving)

    def snapshot(self, state: TrainingState, rank_states: Sequence[RankState]) -> ShardedSnapshot:
        tensors = name_training(self._weights, self.optimizer, self._averages is not None)
        copies = self._memory.copy([_local(tensor) for tensor in tensors.values()])
        part = dict(zip(tensors, copies, strict=True))
        whole = self._whole_on_host()
        answers = answers_at(self._twin, state.step)
        return ShardedSnapshot(self.policy, whole, rank_states, part, self._rank, self._ranks, replace(state), answers)

    @torch.no_grad()
    def _whole_on_host(self) -> dict[str, torch.Tensor]:
        """The weights that are saved as `policy/`, gathered on the main rank one weight at a time; empty elsewhere."""
        for name, value in self.policy.own_state_dict().items():
            tensor = self._judged.get(name, value)
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self._rank == 0:
                if name not in self._host:
                    self._host[name] = torch.empty_like(whole, device="cpu")
                self._host[name].copy_(whole)
        return self._host

    def load(self, checkpoint: Path) -> list[RankState]:
        stored = open_training(checkpoint, self._weights, self.optimizer)
        check_average(checkpoint, stored.has_weights, self._averages is not None)
        self._load_judged(checkpoint / "policy" / "model.safetensors")
        if stored.has_weights:
            for name, weight in self._weights.items():
                weight.to_local().data.copy_(stored.weight(name, weight.shape, _rows(weight)))
        if stored.has_moments:

            def read(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
                assert isinstance(weight, DTensor)
                found = stored.moments(name, weight.shape, _rows(weight))
                return {kind: _spread_like(weight, value) if value.ndim else value for kind, value in found.items()}

            restore_moments(self.optimizer, self._weights, read)
        return load_rank_states(checkpoint)

    def _load_judged(self, path: Path) -> None:
        """Load through the twin, which knows what fits."""
        for name, shard in self._judged.items():
            self._allot(name, torch.empty(shard.shape, dtype=shard.dtype))
        self._twin.load_weights(path)
        for name, shard in self._judged.items():
            shard.to_local().data.copy_(self._twin.get_parameter(name)[_rows(shard)])
        self._empty_twin()


@dataclass(frozen=True)
class ShardedSnapshot:
    """A rank's part of a checkpoint's contents, on the CPU.

    policy: provides its config, processor and card, but no weights. whole: on the main rank what is saved as `policy/`,
    elsewhere nothing. part: this rank's rows, see `name_training`.
    """

    policy: Policy
    whole: Mapping[str, torch.Tensor]
    rank_states: Sequence[RankState]
    part: Mapping[str, torch.Tensor]
    rank: int
    ranks: int
    state: TrainingState
    answers: ReferenceAnswers | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of this rank's part."""
        return sum(t.numel() * t.element_size() for t in (*self.whole.values(), *self.part.values()))

    def write(self, folder: Path) -> None:
        """Write this rank's part into a folder. Raises OSError."""
        write_shard(folder, self.rank, self.ranks, self.part)
        if self.rank == 0:
            self.policy.save_pretrained(folder / "policy", weights=self.whole)
            if self.answers is not None:
                self.answers.save(folder / "policy")
            save_nested(folder / "trainer" / "ranks.safetensors", self.rank_states)
            save_state(self.state, folder)


# ---- laying out ------------------------------------------------------------------------------------------


def spread(policy: Policy, mesh: DeviceMesh, low_precision: bool) -> None:
    """Shard a policy in place: each of its blocks separately, and the rest of its trained weights together.

    low_precision: blocks are gathered in bfloat16, which halves the traffic; their gradients are exchanged in float32.
    """
    frozen = {p for p in policy.parameters() if not p.requires_grad}
    for weight in set(policy.parameters()) - frozen:
        weight.data = weight.data.contiguous()  # FSDP takes no other memory format, such as channels_last
    for block in policy.blocks():
        hooks = _gradient_hooks(block)
        fully_shard(block, mesh=mesh, mp_policy=_precision(mesh, low_precision), ignored_params=frozen)
        _put_back(block, hooks)
    hooks = _gradient_hooks(policy)
    fully_shard(policy, mesh=mesh, ignored_params=frozen)
    _put_back(policy, hooks)


def _precision(mesh: DeviceMesh, low: bool) -> MixedPrecisionPolicy:
    """The precision of a block. Its computation is left to autocast, as with DDP, so inputs are not cast.

    On CPUs weights stay in float32, as autocast has no norms with bfloat16 weights there.
    """
    if low and mesh.device_type == "cuda":
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    return MixedPrecisionPolicy()


def _gradient_hooks(module: nn.Module) -> dict[str, list[Hook]]:
    """The policy's hooks on gradients of weights, by the weights' names in the module."""
    return {name: list(p._backward_hooks.values()) for name, p in module.named_parameters() if p._backward_hooks}


def _put_back(module: nn.Module, hooks: Mapping[str, list[Hook]]) -> None:
    """Hooks belong to weights, which FSDP replaces by other tensors; these exist from the first run on."""

    @torch.compiler.disable
    def put_back(module: nn.Module, _: object) -> None:
        for name, each in hooks.items():
            for hook in each:
                module.get_parameter(name).register_hook(hook)
        handle.remove()

    if hooks:
        handle = module.register_forward_pre_hook(put_back)  # runs after FSDP's own, which comes first


def _rows(shard: DTensor) -> slice:
    """The rows of the whole tensor that this rank has, distributed as by torch.chunk."""
    mesh = shard.device_mesh
    count = -(-shard.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * count, shard.shape[0])
    return slice(start, start + len(shard.to_local()))


def _spread_like(shard: DTensor, rows: torch.Tensor) -> DTensor:
    """These rows as a tensor that is sharded like another one, on its device."""
    mesh, placements = shard.device_mesh, shard.placements
    local = rows.to(shard.device)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shard.shape, stride=shard.stride())


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained_shards(policy: Policy) -> dict[str, DTensor]:
    """The weights that are trained, by name."""
    shards = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert all(isinstance(p, DTensor) for p in shards.values())
    return shards  # type: ignore[return-value]
