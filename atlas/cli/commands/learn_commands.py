"""`atlas learn`: a policy improves by its own experience, or learns from nothing by reward."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas.cli.options import PLAIN, Json, Overrides
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report

if TYPE_CHECKING:
    from atlas.config import Config
    from atlas.learning.actors.messages import Address
    from atlas.learning.improvement import Improvement
    from atlas.learning.returns import OnlineResult

learn_app = typer.Typer(help="Improve a policy by its own experience, in a simulator.", **PLAIN)

Checkpoint = Annotated[str, typer.Option(metavar="RUN", help="The run to improve, or a checkpoint of it.")]
Start = Annotated[
    str | None, typer.Option("--checkpoint", metavar="RUN", help="A run to begin with; default: new weights.")
]
Settings = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings on top of the run's, such as learn_pi_rl_8gpu.yaml."),
]
World = Annotated[str, typer.Option("--env", help="The environment, such as cubes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Without wandb.")]


@learn_app.command("dagger")
def dagger(
    checkpoint: Checkpoint, env: World, overrides: Overrides = None, debug: Debug = False, as_json: Json = False
) -> None:
    """The world's expert takes over from the policy, and is imitated."""
    _learn("dagger", checkpoint, env, _changed(overrides, debug), as_json)


@learn_app.command("rft")
def rft(
    checkpoint: Checkpoint, env: World, overrides: Overrides = None, debug: Debug = False, as_json: Json = False
) -> None:
    """The policy acts with noise, and imitates its own successes."""
    _learn("rft", checkpoint, env, _changed(overrides, debug), as_json)


@learn_app.command("sac")
def sac(
    env: Annotated[str | None, typer.Option("--env", help="The environment, such as gym:Pendulum-v1.")] = None,
    overrides: Overrides = None,
    checkpoint: Start = None,
    actors: Annotated[
        int | None, typer.Option(metavar="N", help="Play in N processes beside the one that learns.")
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Beside --actors: they are tasks of Ray, in the cluster of RAY_ADDRESS if set."),
    ] = False,
    role: Annotated[
        Literal["learner", "actor"] | None, typer.Option(help="One half of a run, whose other half is elsewhere.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a learner; default: 127.0.0.1:5488.")
    ] = None,
    learner: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Of an actor: where its learner is.")] = None,
    key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="The key that learner and actors share.")
    ] = None,
    residual: Annotated[
        bool,
        typer.Option("--residual", help="Learn a small correction of the policy of --checkpoint, which is frozen."),
    ] = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Soft actor-critic: learns by reward, from state, in one process or in several."""
    from atlas.learning.actors.messages import Address

    _check_roles(actors, ray, role, listen, learner, key_file)
    env = _named_world(env, role)
    name = "residual" if residual else "sac"
    if residual:
        _check_residual(checkpoint)
    with stdout_kept_for_the_report(as_json):
        config = _online_config(name, env, checkpoint, _changed(overrides, debug))
        key = _key(key_file)
        if role == "actor":
            from atlas.learning.actors.actor_role import act

            steps = act(config, env, Address.read(learner or "", "--learner"), key, checkpoint, name)
            say(f"The learner has had enough; {steps:,} steps were played here.")
            return
        if role == "learner" or actors is not None:
            address = Address.read(listen or "", "--listen")
            result = _learn_from_actors(config, env, checkpoint, actors, ray, address, key, name)
        else:
            from atlas.learning.sac_run import learn_here

            result = learn_here(config, env, checkpoint, name)
    _report(result, as_json)


@learn_app.command("ppo")
def ppo(
    env: World,
    overrides: Overrides = None,
    checkpoint: Start = None,
    settings: Settings = None,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Proximal policy optimisation: learns by reward, on what the present policy plays."""
    _learn_on_policy("ppo", env, _changed(overrides, debug), checkpoint, settings, as_json)


