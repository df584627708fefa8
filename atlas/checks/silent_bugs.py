"""The known silent bugs: what costs success without an error, in the order in which it is cheap to look for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BugId = Literal[
    "unnormalised",
    "statistics",
    "average",
    "precision",
    "train_mode",
    "dropout",
    "words",
    "resize",
    "rotation_flip",
    "one_instruction",
    "state_source",
    "turned",
    "colours",
    "cameras",
    "gripper",
    "late_actions",
    "observation_order",
    "control_rate",
    "whole_chunk",
    "stale_frames",
    "settling",
]


@dataclass(frozen=True)
class SilentBug:
    id: BugId
    topic: str  # what is looked at
    title: str  # what is wrong
    advice: str  # what to do about it, where a check does not know better


SILENT_BUGS: tuple[SilentBug, ...] = (
    # What the files of the policy tell.
    SilentBug(
        "unnormalised",
        "un-normalising",
        "Actions are un-normalised in another way than they were normalised",
        "Un-normalise by the policy's own processor.json: quantiles are not the smallest and largest values.",
    ),
    SilentBug(
        "statistics",
        "statistics",
        "The policy is scaled by the statistics of another dataset",
        "Load the processor.json that was saved with the weights.",
    ),
    SilentBug(
        "average",
        "averaged weights",
        "Other weights are used than those that were validated (such as not the averaged ones)",
        "Load policy/ of the checkpoint, which has the averaged weights, and not trainer/.",
    ),
    SilentBug(
        "precision",
        "precision",
        "The policy is evaluated in another precision than it was validated in",
        "Evaluate in the precision of training (training.precision), or validate in that of evaluation.",
    ),
    SilentBug(
        "train_mode",
        "train mode",
        "Parts of the policy, such as a frozen encoder, are in train mode",
        "Call policy.eval() before it acts, and after every train().",
    ),
    SilentBug("dropout", "dropout", "Dropout is on while the policy acts", "Call policy.eval() before it acts."),
    SilentBug(
        "words",
        "instructions' tokens",
        "Instructions are cut, or tokenised with another template",
        "Raise model.language.max_length, and give instructions in the form of training.",
    ),
    SilentBug(
        "resize",
        "crop and resize",
        "Images are cropped or resized in another way than in training",
        "Give the policy camera images as the dataset has them, and let its processor fit them.",
    ),
    # What the data tell.
    SilentBug(
        "rotation_flip",
        "rotations",
        "Axis-angle rotations jump by a whole turn near 180 degrees",
        "Store rotations without jumps: keep each on the side of the one before, or use rotation_6d.",
    ),
    SilentBug(
        "one_instruction",
        "instructions",
        "All episodes are told the same instruction",
        "Give each task, and each environment, its own instruction.",
    ),
    SilentBug(
        "state_source",
        "proprio",
        "Proprio is read from another source, or in another order",
        "Compare what proprio is made of, its units and order, in the dataset and in the environment.",
    ),
    # What pictures tell.
    SilentBug(
        "turned",
        "orientation of images",
        "Images are rotated or mirrored",
        "Correct data.orientation, or the environment's cameras.",
    ),
    SilentBug("colours", "colours", "Red and blue are swapped", "Deliver RGB; OpenCV reads BGR."),
    SilentBug("cameras", "cameras", "Cameras are swapped", "Give both cameras the names that they had in training."),
    # What the motion tells.
    SilentBug(
        "gripper",
        "gripper",
        "The gripper's sign, range or threshold is another one",
        "Say what is open and what is closed where the data is converted, and where actions are executed.",
    ),
    SilentBug(
        "late_actions",
        "timing of actions",
        "Actions come a step late or early",
        "Execute each action at the step it was planned for.",
    ),
    SilentBug(
        "observation_order",
        "timing of observations",
        "Observations are of before the action where they should be of after it, or the other way round",
        "Record each observation before its action, and observe after the last action.",
    ),
    SilentBug(
        "control_rate",
        "rate of the world",
        "The world runs at another rate than the data",
        "Give one action a step of the rate that the data was recorded at.",
    ),
    SilentBug(
        "whole_chunk",
        "share of chunks",
        "Another share of each chunk is executed than was meant",
        "Set evaluation.execute, or --execute, as it was in training.",
    ),
    SilentBug(
        "stale_frames",
        "fresh images",
        "The same image is delivered twice while the robot moves",
        "Wait for a new image at each step; look at the camera's rate and its buffer.",
    ),
    SilentBug(
        "settling",
        "settled starts",
        "Episodes begin before the scene has settled",
        "Let the world settle as long as in the recordings before the first observation.",
    ),
)
BUGS: dict[BugId, SilentBug] = {bug.id: bug for bug in SILENT_BUGS}
