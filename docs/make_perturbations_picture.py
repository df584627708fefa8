"""Draws docs/perturbations.jpg: the start of one episode of `cubes` under each perturbation that can be seen.

    python docs/make_perturbations_picture.py [--out docs/perturbations.jpg] [--seed 7] [--size 104] [--all]

A row a perturbation: the scene's camera at levels 1 to 5, then the wrist's at level 5. With --all also those that can
not be seen, beside them what the policy is told at level 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atlas.environments.cubes import INSTRUCTIONS, CubesEnvironment
from atlas.environments.perturbations.choices import PERTURBATIONS, PerturbationChoice
from atlas.environments.perturbations.perturbation import LEVELS
from atlas.types import Observation

NAME, GAP = 118, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("perturbations.jpg"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=104)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    env = CubesEnvironment(arguments.size)
    size = arguments.size
    names = [name for name in PERTURBATIONS.names() if arguments.all or is_seen(PerturbationChoice(name, 1))]
    width, height = NAME + 6 * (size + GAP), (len(names) + 1) * (size + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    plain = env.reset(seed=arguments.seed, instruction=INSTRUCTIONS[0])
    draw_row(sheet, 0, size, [plain.images["agentview"]] * 5 + [plain.images["eye_in_hand"]])
    draw.text((4, 4), f"as it is\n\n{wrapped(plain.instruction)}", "black", font)
    for row, name in enumerate(names, 1):
        seen = [start(env, PerturbationChoice(name, level), arguments.seed) for level in LEVELS]
        draw_row(sheet, row, size, [each.images["agentview"] for each in seen] + [seen[-1].images["eye_in_hand"]])
        told = f"\n\n{wrapped(seen[2].instruction)}" if seen[2].instruction != plain.instruction else ""
        draw.text((4, row * (size + GAP) + 4), f"{name}{told}", "black", font)
        print(name, *(each.instruction for each in seen if each.instruction != plain.instruction), sep="\n   ")
    env.close()
    sheet.save(arguments.out, quality=80)


def is_seen(choice: PerturbationChoice) -> bool:
    return choice.name not in ("dropped_frames", "late_frames") and (
        choice.kind.visual or bool(choice.kind.needs & {"placement", "start_pose"})
    )


def start(env: CubesEnvironment, choice: PerturbationChoice, seed: int) -> Observation:
    """What is seen after three steps of an episode: late pictures are late by then."""
    perturbation = choice.of_episode(seed, env.spec)
    env.vary(perturbation.variation())
    observation = env.reset(seed=seed, instruction=INSTRUCTIONS[0])
    perturbation.begin(env)
    seen = perturbation.see(observation)
    for _ in range(3):
        action = perturbation.act(np.array([1.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0]))
        result = env.step(action)
        assert result.observation is not None
        seen = perturbation.see(result.observation)
    return seen


def draw_row(sheet: Image.Image, row: int, size: int, pictures: list[np.ndarray]) -> None:
    for column, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (NAME + column * (size + GAP), row * (size + GAP)))


def wrapped(text: str, width: int = 18) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines)


if __name__ == "__main__":
    main()
