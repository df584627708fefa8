"""`atlas data inspect`: data that can be read, but looks wrong."""

from __future__ import annotations

import json
from pathlib import Path

import h5py

from tests.conftest import MakeLibero
from tests.test_vertical_slice import run_atlas


def test_inspecting_says_what_is_there_and_what_looks_wrong(make_libero: MakeLibero) -> None:
    root: Path = make_libero({"only this": [6, 7]})
    with h5py.File(root / "task_0_demo.hdf5", "a") as file:
        for demo in file["data"].values():
            demo["actions"][:, 2] = 0.25
            demo["actions"][:, 6] = 0.5

    found = json.loads(run_atlas(["data", "inspect", str(root), "--json"]).stdout)

    assert (found["format"], found["episodes"], found["frames"], found["fps"]) == ("libero-hdf5", 2, 13, 20.0)
    assert found["tasks"] == {"only this": 2} and found["cameras"] == {"agentview": [32, 32], "eye_in_hand": [32, 32]}
    assert (found["action_dim"], found["proprio_dim"]) == (7, 8)
    assert found["action_min"][2] == found["action_max"][2] == 0.25
    warnings = " ".join(found["warnings"])
    assert "['dz'] never change" in warnings
    assert "not -1 (open) or +1 (close)" in warnings and "closed all the time" in warnings
