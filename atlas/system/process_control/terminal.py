"""Output after the terminal was closed."""

from __future__ import annotations

import errno
import os
import termios


def leave_lost_terminal() -> None:
    """Discard further output if the terminal is gone, since it would otherwise raise errors. Safe to call in a signal
    handler.
    """
    for stream in (0, 1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, stream)
                os.close(nothing)
