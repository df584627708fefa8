"""The prompts of pi0 and pi0.5 as text; the tokenizer adds the token that begins a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

BINS = 256  # of the normalised state, from -1 in steps of 2 / BINS


def command_prompts(instructions: Sequence[str]) -> list[str]:
    """pi0's prompts: the instruction, ending in a newline."""
    return [text if text.endswith("\n") else f"{text}\n" for text in instructions]


def state_bins(state: torch.Tensor) -> torch.Tensor:
    """The bin of each number of normalised states float32 [B, P], int64 [B, P]: -1 below -1, and 255, the last one,
    from 0.9921875 up. The bins' edges are float64, and nothing is clipped."""
    edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64, device=state.device)[:-1]
    return torch.bucketize(state.double(), edges, right=True) - 1


def state_prompts(instructions: Sequence[str], state: torch.Tensor) -> list[str]:
    """pi0.5's prompts: the instruction in one line, then the bins of the state [B, P], which is normalised and without
    padding."""
    prompts = []
    # Words are the host's: of a state on a GPU this waits, once.
    for text, bins in zip(instructions, state_bins(state).cpu().tolist(), strict=True):
        line = text.strip().replace("_", " ").replace("\n", " ")
        prompts.append(f"Task: {line}, State: {' '.join(map(str, bins))};\nAction: ")
    return prompts
