"""`language`: are there instructions, does each task have its own, and do they tell anything about the actions?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.environments.catalog import environment_spec
from atlas.errors import InputError

# What loaders and converters write when they have no instruction; compared without case, digits and punctuation.
_PLACEHOLDERS = frozenset(
    "no instruction|no instructions|no language|no task|no description|none|null|nan|na|n a|not available|unknown|"
    "undefined|missing|empty|todo|tbd|fixme|placeholder|placeholder instruction|dummy|dummy task|dummy instruction|"
    "default|default task|default instruction|instruction|language instruction|task|task name|task description|"
    "description|prompt|text|string|example|example task|sample|test|test task|untitled|episode|demo|lorem ipsum|"
    "do something|do the task|perform the task|your task here|task instruction|complete the task".split("|")
)
_FEWEST_EPISODES = 24  # to judge how much an instruction tells about the actions
_MOST_EPISODES = 300
_PIXELS = 6  # per side of the first images, which stand for the scene if there are no simulator states
_RIDGES = (1e-2, 1e-1, 1.0, 10.0)


def check_language(context: CheckContext) -> Iterator[Finding]:
    yield from check_instructions(context)
    if len(context.dataset.tasks) > 1 and not context.has_errors("language"):
        yield _bits(context)


def check_instructions(context: CheckContext) -> Iterator[Finding]:
    """Check what the words alone show."""
    tasks = context.dataset.tasks
    placeholders = [task for task in tasks if is_placeholder(task)]
    if placeholders:
        episodes = int(np.isin(context.dataset.task_of, [tasks.index(task) for task in placeholders]).sum())
        shown = ", ".join(repr(task) for task in placeholders[:3])
        yield Finding(
            "language",
            "error",
            f"{episodes} of {context.episodes} episodes have only a placeholder as their instruction: {shown}",
            "Load the instructions where the data was converted; a policy cannot know which task is meant.",
            {"placeholders": placeholders, "episodes": episodes},
            bugs=("one_instruction",),
        )
        return
    if len(tasks) == 1:
        yield _only_one(context)
    yield from _alike(tasks)


def is_placeholder(text: str) -> bool:
    """Whether an instruction is empty, or a word that stands for none."""
    words = " ".join(re.sub(r"[\W\d_]+", " ", text.lower()).split())
    return not words or words in _PLACEHOLDERS


def _only_one(context: CheckContext) -> Finding:
    """The same instruction for all: a fault if something else says that there are several tasks."""
    task = context.dataset.tasks[0]
    files = [Path(file).stem.removesuffix("_demo") for file in getattr(context.dataset, "files", [])]
    if len(files) > 1:  # LIBERO's layout has one file per task
        return Finding(
            "language",
            "error",
            f"all {len(files)} files have the same instruction '{task}', but each file is a task of its own: "
            f"{', '.join(files[:3])}",
            "Give each file its own instruction (language_instruction in the attribute problem_info of data).",
            {"instructions": 1, "files": len(files)},
            bugs=("one_instruction",),
        )
    words, evidence = f"there is only one instruction ('{task}')", {"instructions": 1}
    others = _tasks_of_world(context)
    if others <= 1:
        message = f"{words}: a policy for this task, which will not listen to another"
        return Finding("language", "info", message, None, evidence, bugs=("one_instruction",))
    return Finding(
        "language",
        "warning",
        f"{words}, but the world '{context.dataset.environment}' has {others} tasks: a policy cannot learn to listen",
        "For a policy with a single task nothing needs to be done; otherwise check how instructions were loaded.",
        evidence,
        bugs=("one_instruction",),
    )


def _tasks_of_world(context: CheckContext) -> int:
    """The number of instructions in the world that the data was recorded in; 0 where it is not known."""
    name = context.dataset.environment
    try:
        return 0 if name is None else len(environment_spec(name).instructions)
    except InputError:  # it is not installed here
        return 0


def _alike(tasks: list[str]) -> Iterator[Finding]:
    """Instructions that differ only in form, and names instead of sentences."""
    forms = Counter(" ".join(re.findall(r"\w+", task.lower().replace("_", " "))) for task in tasks)
    repeated = [form for form, count in forms.items() if count > 1]
    if repeated:
        yield Finding(
            "language",
            "warning",
            f"instructions differ only in case, spaces or punctuation: '{repeated[0]}'",
            "Write each task's instruction in one way.",
            {"alike": repeated},
        )
    names = [task for task in tasks if "_" in task and " " not in task.strip()]
    if names:
        yield Finding(
            "language",
            "warning",
            f"{len(names)} instructions are names instead of sentences, such as '{names[0]}'",
            "Write them as they will be given at evaluation.",
            {"names": names[:10]},
        )


def _bits(context: CheckContext) -> Finding:
    tasks, among = len(context.dataset.tasks), entropy(context)
    evidence = {"instructions": tasks, "entropy_bits": round(among, 3)}
    message = f"{tasks} instructions, {among:.2f} bits per episode"
    bits = instruction_bits(context)
    if bits is None:
        message += "; too few episodes to say what they tell about actions"
        return Finding("language", "info", message, None, evidence, bugs=("one_instruction",))
    evidence["bits_about_actions"] = round(bits, 3)
    return Finding(
        "language",
        "info",
        f"{message}; beyond what can be seen at the start they tell {bits:.2f} bits about where the hand goes",
        None,
        evidence,
        bugs=("one_instruction",),
    )


def entropy(context: CheckContext) -> float:
    """The entropy of an episode's instruction, in bits."""
    shares = np.bincount(context.dataset.task_of) / len(context.dataset.task_of)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def instruction_bits(context: CheckContext) -> float | None:
    """The number of bits that the instruction carries about an episode's actions, beyond the scene at its start.

    The mean action of each third of an episode is predicted from the scene by kernel ridge regression, once with and
    once without the instruction. The bits are those of Gaussian errors: the sum over numbers of log2(error without /
    error with), by leave-one-out, and at most the bits of the instruction. What such a regression does not find is not
    counted. None for too few episodes.
    """
    numbers = context.sample(_MOST_EPISODES)
    if len(numbers) < _FEWEST_EPISODES:
        return None
    episodes = [context.dataset.episode(i) for i in numbers]
    scenes, moves = [], []
    pose = context.dataset.action_spec.pose
    for episode in episodes:
        state = episode.init_state
        if state is None:
            first = episode.images(context.cameras[0], [0])[0].astype(np.float64).mean(-1)
            rows, columns = (np.array_split(np.arange(n), _PIXELS) for n in first.shape)
            state = np.array([first[np.ix_(r, c)].mean() for r in rows for c in columns])
        scenes.append(np.concatenate([state, episode.proprio[0]]))
        moves.append(np.concatenate([part.mean(0) for part in np.array_split(episode.actions[:, pose], 3)]))
    if len({len(scene) for scene in scenes}) > 1:
        return None  # the states of several worlds
    task = context.dataset.task_of[numbers]
    scene = _standardised(np.stack(scenes))
    same = (task[:, None] == task[None, :]).astype(np.float64)
    targets = _standardised(np.stack(moves))
    kernel = 1.0 + scene @ scene.T / max(1, scene.shape[1])
    without = _left_out_errors(kernel, targets)
    with_task = _left_out_errors(kernel + kernel * same, targets)  # each task may have a different answer
    bits = max(0.0, float(0.5 * np.log2(without / np.minimum(with_task, without)).sum()))
    return min(bits, entropy(context))  # numbers that vary together were each counted


def _standardised(values: np.ndarray) -> np.ndarray:
    """[n, D] with only the columns that vary, scaled to mean 0 and deviation 1."""
    deviation = values.std(0)
    varying = deviation > 1e-9 * np.maximum(1.0, np.abs(values).max(0))
    return (values[:, varying] - values[:, varying].mean(0)) / deviation[varying]


def _left_out_errors(kernel: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared leave-one-out errors [D] of kernel ridge regression, with the ridge that is best overall."""
    best = None
    for ridge in _RIDGES:
        inverse = np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
        left_out = (inverse @ targets) / np.diag(inverse)[:, None]
        errors = (left_out**2).mean(0)
        if best is None or errors.sum() < best.sum():
            best = errors
    assert best is not None
    return np.maximum(best, 1e-6)
