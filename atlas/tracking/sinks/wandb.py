"""The wandb sink. It must never ask for a key, hold up training or the exit, or lose what it was given.

Rows carry `train/step` as data and wandb counts its own steps, because rows with an explicit `step=` below the last one
are dropped: after a resume, whole stretches would be missing.
"""

from __future__ import annotations

import logging
import os
import secrets
import string
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from atlas.config import ModelManagementConfig, WandbConfig
from atlas.errors import InputError
from atlas.registry.client import kill_service
from atlas.registry.wandb_variables import wandb_folder, with_variables
from atlas.system.documents import read_json
from atlas.system.safe_text import cause, redact
from atlas.tracking.records import (
    Histogram,
    Image,
    LogLine,
    Model,
    Record,
    RunConfig,
    Scalars,
    Sink,
    Table,
    Video,
)
from atlas.tracking.uploads import ModelUploads, stage_model

logger = logging.getLogger(__name__)

INIT_TIMEOUT_SECONDS = 20.0
_FLUSH_SECONDS = 2.0
_GIT_SECONDS = 5.0
_FINISH_SHARE = 0.7  # of the exit timeout: wandb's uploads may take this much; the rest is for the queue before them
_DATA_DIR = "WANDB_DATA_DIR"
_AXES = {
    "train/*": "train/step",
    "val/*": "train/step",
    "eval/*": "train/step",
    "perf/*": "train/step",
    "timer/*": "train/step",
    "system/*": "train/step",
    "actor/*": "actor/total_steps",
    "sac/*": "learner/update_steps",
    "ppo/*": "learner/update_steps",
    "grpo/*": "learner/update_steps",
    "learner/*": "learner/update_steps",
}


_ROWS = (Scalars, Image, Video, Histogram, Table)  # each of these records is one row of the run
_PACKAGE = Path(__file__).parents[2]


class WandbUnavailable(Exception):
    """wandb cannot be used here; the message says what would change that."""


@dataclass(frozen=True)
class RunIdentity:
    """The identity of this run at wandb. `given`: set by a sweep's agent or by the active run; never overridden."""

    run_id: str
    given: bool


def choose_identity(wandb: ModuleType, config: WandbConfig, run_dir: Path, wandb_id: str | None) -> RunIdentity:
    """The run to log to: the active one, a sweep's, the checkpoint's (`wandb_id`), $WANDB_RUN_ID, or a new one."""
    if wandb.run is not None:
        return RunIdentity(wandb.run.id, given=True)
    from_environment = os.environ.get("WANDB_RUN_ID")
    if os.environ.get("WANDB_SWEEP_ID") and from_environment:
        return RunIdentity(from_environment, given=True)
    unfinished = _unfinished_run(wandb_folder(run_dir)) if config.resume == "auto" else None
    return RunIdentity(wandb_id or from_environment or unfinished or _new_id(), given=False)


