"""Inside a rank: learn which run it belongs to, end with the launcher, and report how and why this rank ends."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas import __version__
from atlas.errors import InputError, first_line
from atlas.launch.reports import Report, is_consequence, now, own_frames, write_code
from atlas.system.file_store import CONFIG
from atlas.system.safe_text import printable

if TYPE_CHECKING:
    from atlas.config import Config

LAUNCHER_PID = "ATLAS_LAUNCHER_PID"
FOLDER = "ATLAS_LAUNCHER_FOLDER"  # where ranks leave what the launcher needs to know
ASK_FOR_STACK = signal.SIGUSR2  # sent by the launcher to a rank that has reported nothing
_PR_SET_PDEATHSIG = 1  # for Linux's prctl
_LOOK_SECONDS = 0.1
_SHARED_SECONDS = 30.0  # for a shared file system to show what another machine has written
_kept: list[Any] = []  # objects that must live as long as the process


def launcher_folder() -> Path | None:
    """The folder of the launcher that started this rank; None in any other process."""
    folder = os.environ.get(FOLDER)
    return Path(folder) if folder and "RANK" in os.environ and Path(folder).is_dir() else None


def die_with_launcher() -> None:
    """Have the kernel kill this rank when its launcher ends, however it ends (Linux only), and let the launcher ask
    for the stack of a rank that hangs.
    """
    folder = launcher_folder()
    if folder is not None:
        file = (folder / f"stack_{os.environ['RANK']}").open("w")
        _kept.append(file)
        faulthandler.enable(file)  # so that a crash in C also says where it was
        faulthandler.register(ASK_FOR_STACK, file)
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:  # it had ended before the kernel was told
        os._exit(128 + signal.SIGKILL)


def leave_exit_code(code: int) -> None:
    """Report to the launcher how this rank ended: torchrun only keeps that it failed. Does nothing elsewhere."""
    folder = launcher_folder()
    if folder is not None:
        write_code(folder, int(os.environ["RANK"]), code)


def leave_error(error: BaseException) -> bool:
    """Give the launcher an error to report; False if there is no launcher, and the caller has to report it.

    Best called before anything else is done about the error: from then on the launcher waits for this rank to end, and
    no longer for the others, and the SIGTERM that torchrun sends when another rank has failed does not disturb this
    one. Errors that ask for their own exit code are not failures, and are not kept.
    """
    folder = launcher_folder()
    if folder is None:
        return False
    code = getattr(error, "exit_code", None)
    if code not in (None, 1) or isinstance(error, KeyboardInterrupt | SystemExit):
        return False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from atlas.system.safe_text import redact

    wrong_input = isinstance(error, InputError)
    text = str(error) if wrong_input or code == 1 else _traceback(error)
    Report(
        int(os.environ["RANK"]),
        "input" if wrong_input else "error",
        redact(text.rstrip()),
        redact(f"{type(error).__name__}: {first_line(error)}"),
        not wrong_input and is_consequence(error),
        now(),
    ).write(folder)
    return True


def _traceback(error: BaseException) -> str:
    formatted = traceback.TracebackException.from_exception(error)
    formatted.stack[:] = own_frames(formatted.stack)
    return "".join(formatted.format())


def end_at_once(code: int, error: BaseException | None = None) -> None:
    """End a failed rank although the others may still wait for it in a collective; does nothing elsewhere.

    Leaving the process group properly, as Python's own exit would, waits for the others in turn: on GPUs, for ever.
    error: shown first, for callers above which nobody will show it.
    """
    distributed = sys.modules.get("torch.distributed")
    if code == 0 or distributed is None or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    with contextlib.suppress(OSError, ValueError):  # if these are closed, nobody is listening
        if error is not None:
            from atlas.system.safe_text import redact

            print(printable(redact(_traceback(error))), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


# ---- the first rank prepares for all ---------------------------------------------------------------------


def is_rank() -> bool:
    """Whether this process is one that torchrun has started."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


def on_first_rank(prepare: Callable[[], tuple[Config, Path | None]]) -> tuple[Config, Path | None]:
    """The result of `prepare`, which only rank 0 runs if there are several ranks; elsewhere simply `prepare()`.

    The other ranks get it as JSON through the store at which the ranks meet. Whoever reaches that store may have
    written to it, so everything in it is checked. Raises InputError if `prepare` does, on rank 0 and the first rank of
    every other machine; if a machine has another version of Atlas; and if it does not see the run's folder. The other
    ranks of a machine then end with 2, silently.
    """
    if not is_rank() or int(os.environ["WORLD_SIZE"]) == 1:
        return prepare()
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, _ = next(rendezvous("env://"))
    _kept.append(store)  # unless torchrun has a store of its own, rank 0 holds it, and the others read from it later
    shared = PrefixStore("atlas", store)
    if rank == 0:
        try:
            config, checkpoint = prepare()
        except InputError as error:
            shared.set("prepared", json.dumps({"refused": str(error)}))
            raise
        shared.set("prepared", write_prepared(config, checkpoint))
        return config, checkpoint
    while not shared.check(["prepared"]):
        time.sleep(_LOOK_SECONDS)
    try:
        config, checkpoint = read_prepared(shared.get("prepared"))
        _check_shared(config)
    except InputError:
        if os.environ["LOCAL_RANK"] != "0":
            raise SystemExit(2) from None
        raise
    return config, checkpoint


def write_prepared(config: Config, checkpoint: Path | None) -> str:
    """A run that is ready to start, as text for the other ranks."""
    named = None if checkpoint is None else str(checkpoint)
    return json.dumps({"atlas": __version__, "config": config.model_dump(mode="json"), "checkpoint": named})


def read_prepared(text: str | bytes) -> tuple[Config, Path | None]:
    """The inverse of `write_prepared`. Raises InputError for anything else, and with rank 0's refusal."""
    from atlas.config import parse_config

    try:
        values = json.loads(text)
        if isinstance(refused := values.get("refused"), str):
            raise InputError(refused)
        version, config, checkpoint = values.pop("atlas"), values.pop("config"), values.pop("checkpoint")
        if values or not isinstance(config, dict) or not isinstance(checkpoint, str | None):
            raise ValueError("its keys or values are not those of a run")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"The ranks' store does not hold the run that rank 0 has prepared ({error}).") from None
    if version != __version__:
        raise InputError(
            f"This machine has Atlas {__version__}, but the first one, which has prepared the run, has {version}: "
            f"install the same version on all."
        )
    return parse_config(config, "what rank 0 has prepared"), None if checkpoint is None else Path(checkpoint)


def _check_shared(config: Config) -> None:
    """Wait until this machine sees the config that rank 0 has written. Raises InputError if it does not."""
    from atlas.config import load_config

    assert config.run_name is not None
    folder = Path(config.output_dir, config.run_name)
    end = time.monotonic() + _SHARED_SECONDS
    while not (folder / CONFIG).is_file() or load_config(folder / CONFIG) != config:
        if time.monotonic() > end:
            raise InputError(
                f"{folder.absolute()} is not the run's folder that the first machine has made. All machines need the "
                f"same output_dir on a shared file system: start in the same folder, or give an absolute path."
            )
        time.sleep(_LOOK_SECONDS)
