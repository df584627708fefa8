"""The connection to wandb, and its failures as sentences."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from atlas.errors import InputError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 20  # of one question; wandb's own process asks again and again meanwhile
MODEL = "model"  # the type of artifact

_NO_KEY = "wandb has no API key here. Run `wandb login`, or set WANDB_API_KEY."


def import_wandb() -> ModuleType:
    """The wandb package. Raises InputError that names the extra to install."""
    # Reports of wandb's own errors to its makers delay the exit by 12 s where there is no network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise InputError("Models in wandb need the wandb package: pip install 'atlas-vla[wandb]'") from None
    if not hasattr(wandb, "init"):  # a folder named wandb, beside the script, imports as an empty package
        raise InputError("Models in wandb need the wandb package: pip install 'atlas-vla[wandb]'")
    return wandb


def base_url(wandb: ModuleType) -> str:
    """The server that is used: WANDB_BASE_URL, wandb's settings file, or wandb's own."""
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
    """Without wandb's lines on whose key it found, for which it asks the server; afterwards it is as it was."""
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
        wandb, why = import_wandb(), first_line(error)
        if unreachable(error):
            why = _no_answer(wandb)
            end_service(wandb)
        raise InputError(f"{subject}: {why}") from error


def end_service(wandb: ModuleType) -> None:
    """End wandb's own process, where no run needs it.

    It goes on asking a server that does not answer, and the exit of this process would wait for it: for ever, as seen.
    """
    import psutil

    if wandb.run is not None:
        return
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.kill()
    try:
        wandb.teardown()  # takes back the exit hook, which would end in a traceback now
    except (Exception, SystemExit):
        logger.debug("wandb's process has ended", exc_info=True)


def unreachable(error: BaseException | None) -> bool:
    """Whether a failure is that nobody answered, and not what was answered."""
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    while error is not None:
        if isinstance(error, WandbApiFailedError):
            return error.response is None  # with an answer, it says what was wrong
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        error = getattr(error, "exc", None) or error.__cause__
    return False


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") + "." if lines else f"{type(error).__name__}."


def _no_answer(wandb: ModuleType) -> str:
    hint = "Is there a network? (A proxy goes into https_proxy, another server into WANDB_BASE_URL.)"
    return f"{base_url(wandb)} cannot be reached. {hint}"
