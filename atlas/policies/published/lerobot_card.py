"""The README.md of an exported LeRobot policy: a model card in the hub's form, with known facts only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from atlas.policies.model_card import hub_facts, training_table
from atlas.registry.references import HUB
from atlas.system.safe_text import markdown, markdown_code

if TYPE_CHECKING:
    from atlas.policies.published.flow_policy import FlowPolicy

# The hub's name of a licence, and a note on it. The model cards themselves are authoritative.
LICENCES = {
    "smolvla": ("apache-2.0", "The card of lerobot/smolvla_base is known to say Apache 2.0, as SmolVLM2's does."),
    "pi0": ("gemma", "The weights derive from PaliGemma: take them to be under Google's Gemma terms."),
    "pi05": ("gemma", "The weights derive from PaliGemma: take them to be under Google's Gemma terms."),
}
_UNKNOWN = ("other", "The licence is that of the weights that training started from.")


def origin_of(policy: FlowPolicy) -> dict[str, Any]:
    """Say where its weights come from, as the header of a card on the Hugging Face hub says it: license, base_model."""
    start = policy.config.pretrained
    found = {"license": LICENCES.get(policy.description.folder.kind, _UNKNOWN)[0]}
    if start.startswith(HUB) and policy.config.weights != "random":
        found["base_model"] = start.removeprefix(HUB)
    return found


def lerobot_card(policy: FlowPolicy, facts: Mapping[str, Any] | None = None) -> str:
    """The model card. facts: about the training, as `describe_files` gives them for a policy in a checkpoint."""
    processor, kind, start = policy.processor, policy.description.folder.kind, policy.config.pretrained
    facts, random = facts or {}, policy.config.weights == "random"
    about: dict[str, Any] = {"library_name": "lerobot", "pipeline_tag": "robotics"}
    about |= {"tags": ["robotics", kind, "atlas-vla"], **origin_of(policy), **hub_facts(facts, kind)}
    origin = "random weights" if random else markdown_code(start.removeprefix(HUB))
    cameras = ", ".join(markdown_code(name) for name, _ in policy.slots.present)
    actions = "; ".join(group.describe() for group in processor.action_spec.groups)
    trained = [s for s in processor.statistics if s.frames]
    lines = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---",
        f"# {kind}, trained with Atlas" if trained else f"# {kind}",
        f"Started from {origin}. Takes the cameras {cameras}, a state of {processor.proprio_dim} numbers and an "
        f"instruction; gives chunks of {processor.action_horizon} actions of {processor.action_spec.dim} numbers: "
        f"{markdown(actions)}.",
    ]
    if trained:
        sources = "\n".join(f"- {markdown(s.source)}: {s.episodes} episodes, {s.frames} frames" for s in trained)
        lines.append(f"Trained on:\n{sources}")
    if table := training_table(facts):
        lines.append(table)
    return "\n\n".join([*lines, LICENCES.get(kind, _UNKNOWN)[1]]) + "\n"