@learn_app.command("grpo")
def grpo(
    env: World,
    overrides: Overrides = None,
    checkpoint: Start = None,
    settings: Settings = None,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Group-relative policy optimisation: episodes from one start are worth what they reach beyond each other."""
    _learn_on_policy("grpo", env, _changed(overrides, debug), checkpoint, settings, as_json)


@learn_app.command("rank", hidden=True)
def rank(
    name: Annotated[Literal["ppo", "grpo"], typer.Argument()],
    env: World,
    file: Annotated[Path, typer.Option("--config")],
    checkpoint: Start = None,
    as_json: Json = False,
) -> None:
    """One of several processes that learn as one; started by `atlas learn ppo` and `grpo`."""
    from atlas.launch import die_with_launcher

    die_with_launcher()
    with stdout_kept_for_the_report(as_json):
        from atlas.config import load_config

        result = _on_policy(name)(load_config(file), env, checkpoint)
    if os.environ["RANK"] == "0":
        _report(result, as_json)


def _learn_on_policy(
    name: str, env: str, overrides: list[str], checkpoint: str | None, settings: Path | None, as_json: bool
) -> None:
    """In this process, or in as many as `distributed` says."""
    with stdout_kept_for_the_report(as_json):
        from atlas.learning.rank_group import asked_processes
        from atlas.learning.run_config import settings_of

        own = [] if settings is None else settings_of(settings)
        config = _online_config(name, env, checkpoint, [*own, *overrides])
        plan = asked_processes(config.distributed)
        if plan.processes == 1:
            os.environ.update(plan.environment(os.environ))
            result = _on_policy(name)(config, env, checkpoint)
    if plan.processes == 1:
        _report(result, as_json)
        return
    from atlas.config import dump_yaml
    from atlas.launch import launch_ranks
    from atlas.system.file_store import CONFIG

    with tempfile.TemporaryDirectory(prefix="atlas-learn-") as folder:
        file = Path(folder) / CONFIG
        file.write_text(dump_yaml(config))
        words = ["learn", "rank", name, "--env", env, "--config", str(file)]
        words += [*(["--checkpoint", checkpoint] if checkpoint else []), *(["--json"] if as_json else [])]
        code = launch_ranks(words, plan)
    if code:
        raise typer.Exit(code)


def _on_policy(name: str) -> Callable[[Config, str, str | None], OnlineResult]:
    from atlas.learning.on_policy.grpo import learn_grpo
    from atlas.learning.on_policy.ppo import learn_ppo

    return learn_ppo if name == "ppo" else learn_grpo


@learn_app.command("map")
def map_of_replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of SAC.")],
    method: Annotated[Literal["pca", "tsne"], typer.Option(help="How states become points.")] = "pca",
    frames: Annotated[int, typer.Option(metavar="N", help="How many states are drawn at most.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the pictures go; default: map/ in the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where a run of SAC has been: its replay on a plane, by time, by return, and by value."""
    with stdout_kept_for_the_report(as_json):
        from atlas.learning.boards.replay_map import map_replay

        found = map_replay(run, method, frames, out)
    if as_json:
        print_json(found.to_dict())
        return
    say(f"{found.shown:,} of {found.decisions:,} decisions in the replay of {found.checkpoint} are drawn in:")
    for path in found.pictures.values():
        say(f"  {path}")


def _learn_from_actors(
    config: Config,
    env: str,
    checkpoint: str | None,
    actors: int | None,
    ray: bool,
    address: Address,
    key: str | None,
    name: str,
) -> OnlineResult:
    from atlas.learning.actors.actor_processes import learn_with_actors
    from atlas.learning.actors.learner_role import learn_from_actors

    if actors is None:
        return learn_from_actors(config, env, address, key, checkpoint, name=name)
    return learn_with_actors(config, env, actors, checkpoint, ray, name)


def _check_roles(
    actors: int | None, ray: bool, role: str | None, listen: str | None, learner: str | None, key_file: Path | None
) -> None:
    """Raises InputError for flags that do not go together."""
    from atlas.errors import InputError

    if ray and actors is None:
        raise InputError("--ray says where actors run: give how many there are, such as --actors 4 --ray.")
    if actors is not None and actors < 1:
        raise InputError(f"--actors {actors}: there must be 1 at least; leave it out to play and learn in one process.")
    if actors is not None and (role or listen or learner or key_file):
        raise InputError(
            "--actors starts the learner and its actors here; it goes without --role and what belongs to it."
        )
    if role == "actor" and (learner is None or listen is not None):
        raise InputError("--role actor needs --learner HOST:PORT, where its learner listens (and no --listen).")
    if role == "learner" and learner is not None:
        raise InputError("--role learner listens for actors: --listen HOST:PORT, not --learner.")
    if role is None and (listen or learner or key_file):
        raise InputError("--listen, --learner and --api-key-file belong to --role learner or --role actor.")


def _named_world(env: str | None, role: str | None) -> str:
    """Raises InputError where none is named."""
    from atlas.errors import InputError

    if env is not None:
        return env
    if role is None:
        raise InputError("--env is missing; name the environment to learn in, such as --env gym:Pendulum-v1.")
    other = "its learner" if role == "actor" else "its actors"
    raise InputError(
        f"--role {role} needs --env, the same environment and the same key=value settings as {other}: atlas learn sac "
        f"--env gym:Pendulum-v1 --role {role} {'--learner' if role == 'actor' else '--listen'} HOST:PORT."
    )


def _check_residual(checkpoint: str | None) -> None:
    """Raises InputError where there is no policy to correct."""
    from atlas.errors import InputError

    if checkpoint is None:
        raise InputError("--residual corrects a policy: give the run that has it, --checkpoint outputs/first.")


def _key(file: Path | None) -> str | None:
    from atlas.serving.access import read_key

    return None if file is None else read_key(file)


def _online_config(name: str, env: str, checkpoint: str | None, overrides: list[str]) -> Config:
    from atlas.learning.run_config import config_from_nothing, config_of_run

    if checkpoint is None:
        return config_from_nothing(name, env, overrides)
    return config_of_run(checkpoint, name, overrides)


def _report(result: OnlineResult, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    say(result.sentence())
    say(f"{result.steps:,} steps were played, and {result.updates:,} updates made; the run is {result.folder}.")
    say(f"To act with the best policy: atlas eval --checkpoint {result.folder / 'best'} --env {result.env}")


def _changed(overrides: list[str] | None, debug: bool) -> list[str]:
    return [*(overrides or []), *(["wandb.enabled=false"] if debug else [])]


def _learn(name: str, checkpoint: str, env: str, overrides: list[str], as_json: bool) -> None:
    with stdout_kept_for_the_report(as_json):
        from atlas.learning.imitation.rounds import learn
        from atlas.learning.run_config import config_of_run

        improvement = learn(config_of_run(checkpoint, name, overrides), name, checkpoint, env)
    if as_json:
        print_json(improvement.to_dict())
    else:
        _show(improvement)


def _show(improvement: Improvement) -> None:
    from atlas.rollout.proportions import wilson_interval

    rows = []
    for what, report in improvement.reports.items():
        successes, episodes = sum(o.success for o in report.outcomes), len(report.outcomes)
        low, high = wilson_interval(successes, episodes)
        rows.append((what, f"{successes}/{episodes}", f"{report.success_rate:.1%}", f"{low:.1%} to {high:.1%}"))
    title = f"Success in '{improvement.env}', on episodes never used before"
    print_table(title, ("policy", "successes", "success rate", "95% interval"), rows)
    say(improvement.sentence())
    say(f"{improvement.episodes} episodes of {improvement.steps:,} steps were played; the run is {improvement.folder}.")
    say(f"To act with the better policy: atlas eval --checkpoint {improvement.folder / 'best'} --env {improvement.env}")
