"""`training.start_from`: a new run begins with the weights and the scaling of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import atlas
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.train import Result
from tests.conftest import MakeLibero, write_made_up_libero
from tests.test_vertical_slice import SMALL

ONE = [*SMALL, "training.max_steps=1", "training.warmup_steps=0", "training.ema_decay=0", "checkpoint.save_interval=1"]


def train(tmp_path: Path, name: str, *overrides: str) -> Result:
    return atlas.train(None, [*ONE, f"output_dir={tmp_path / 'outputs'}", f"run_name={name}", *overrides])


def test_a_run_starts_from_the_weights_and_the_scaling_of_another(make_libero: MakeLibero, tmp_path: Path) -> None:
    first = train(tmp_path, "first", f"data.path={make_libero()}")
    other = tmp_path / "other"
    write_made_up_libero(other, {"close the drawer": [7, 9, 8]})
    mixture = f"data.datasets=[{{path: {tmp_path / 'demos'}}}, {{path: {other}}}]"

    second = train(tmp_path, "second", mixture, f"training.start_from={first.run_dir}", "training.learning_rate=1e-9")

    was, now = load_policy(first.run_dir), load_policy(second.run_dir)
    for (name, old), new in zip(was.state_dict().items(), now.state_dict().values(), strict=True):
        if old.dtype.is_floating_point and old.shape == new.shape:
            torch.testing.assert_close(old, new, atol=1e-6, rtol=0, msg=name)
    assert [s.source for s in now.processor.statistics] == ["demos", "other"]
    for source in now.processor.statistics:
        np.testing.assert_array_equal(source.action.q01, was.processor.statistics[0].action.q01)
        assert source.action_scaling == was.processor.statistics[0].action_scaling


def test_a_policy_that_does_not_fit_is_refused_by_what_differs(make_libero: MakeLibero, tmp_path: Path) -> None:
    data = f"data.path={make_libero()}"
    first = train(tmp_path, "first", data)
    start = f"training.start_from={first.run_dir}"

    with pytest.raises(InputError, match=r"does not fit this run: model\.fusion\.dim was \d+ and is 16"):
        train(tmp_path, "second", data, start, "model.fusion.dim=16")
    with pytest.raises(InputError, match=r"data.action_horizon was 8 and is 4; data.cameras was .* and is"):
        train(tmp_path, "second", data, start, "data.action_horizon=4", "data.cameras=[agentview]")
    with pytest.raises(InputError, match="There is no policy at nowhere"):
        train(tmp_path, "second", data, "training.start_from=nowhere")
    assert not (tmp_path / "outputs" / "second").exists()
