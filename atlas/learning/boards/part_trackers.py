"""The trackers of a run of learning: one for each part, finished with the run's exit code."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from atlas.config import Config
from atlas.errors import InputError
from atlas.tracking import RunTracker
from atlas.tracking.tracker import Resumed


def part_tracker(config: Config, part: str, step: int, is_main: bool = True) -> RunTracker:
    """The tracker of one part of a run, such as `learner` or `actor`."""
    name = f"{part.capitalize()}-{config.run_name}"
    wandb = config.wandb.model_copy(update={"group": config.wandb.group or config.run_name, "name": name})
    resumed = Resumed(step) if step else None
    return RunTracker(config.run_dir / part, name, wandb, config.logging, is_main, resumed, from_experience=True)


def finish_with(held: ExitStack, tracker: RunTracker) -> None:
    """Finish a tracker when the stack is left, with the run's exit code."""

    def finish(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tracker.finish(exit_code_of(error))

    held.push(finish)


def exit_code_of(error: BaseException | None) -> int:
    """The exit code with which the command will end."""
    if error is None:
        return 0
    if isinstance(error, InputError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else 1
