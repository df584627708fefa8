"""Encoding AV1 leaves the process as it was."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from atlas.system.process_control.threads import no_real_time
from tests.data.lerobot_folders import write_video

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="real-time classes as Linux has them")


def test_an_encoder_leaves_nothing_real_time_behind(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", np.zeros((3, 64, 64, 3), np.uint8), codec="libsvtav1", preset="12")

    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may become real-time")
def test_other_threads_are_put_back_too() -> None:
    thread = threading.Thread(target=(end := threading.Event()).wait)
    thread.start()
    try:
        with no_real_time():
            for each in (0, thread.native_id):
                assert each is not None
                os.sched_setscheduler(each, os.SCHED_FIFO, os.sched_param(1))

        assert {os.sched_getscheduler(each) for each in (0, thread.native_id)} == {os.SCHED_OTHER}
    finally:
        end.set()
        thread.join()