class WandbSink(Sink):
    """See `Sink`: everything except `prepare` and `abandon` runs on its own thread."""

    name = "wandb"

    def __init__(
        self,
        wandb: ModuleType,
        config: WandbConfig,
        models: ModelManagementConfig,
        run_dir: Path,
        run_name: str,
        identity: RunIdentity,
        mode: str,
        exit_timeout_seconds: float,
        request_stop: Callable[[], None],
        rewind_to: int | None = None,
        node: int = 0,
    ) -> None:
        """mode: 'online' or 'offline'; request_stop: called, from any thread, when the stop button is pressed.

        rewind_to: a row of the run, beyond which everything is cut off. node: above 0, another process leads the run,
        and this one only adds its machine's system metrics.
        """
        self._wandb = wandb
        self._config = with_variables(config, os.environ)
        self._models = models
        self._run_dir = run_dir
        self._run_name = run_name
        self._identity = identity
        self._mode = mode
        self.finish_within(exit_timeout_seconds)
        self._request_stop = request_stop
        self._rewind_to = rewind_to
        self._node = node
        folder = wandb_folder(run_dir)
        # Nodes write separately, since they may share the disk; `run_dir` is already such a folder.
        self._place = folder / f"node_{node}" if node and folder != run_dir else folder
        self._run: Any = None
        self._owned = wandb.run is None  # a run started elsewhere is finished where it was started
        self._defined: set[str] = set()
        self._rows_given = 0
        self._uploads: ModelUploads | None = None
        self._data_dir_set = False
        self._core_is_gone = False
        self._said_what_is_left = False

    @property
    def last_row(self) -> int | None:
        """The run's row that the last accepted record has or will have; None before the run is open."""
        return None if self._run is None else self._run.starting_step + self._rows_given - 1

    # ---- starting --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the run; if it cannot be online, offline with one warning. Raises if that fails as well."""
        for folder in (self._run_dir, self._place):
            (folder / "wandb").mkdir(parents=True, exist_ok=True)
        self._keep_files_in_run_dir()
        sys.argv[1:] = map(redact, sys.argv[1:])  # wandb records them
        if not self._owned:
            self._run = self._wandb.run
        elif self._mode == "online":
            self._run = self._open_online()
        if self._run is None and self._node:
            raise WandbUnavailable("this node's part in a shared run cannot be started")
        if self._run is None:
            self._run = self._init("offline", {"id": self._identity.run_id, "resume": "allow"})
        if self._node:
            return
        self._uploads = ModelUploads(
            self._wandb, self._run, keep_last_n=self._models.keep_last_n, registry=self._models.registry
        )
        for glob, axis in _AXES.items():
            for name in (axis, glob):
                if name not in self._defined:
                    self._run.define_metric(name, step_metric=None if name == axis else axis)
                    self._defined.add(name)
        if self._run.offline:
            logger.info("wandb is offline, in %s", self._folder())
        else:
            logger.info("wandb: %s", self._run.url)

    def _open_online(self) -> Any:
        """The online run, or None after one warning that says why there is none and what to do."""
        try:
            # wandb.init would ask for a missing key on a terminal, and wait for ever.
            self._wandb.setup(self._wandb.Settings(silent=True))
            if not self._wandb.login(prompt=False, verify=False):
                logger.warning("wandb has no API key and goes offline. Run `wandb login`, or set WANDB_API_KEY.")
            else:
                return self._init("shared" if self._config.shared else "online", self._resumption())
        except Exception as error:
            if self._core_is_gone:  # abandoned meanwhile: too late for another start
                raise
            logger.warning("wandb cannot start online and goes offline: %s. %s", cause(error).rstrip("."), self._hint())
        # Without this, a second init with the same id fails as the first did.
        self._teardown()
        return None

    def _hint(self) -> str:
        """A possible reason why wandb does not start online."""
        if self._config.resume in ("must", "never"):
            return f"(wandb.resume is {self._config.resume}; with `allow`, an existing run is continued.)"
        return "(Is the key correct, see `wandb login`? Is there a network?)"

    def _resumption(self) -> dict[str, Any]:
        """Return the settings that tell wandb which run this is, and how it continues."""
        if self._rewind_to is not None:
            return {"resume_from": f"{self._identity.run_id}?_step={self._rewind_to}"}
        return {"id": self._identity.run_id, "resume": None if self._config.shared else self._config.resume}

    def _init(self, mode: str, resumption: Mapping[str, Any]) -> Any:
        config = self._config
        # wandb does not promise these settings, so they are passed only if they exist. The first: how long rows stay in
        # the memory of wandb's process, where they are lost if it has to be killed; its default is 15 s.
        private: dict[str, Any] = {"x_transaction_log_flush_interval": _FLUSH_SECONDS}
        if not config.system_stats:
            private["x_disable_stats"] = True
        if mode == "shared":
            private |= {
                "x_label": f"node-{self._node}",
                "x_primary": self._node == 0,
                "x_update_finish_state": self._node == 0,
            }
        remote = _remote_with_login()
        if remote is not None:
            private["git_remote_url"] = redact(remote)
        settings = self._wandb.Settings(
            silent=True,  # wandb's own lines would bypass train.log
            console="off",  # it would make every printed line wait for wandb's process; see LogLine
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=self._finish_seconds / 2,
            finish_timeout_raises=True,
            # The default interrupts only this rank, and the others wait for it for ever. A plain function: wandb copies
            # its settings, and a bound method is copied with its object, whose locks cannot be.
            stop_fn=lambda: self._request_stop(),
            **{key: value for key, value in private.items() if key in self._wandb.Settings.model_fields},
        )
        place: dict[str, Any] = {}
        if not self._identity.given:  # otherwise a sweep's agent has set all of this
            place = {"project": config.project, "entity": config.entity, **resumption}
        run = self._wandb.init(
            **place,
            name=config.name or self._run_name,
            dir=str(self._place),
            mode=mode,
            tags=config.tags or None,
            notes=config.notes,
            group=config.group,
            save_code=config.save_code,
            settings=settings,
        )
        if config.save_code and self._node == 0:
            # wandb takes the script that was started for the code, which says nothing here.
            run.log_code(str(_PACKAGE), include_fn=lambda path: path.endswith((".py", ".yaml")))
        return run

    def _keep_files_in_run_dir(self) -> None:
        """Keep tables in the run's folder until their upload: the home folder may be full or read-only."""
        if _DATA_DIR not in os.environ:
            os.environ[_DATA_DIR] = str(self._run_dir / "wandb")
            self._data_dir_set = True

    # ---- writing ---------------------------------------------------------------------------------------------

    def finish_within(self, seconds: float) -> None:
        """Set how long the end may take; called before `finish`."""
        self._finish_seconds = seconds * _FINISH_SHARE

    def prepare(self, record: Record) -> Record | None:
        """Keep a model's files from being pruned before they are uploaded: hard links cost no space."""
        if isinstance(record, _ROWS):
            self._rows_given += 1
        if not isinstance(record, Model):
            return record
        try:
            return stage_model(record, self._staging())
        except (OSError, InputError) as error:  # for example a full disk: it costs this model, but not the metrics
            logger.warning("wandb does not get the model %s of step %d: %s", record.name, record.step, cause(error))
            return None

    def write(self, record: Record) -> None:
        try:
            self._write(record)
        except ConnectionError:  # wandb's own process has died: see `finish`
            self._core_is_gone = True
            raise

    def _write(self, record: Record) -> None:
        wandb = self._wandb
        match record:
            case Scalars(values, step):
                self._log(values, step)
            case Image(name, pixels, step):
                self._log({name: wandb.Image(pixels)}, step)
            case Video(name, path, step):
                self._log({name: wandb.Video(str(path), format="mp4")}, step)
            case Histogram(name=name, counts=counts, edges=edges, step=step):
                self._log({name: wandb.Histogram(np_histogram=(counts, edges))}, step)
            case Table(name, columns, rows, step):
                self._log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step)
            case LogLine(text):
                self._run.write_logs(text)
            case RunConfig(values):
                self._run.config.update(dict(values), allow_val_change=True)
            case Model():
                assert self._uploads is not None
                self._uploads.add(record)

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        for name in row:
            # Names outside the known sections, including a user's own, also get the optimizer step as their axis.
            if f"{name.partition('/')[0]}/*" not in self._defined and name not in self._defined:
                self._run.define_metric(name, step_metric="train/step")
                self._defined.add(name)
        self._run.log({"train/step": step, **row})

    # ---- ending ----------------------------------------------------------------------------------------------

    def finish(self, exit_code: int) -> None:
        """Close the run and wait for its uploads, for a limited time; log where it is."""
        if not self._owned:
            if self._uploads is not None:
                self._uploads.finish(time.monotonic() + self._finish_seconds)
            return
        if self._run is None:
            self._teardown(exit_code)
            return
        folder = self._folder()
        url = None if self._run.offline else self._run.url
        # Half of the time: an unanswered upload also blocks `run.finish`.
        deadline = time.monotonic() + self._finish_seconds / 2
        if self._uploads is not None:
            if self._core_is_gone:
                self._uploads.abandon()
            self._uploads.finish(deadline)
        try:
            if not self._core_is_gone:  # otherwise it would wait in vain
                self._run.finish(exit_code=exit_code)
        except TimeoutError:
            logger.warning("wandb did not upload everything in time; `wandb sync %s` sends the rest.", folder)
        except Exception:  # its process has died since the last record
            self._core_is_gone = True
            raise
        finally:
            # The run's file is complete only when wandb's own process has ended. If that has died, this also removes an
            # exit hook that would end the program in a traceback.
            self._teardown(exit_code)
            if self._data_dir_set:
                os.environ.pop(_DATA_DIR, None)
            if self._core_is_gone:
                self._say_what_is_left()
        if url:
            logger.info("wandb: %s", url)
        elif not self._core_is_gone:
            logger.info("To upload the offline run: wandb sync %s", folder)

    def _teardown(self, exit_code: int | None = None) -> None:
        try:
            self._wandb.teardown(exit_code)
        except SystemExit as error:  # wandb's way of reporting that its process did not end well
            logger.debug("wandb's process ended with %s", error.code)
        except Exception as error:  # its process has died, so nobody can be told
            logger.debug("wandb's process is gone: %s", cause(error))

    def abandon(self) -> None:
        """End wandb's process: otherwise its exit hook would wait for it, for ever if it is frozen."""
        if self._owned:
            self._core_is_gone = True
            if self._uploads is not None:
                self._uploads.abandon()
            kill_service()
        self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        """Log once where the rows are of a run whose process is gone."""
        if self._run is not None and not self._said_what_is_left:
            self._said_what_is_left = True
            logger.warning("What wandb has on disk can be uploaded: wandb sync %s", self._folder())

    def _folder(self) -> Path:
        return Path(self._run.dir).parent

    def _staging(self) -> Path:
        return self._run_dir / "wandb" / "staged"


def _remote_with_login() -> str | None:
    """The address of the surrounding git repository, which wandb records, if it contains a key; otherwise None."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        said = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_GIT_SECONDS, text=True)
    except (OSError, subprocess.SubprocessError):
        return None
    url = said.stdout.strip()
    return url if redact(url) != url else None


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _unfinished_run(folder: Path) -> str | None:
    """The id of this folder's run that did not end well, which wandb notes down for `resume: auto`."""
    try:
        noted = read_json(folder / "wandb" / "wandb-resume.json")
        return str(noted["run_id"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("wandb's note of the run to resume cannot be read (%s); a new run is started.", cause(error))
        return None
