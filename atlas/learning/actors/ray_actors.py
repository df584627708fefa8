"""`--actors N --ray`: a learner's actors as Ray tasks, on one machine or in a cluster.

Ray only decides where actors run; playing and the protocol are the same as without it. Ray restarts a task whose
process dies, and its actor says hello again.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from atlas.config import Config
from atlas.errors import InputError
from atlas.learning.actors.actor_group import MOST_RESTARTS, ActorGroup, died_again, patience
from atlas.learning.actors.messages import Address

logger = logging.getLogger(__name__)

_CLUSTER = "RAY_ADDRESS"  # Ray's own variable, which names a cluster
_CONNECTING = 5.0  # seconds


def import_ray() -> Any:
    """Import ray. Raises InputError, which says how to install it."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(
            f"--ray: {error.name} is missing: pip install 'atlas-vla[ray]', or leave --ray out for processes on this "
            "machine."
        ) from None
    return ray


class RayActors(ActorGroup):
    """Actors in a Ray cluster, which restarts those that die."""

    def __init__(self, config: Config, env: str, count: int, checkpoint: str | None, name: str = "sac") -> None:
        """Raises InputError if Ray is missing; entering raises it if no cluster answers at RAY_ADDRESS."""
        super().__init__()
        self._ray, self._count = import_ray(), count
        self._values, self._env, self._checkpoint = config.model_dump(mode="json"), env, checkpoint
        self._name = name
        self._tasks: list[Any] = []

    def __enter__(self) -> RayActors:
        ray, cluster = self._ray, os.environ.get(_CLUSTER)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # The actors' output stays in Ray's log files: stdout belongs to the report.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        if cluster is None:
            ray.init(num_cpus=self._count, **quiet)
            return self
        try:
            _reach(cluster)  # Ray itself tries for minutes
            ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{_CLUSTER} is {cluster}, and no cluster of Ray answers there ({error}). Start one (ray start --head),"
                " or unset it for one on this machine alone."
            ) from None
        self.address = Address(ray.util.get_node_ip_address(), 0)
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < self._count:
            logger.warning("The cluster has %d cores for %d actors: some wait until it has more", cores, self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ray = self._ray
        if self._tasks:
            ray.wait(self._tasks, num_returns=len(self._tasks), timeout=patience(kind))
            for task in self._tasks:
                ray.cancel(task, force=True)
        ray.shutdown()

    def start(self, port: int) -> None:
        remote = self._ray.remote(num_cpus=1, max_retries=MOST_RESTARTS)(_play)
        arguments = (self._values, self._env, f"{self.address.host}:{port}", self.key, self._checkpoint, self._name)
        self._tasks = [remote.remote(*arguments) for _ in range(self._count)]

    def _look_after(self) -> None:
        """Raise an error for a task that has ended for good: Ray has restarted it as often as is allowed."""
        ended, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        for task in ended:
            try:
                self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, InputError):
                    raise InputError(f"An actor's input is wrong: {cause}") from None
                raise RuntimeError(f"An actor has failed: {cause}") from None
            except self._ray.exceptions.RayError as error:
                raise died_again(error) from None


def _reach(cluster: str) -> None:
    """Raises OSError if nobody listens at HOST:PORT; other forms of addresses are left to Ray."""
    host, _, port = cluster.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTING).close()


def _play(values: dict[str, Any], env: str, learner: str, key: str, checkpoint: str | None, name: str) -> int:
    """The task: the same as `--role actor`."""
    from atlas.config import load_config
    from atlas.learning.actors.actor_role import act

    return act(load_config(values), env, Address.read(learner, "--learner"), key, checkpoint, name)
