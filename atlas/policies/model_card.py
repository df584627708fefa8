"""The model card: what the policy takes and returns, and for a checkpoint also how it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import yaml

from atlas.registry.lerobot_policies import is_lerobot_policy
from atlas.registry.references import HUB
from atlas.system.file_store import card_of, describe_files, whole_card, without_head
from atlas.system.safe_text import markdown, markdown_code

if TYPE_CHECKING:
    from atlas.policies.base import Policy

_END = "---\n"  # of a header
# The known facts about training: {key of the metadata: its name}.
_FACTS = {
    "run_name": "run",
    "step": "optimizer steps",
    "epoch": "epochs",
    "data": "dataset",
    "dataset_fingerprint": "fingerprint of the dataset",
    "parameters": "parameters",
    "trainable_parameters": "of which trained",
    "file_size_mb": "size in MB",
    "config_hash": "hash of the config",
    "git_commit": "git commit",
}


@runtime_checkable
class HasOrigin(Protocol):
    """A policy that began with published weights."""

    def published_origin(self) -> Mapping[str, Any]:
        """The header's facts about them, for a card on the Hugging Face hub: license, base_model."""
        ...


def model_card(policy: Policy) -> str:
    """README.md of a saved policy: what it takes and returns, and the data of its statistics."""
    processor = policy.processor
    spec = processor.action_spec
    parameters = sum(p.numel() for p in policy.parameters())
    sources = "\n".join(
        f"- {markdown(s.source)}: {s.episodes} episodes, {s.frames} frames" for s in processor.statistics
    )
    cameras = ", ".join(map(markdown_code, processor.cameras))
    groups = "\n".join(f"  - {markdown(group.describe())}" for group in spec.groups)
    size = processor.image_size
    seen = f"images of the cameras {cameras} (upright, used at {size} x {size}\n  pixels), " if cameras else ""
    frozen = "".join(
        f"- frozen {part}: {markdown_code(weights.reference)}, which is not in model.safetensors "
        f"(sha256 {weights.sha256})\n"
        for part, weights in policy.frozen.items()
    )
    origin = yaml.safe_dump(dict(policy.published_origin()), sort_keys=False) if isinstance(policy, HasOrigin) else ""
    return f"""---
library_name: atlas-vla
pipeline_tag: robotics
{origin}---
# Atlas policy

- {policy.config.describe()}; {parameters:,} parameters
{frozen}- takes {seen}proprio [{processor.proprio_dim}] and an instruction
- gives chunks of {processor.action_horizon} actions [{spec.dim}] at {spec.control_hz:g} Hz:
{groups}

Trained on:
{sources}

```python
import atlas

policy = atlas.load_policy("this folder")
```
"""


def checkpoint_card(folder: Path, facts: Mapping[str, Any] | None = None, reference: str | None = None) -> str | None:
    """The card of a checkpoint or a saved policy in Markdown; None if the folder holds no policy's card.

    facts: the metadata of an artifact (see `Publisher`), including its `metrics`; None: read from the files. reference:
    how `load_policy` finds it, if not by the folder itself.
    """
    folder = Path(folder)
    card = card_of(folder) if folder.is_dir() else None
    if card is None:
        return None
    facts = describe_files(folder) if facts is None else facts
    metrics = [(markdown_code(name), value) for name, value in sorted((facts.get("metrics") or {}).items())]
    parts = [card if reference is None else card.replace('"this folder"', json.dumps(reference))]
    if table := training_table(facts):
        parts.append(table)
    if metrics:
        parts.append("## Metrics\n\nAs last measured before it was saved.\n\n" + _table("metric", metrics))
    return "\n".join(parts)


def hub_card(folder: Path, reference: str) -> str | None:
    """`checkpoint_card` as the Hugging Face hub shows it: with the YAML header of the folder's card, and `hub_facts`.

    None for a folder in LeRobot's form, too: its own card says how it was trained and how LeRobot loads it.
    """
    card = None if is_lerobot_policy(Path(folder)) else checkpoint_card(folder, reference=reference)
    if card is None:
        return None
    whole = whole_card(Path(folder)) or ""
    head, told = whole.removesuffix(without_head(whole)), hub_facts(describe_files(Path(folder)), reference)
    if told and head.endswith(_END):
        head = head.removesuffix(_END) + yaml.safe_dump(told, sort_keys=False) + _END
    return head + card


def training_table(facts: Mapping[str, Any]) -> str:
    """A section of a card on how a policy was trained; empty if nothing is known."""
    rows = [(label, facts[key]) for key, label in _FACTS.items() if facts.get(key) is not None]
    if told := facts.get("success"):
        rows.append((f"success in {told['env']}", f"{told['success_rate']:.0%} of {told['episodes']} episodes"))
    return "## Training\n\n" + _table("", rows) if rows else ""


def hub_facts(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The header's facts about a training, for a card on the Hugging Face hub: a dataset of the hub, and success.
    facts: see `describe_files`. name: the model's, where its run has none."""
    found: dict[str, Any] = {}
    if str(facts.get("data")).startswith(HUB):
        found["datasets"] = [str(facts["data"]).removeprefix(HUB)]
    if told := facts.get("success"):
        env, rate = told["env"], round(told["success_rate"], 4)
        metric = {"type": "success_rate", "name": f"success of {told['episodes']} episodes", "value": rate}
        result = {"task": {"type": "robotics"}, "dataset": {"type": env, "name": env}, "metrics": [metric]}
        found["model-index"] = [{"name": str(facts.get("run_name") or name), "results": [result]}]
    return found


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    body = "".join(f"| {label} | {_cell(value)} |\n" for label, value in rows)
    return f"| {title} | |\n|---|---|\n{body}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else markdown(str(value))
