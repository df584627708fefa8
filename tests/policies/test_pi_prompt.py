"""Prompts are LeRobot's, to the letter."""

from __future__ import annotations

import json

import torch

from atlas.policies.pi.pi_policy import command_prompts, state_bins, state_prompts
from tests.policies.golden_pi import FOLDER, golden


def test_pi0_is_told_the_instruction_with_one_end_of_line() -> None:
    told = json.loads((FOLDER / "pi0" / "inputs.json").read_text())

    assert command_prompts(told["tasks"]) == told["cases"]["full"]["prompt"]


def test_pi05_is_told_the_state_too() -> None:
    told = json.loads((FOLDER / "pi05" / "inputs.json").read_text())

    assert (
        state_prompts(told["tasks"], golden("pi05").of("full")["state_normalized"]) == told["cases"]["full"]["prompt"]
    )


def test_bins_begin_at_their_edges_and_nothing_is_clipped() -> None:
    step = 1 / 128
    state = torch.tensor([[-1.5, -1.0, -1 + step, -1 + step - 1e-6, 0.0, 0.9921875, 0.9921874, 7.0]])

    assert state_bins(state).tolist() == [[-1, 0, 1, 0, 128, 255, 254, 255]]
