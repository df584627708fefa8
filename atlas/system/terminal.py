"""What is printed after the terminal was closed."""

from __future__ import annotations

import errno
import os
import termios


def leave_lost_terminal() -> None:
    """Let what is still printed go nowhere, where the terminal is gone: it would raise errors instead. Safe to call in
    a signal's handler.
    """
    for stream in (0, 1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, stream)
                os.close(nothing)
