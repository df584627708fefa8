"""Uploads of models to wandb on a separate thread, so that neither training nor scalars wait for them.

`run.finish` hides a failed upload, and `wandb sync` does not send models of an online run that did not arrive; so each
upload is waited for, repeated if it fails, and kept on disk until it has arrived.
"""

from __future__ import annotations

import logging
import queue
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from atlas.registry.package import Package, read_package, send, send_in_order, stage
from atlas.registry.references import registry_path
from atlas.registry.versions import remove_old
from atlas.system.safe_text import cause
from atlas.tracking.records import Model

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 1800.0  # per upload: some GB over a slow line
_MOST_WAITING = 3  # failed models kept to be sent again, in addition to the best one: they take disk space
_LAST_WORDS_SECONDS = 0.5  # of the exit time, for answers to earlier requests to wandb
_STEP_ALIAS = re.compile(r"step-\d+")
_BEST, _LATEST = "best", "latest"


def stage_model(model: Model, staging: Path) -> Model:
    """The model with its files linked into a new folder in `staging`, so that the originals may be deleted.

    For the training thread: hard links take no time and no space. A checkpoint includes its run's config.yaml. Raises
    OSError, InputError.
    """
    package = stage(model.path, staging, model.name, model.aliases, model.metadata, model.description or None)
    return replace(model, path=package.folder)


@dataclass
class _Waiting:
    """A model that has not arrived yet."""

    package: Package
    step: int
    failures: int = 0
    why: str = "no answer yet"


