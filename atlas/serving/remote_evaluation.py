"""`atlas eval --policy`: evaluate a policy server in one of the worlds, also beside another policy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from atlas.environments.catalog import environment_spec
from atlas.rollout.chunk_timeline import Blend
from atlas.rollout.evaluation import check_policy_fits, check_request, evaluate_actor
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.robustness import FEW_EPISODES
from atlas.rollout.verdicts.until_clear import ClearComparison, Contender, evaluate_until_clear
from atlas.serving.access import read_key
from atlas.serving.policy_client import SCHEMES, AtlasClient
from atlas.serving.protocols.client_layout import AUTO, read_layout


def evaluate_server(
    url: str,
    env: str,
    episodes: int = 100,
    seed: int = 0,
    execute: int | None = None,
    key_file: Path | None = None,
    layout: str = AUTO,
    image_size: int | None = None,
    instruction_shuffle: bool = False,
    blind: bool = False,
    video: Path | None = None,
    workers: int | None = None,
    perturb: Sequence[str] = (),
    perturb_episodes: int = FEW_EPISODES,
    ensemble: float | None = None,
    delay_ms: float = 0.0,
    blend: Blend = None,
) -> EvaluationReport:
    """Evaluate the policy server at a URL on the same episodes as `evaluate_checkpoint` does a saved policy.

    execute: how many actions of each answer are executed (None: half of the policy's chunk). layout, image_size: the
    keys and the image size (pixels) that a server other than Atlas's takes. ensemble, delay_ms, blend: see AtlasClient.
    Raises InputError.
    """
    check_request(env, episodes, video, perturb, probed=instruction_shuffle or blind)
    spec = environment_spec(env)
    key = None if key_file is None else read_key(key_file)
    how: dict[str, Any] = {"ensemble": ensemble, "delay_ms": delay_ms, "blend": blend}
    with AtlasClient(url, execute, key, read_layout(layout), spec, image_size, **how) as client:
        check_policy_fits(client.processor, spec)
        return evaluate_actor(
            client,
            url,
            env,
            episodes,
            seed,
            instruction_shuffle,
            blind,
            video,
            workers,
            perturb=perturb,
            perturb_episodes=perturb_episodes,
        )


def compare_until_clear(
    first: str,
    against: str,
    env: str,
    most_episodes: int,
    seed: int = 0,
    execute: int | None = None,
    ensemble: float | None = None,
    workers: int | None = None,
    video: Path | None = None,
    key_file: Path | None = None,
    layout: str = AUTO,
    image_size: int | None = None,
) -> ClearComparison:
    """Like `evaluate_until_clear`, but each of the two may be the address of a policy server.

    key_file, layout, image_size: for servers, see `evaluate_server`. For a server's policy there are only outcomes, and
    no evidence. Raises InputError.
    """
    check_request(env, most_episodes, video)
    spec = environment_spec(env)
    with ExitStack() as stack:

        def connected(where: str) -> str | Contender:
            if not where.startswith(SCHEMES):
                return where
            key = None if key_file is None else read_key(key_file)
            client = AtlasClient(where, execute, key, read_layout(layout), spec, image_size, ensemble=ensemble)
            stack.enter_context(client)
            check_policy_fits(client.processor, spec)
            return Contender(where, client, client.execute, None)

        return evaluate_until_clear(
            connected(first), connected(against), env, most_episodes, seed, execute, ensemble, workers, video
        )
