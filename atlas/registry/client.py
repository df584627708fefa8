"""The connection to wandb, and its failures in plain sentences."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from atlas.errors import InputError, first_line

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 20  # per request; within it wandb's own process retries
MODEL = "model"  # the type of artifact

_NO_KEY = "wandb has no API key here. Run `wandb login`, or set WANDB_API_KEY."


def find_wandb() -> ModuleType | None:
    """The wandb package; None where it is not installed."""
    # Reports of wandb's own errors to its makers delay the exit by 12 s if there is no network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        return None
    # A folder of runs named wandb, beside the script, is imported as an empty package.
    return wandb if hasattr(wandb, "init") else None


def import_wandb() -> ModuleType:
    """The wandb package. Raises InputError that names the extra to install.

    Training imports it before any worker process is forked: one forked while another thread imports inherits the
    import's locks, and hangs on them.
    """
    wandb = find_wandb()
    if wandb is None:
        raise InputError("wandb is not installed; pip install 'atlas-vla[wandb]' (./train.sh --wandb does it)")
    return wandb


def base_url(wandb: ModuleType) -> str:
    """The server in use: WANDB_BASE_URL, wandb's settings file, or wandb's own."""
    return str(wandb.setup().settings.base_url)


def connect() -> Any:
    """wandb's API object, with the key checked. Raises InputError: no package, no key, no network, a refused key."""
    wandb = import_wandb()
    with _quiet(wandb):
        # Without a key, its API object asks for one on a terminal, and waits for ever.
        if wandb.run is None and not wandb.login(prompt=False, verify=False):
            raise InputError(_NO_KEY)
        try:
            return wandb.Api(timeout=TIMEOUT_SECONDS)
        except Exception as error:
            if unreachable(error):
                end_service(wandb)
                raise InputError(_no_answer(wandb)) from error
            refused = f"{base_url(wandb)} refuses the API key. Run `wandb login --relogin`, or check it."
            raise InputError(refused) from error


@contextmanager
def _quiet(wandb: ModuleType) -> Iterator[None]:
    """Silence wandb's lines about whose key it found, for which it asks the server; afterwards restore the setting."""
    settings = wandb.setup().settings
    before, settings.silent = settings.silent, True
    wandb.termsetup(settings, None)
    try:
        yield
    finally:
        settings.silent = before
        wandb.termsetup(settings, None)


@contextmanager
def explained(subject: str) -> Iterator[None]:
    """Turn whatever wandb raises within into an InputError that begins with `subject`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        wandb, why = import_wandb(), f"{first_line(error)}."
        if unreachable(error):
            why = _no_answer(wandb)
            end_service(wandb)
        raise InputError(f"{subject}: {why}") from error


def end_service(wandb: ModuleType) -> None:
    """End wandb's own process if no run needs it.

    It keeps asking a server that does not answer, and the exit of this process would wait for it, possibly for ever.
    """
    if wandb.run is not None:
        return
    kill_service()
    try:
        wandb.teardown()  # removes the exit hook, which would end in a traceback now
    except (Exception, SystemExit):
        logger.debug("wandb's process has ended", exc_info=True)


def service_processes() -> list[int]:
    """The process ids of wandb's own processes that this one has started."""
    import psutil

    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if child.name() == "wandb-core":
                found.append(child.pid)
    return found


def kill_service() -> None:
    """End wandb's own processes at once."""
    for process in service_processes():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def unreachable(error: BaseException | None) -> bool:
    """Whether a failure means that nobody answered, rather than what was answered."""
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    while error is not None:
        if isinstance(error, WandbApiFailedError):
            return error.response is None  # an answer would say what was wrong
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        error = getattr(error, "exc", None) or error.__cause__
    return False


def _no_answer(wandb: ModuleType) -> str:
    hint = "Is there a network? (A proxy goes into https_proxy, another server into WANDB_BASE_URL.)"
    return f"{base_url(wandb)} cannot be reached. {hint}"