class ModelUploads:
    """Sends staged models (see `stage_model`) as versions of an artifact, in the order in which they are added.

    A model's staged folder is removed once wandb has confirmed it; in an offline run it stays, for `wandb sync`.
    """

    def __init__(
        self,
        wandb: ModuleType,
        run: Any,
        *,
        keep_last_n: int | None = None,
        registry: str | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        """keep_last_n: older versions that nobody needs are removed (see `remove_old`); None: none are.

        registry: the registry/collection that each model is linked to. timeout_seconds: per upload.
        """
        self._wandb, self._run = wandb, run
        self._keep, self._registry = keep_last_n, registry_path(registry) if registry else None
        self._timeout = timeout_seconds
        self._offline = bool(run.offline)
        self._waiting: list[_Waiting] = []  # in order; used by the thread only, as is all that follows
        self._arrived_step = -1
        self._newest: dict[str, tuple[int, Any]] = {}  # moving alias: the newest model that has it
        self._given_up = 0
        self._warned: set[str] = set()
        self._deadline: float | None = None
        self._off = threading.Event()
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        if self._offline and registry is not None:
            logger.info("wandb is offline: link a model to %s with `atlas model promote` after `wandb sync`.", registry)
        self._thread = threading.Thread(target=self._work, name="atlas-uploads", daemon=True)
        self._thread.start()

    # ---- called by the sink ------------------------------------------------------------------------------

    def add(self, model: Model) -> None:
        """Send a staged model after those before it; returns at once."""
        package = read_package(model.path)
        if package is None:
            logger.warning("wandb does not get the model of step %d: %s is gone.", model.step, model.path)
            return
        self._queue.put(_Waiting(package, model.step))

    def finish(self, deadline: float) -> bool:
        """Send what is waiting, until `deadline` (of `time.monotonic()`); True if everything has arrived.

        Offline, True if everything is staged and noted down. Logs what has not arrived, and how to send it.
        """
        self._deadline = deadline
        self._queue.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        in_time = not self._thread.is_alive()
        self._off.set()
        left = list(self._waiting) + self._unsent()
        for waiting in left:
            self._say_lost(waiting)
        if self._given_up:
            logger.warning("wandb: %d older models that failed were given up, to save disk space.", self._given_up)
        return in_time and not left and not self._given_up

    def abandon(self) -> None:
        """Send nothing more: wandb's process is gone, or time is up."""
        self._off.set()

    # ---- on the thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._waiting.append(item)
            self._send_waiting()
        if self._waiting:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send all that is waiting, until wandb is gone or time is up."""
        there = takewhile(lambda _: not self._off.is_set(), list(self._waiting))
        send_in_order(there, self._deliver, self._note_failure)
        if not self._off.is_set():
            self._limit_waiting()

    def _deliver(self, waiting: _Waiting) -> None:
        artifact = self._send(waiting)
        self._waiting.remove(waiting)
        if artifact is not None:
            self._settle(artifact, waiting)

    def _note_failure(self, waiting: _Waiting, error: Exception) -> None:
        waiting.failures += 1
        waiting.why = cause(error).rstrip(".")
        self._say_failed(waiting)
        if isinstance(error, ConnectionError):  # wandb's own process has died
            self._off.set()

    def _send(self, waiting: _Waiting) -> Any:
        """Log a model and wait until it has arrived; offline, log it and return None."""
        package = waiting.package
        if waiting.step < self._arrived_step:  # moving aliases stay with the newer model
            taken = {alias for alias, (step, _) in self._newest.items() if step > waiting.step}
            package = replace(package, aliases=[alias for alias in package.aliases if alias not in taken])
        artifact = send(self._wandb, self._run, package, self._patience())
        return None if self._offline else artifact

    def _patience(self) -> float:
        """Seconds to wait for an answer: no longer than the exit allows."""
        if self._deadline is None:
            return self._timeout
        return max(0.1, min(self._timeout, self._deadline - time.monotonic()))

    def _settle(self, artifact: Any, waiting: _Waiting) -> None:
        """Handle a model that has arrived: its aliases, the registry, older versions, and its staged files."""
        package = waiting.package
        if waiting.failures:
            logger.info("wandb has the model %s of step %d now.", package.name, waiting.step)
        for alias in (_LATEST, *package.aliases):
            if not _STEP_ALIAS.fullmatch(alias) and waiting.step >= self._newest.get(alias, (-1, None))[0]:
                self._newest[alias] = (waiting.step, artifact)
        if waiting.step < self._arrived_step:
            self._try("its aliases", lambda: self._move_back(_LATEST))  # wandb gives `latest` to whatever comes last
        self._arrived_step = max(self._arrived_step, waiting.step)
        if self._registry is not None:
            aliases = [a for a in package.aliases if a != _LATEST and self._newest.get(a, (0, artifact))[1] is artifact]
            self._try(f"its place in the registry {self._registry}", lambda: self._link(artifact, aliases))
        if self._keep is not None:
            keep, registry = self._keep, self._registry
            self._try(
                "older versions",
                lambda: remove_old(list(artifact.collection.artifacts()), keep, linked_to=registry),
            )
        shutil.rmtree(package.folder, ignore_errors=True)

    def _move_back(self, alias: str) -> None:
        _, newest = self._newest[alias]
        for version in newest.collection.artifacts():  # fetched again: the aliases in `newest` are outdated
            if version.version == newest.version and alias not in version.aliases:
                version.aliases.append(alias)
                version.save()

    def _link(self, artifact: Any, aliases: Sequence[str]) -> None:
        assert self._registry is not None
        self._run.link_artifact(artifact, self._registry, list(aliases))

    def _try(self, what: str, do: Callable[[], object]) -> None:
        """Something that may fail without harm to the model; the first failure of each kind is logged."""
        try:
            do()
        except ConnectionError:
            self._off.set()
        except Exception as error:
            level = logging.DEBUG if what in self._warned else logging.WARNING
            self._warned.add(what)
            logger.log(level, "wandb has the model, but setting %s failed: %s", what, cause(error))

    def _limit_waiting(self) -> None:
        """Give up the oldest of many failed models, but not the newest of the best ones."""
        best = next((w for w in reversed(self._waiting) if _BEST in w.package.aliases), None)
        others = [waiting for waiting in self._waiting if waiting is not best]
        for waiting in others[:-_MOST_WAITING]:
            self._waiting.remove(waiting)
            self._given_up += 1
            shutil.rmtree(waiting.package.folder, ignore_errors=True)

    # ---- messages ----------------------------------------------------------------------------------------

    def _say_failed(self, waiting: _Waiting) -> None:
        first = waiting.failures == 1 and self._deadline is None  # at the end, `_say_lost` reports it
        logger.log(
            logging.WARNING if first else logging.DEBUG,
            "wandb did not take the model %s of step %d: %s. It is tried again with the next one, and at the end.",
            waiting.package.name,
            waiting.step,
            waiting.why,
        )

    def _say_lost(self, waiting: _Waiting) -> None:
        place = "" if self._offline else f" --project {self._run.project} --entity {self._run.entity}"
        logger.warning(
            "wandb has not confirmed the model %s of step %d (%s). To send it: atlas model push %s%s",
            waiting.package.name,
            waiting.step,
            waiting.why,
            shlex.quote(str(waiting.package.folder)),
            place,
        )

    def _unsent(self) -> list[_Waiting]:
        """Return what the thread has not got to."""
        unsent: list[_Waiting] = []
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return unsent
            if item is not None:
                unsent.append(item)
