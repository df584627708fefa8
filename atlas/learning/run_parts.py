"""The parts that a learner and its actors build in the same way: the view of the policy, and its world."""

from __future__ import annotations

import hashlib
import json

import torch

from atlas.config import Config, OnPolicyConfig
from atlas.environments.catalog import environment_spec, make_environment
from atlas.environments.environment import Environment, StateSimulator
from atlas.environments.state_world import StateWorld
from atlas.errors import InputError
from atlas.learning.policy_view import PolicyView, load_start, processor_of_world
from atlas.learning.residual_view import ResidualView, corrected_policy
from atlas.policies.action_distribution import Noise
from atlas.policies.base import Policy
from atlas.rollout.actor import image_size_for
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.evaluation import check_policy_fits

RESIDUAL = "residual"  # the name of a correction's settings
View = PolicyView | ResidualView


def about(policy: Policy, env: str) -> str:
    """The world's name, and a hash of the policy's config and scaling."""
    processor = policy.processor
    contents = {
        "model": policy.config.model_dump(mode="json"),
        "actions": processor.action_spec.to_dict(),
        "horizon": processor.action_horizon,
        "statistics": [each.to_dict() for each in processor.statistics],
    }
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]
    return f"{env}, policy {digest}"


def told_to_actors(view: View, env: str) -> str:
    """The facts that a learner and its actors must agree on; they include the frozen policy that a correction needs."""
    facts = about(view.policy, env)
    return f"{facts} that corrects {view.frozen_digest()}" if isinstance(view, ResidualView) else facts


def actor_of(view: View, env: str) -> ChunkExecutor:
    """An actor that takes the most likely actions of the view's policy."""
    return ChunkExecutor(view.policy, view.execute, environment=env)


def open_world(env: str, view: View, config: Config, corrected: bool) -> Environment:
    """Open the world of a view's policy. corrected: with the object positions for a correction's critics, if
    configured."""
    world = make_environment(env, image_size_for(actor_of(view, env)))
    if not corrected or not config.learning.residual.object_positions:
        return world
    assert isinstance(world, StateSimulator)  # its spec says so
    return StateWorld(world, cameras=True)


def begun_view(config: Config, name: str, env: str, checkpoint: str | None) -> View:
    """The view of a run's initial policy for the algorithm of this name. Raises InputError."""
    if name != RESIDUAL:
        return view_of(start_policy(config, env, checkpoint), config, name, env)
    assert checkpoint is not None
    spec = environment_spec(env)
    return ResidualView(corrected_policy(config, spec, checkpoint), spec, config.learning.residual)


def view_of(policy: Policy, config: Config, name: str, env: str) -> PolicyView:
    """The view of a policy for the algorithm of this name. Raises InputError if that cannot train it."""
    settings = getattr(config.learning, name)
    noise = (
        Noise(settings.noise, settings.shared_noise, settings.flow_noise)
        if isinstance(settings, OnPolicyConfig)
        else None
    )
    return PolicyView(policy, environment_spec(env).instructions, env, config.evaluation.execute, noise)


def start_policy(config: Config, env: str, checkpoint: str | None) -> Policy:
    """The initial policy of a run; new weights depend on the seed only. Raises InputError."""
    spec = environment_spec(env)
    if checkpoint is not None:
        policy = load_start(checkpoint, config.learning.proprio_margin)
        check_policy_fits(policy.processor, spec)
        return policy.train()
    processor = processor_of_world(spec, config)
    torch.manual_seed(config.seed)
    try:
        policy = config.model.build(processor)
    except InputError as error:
        raise InputError(f"{error} Learning from nothing needs model.vision.name=none.") from None
    assert isinstance(policy, Policy)
    return policy.train()
