"""The model card that is saved beside the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atlas.policy.policy import AtlasPolicy


def model_card(policy: AtlasPolicy) -> str:
    """README.md of a saved policy: what it takes and gives, and from which data its statistics are."""
    processor, config = policy.processor, policy.config
    spec = processor.action_spec
    parameters = sum(p.numel() for p in policy.parameters())
    sources = "\n".join(f"- {s.source}: {s.episodes} episodes, {s.frames} frames" for s in processor.statistics)
    size = processor.image_size
    frozen = "".join(
        f"- frozen {part}: `{weights.reference}`, which is not in model.safetensors (sha256 {weights.sha256})\n"
        for part, weights in policy.frozen.items()
    )
    return f"""---
library_name: atlas-vla
pipeline_tag: robotics
---
# Atlas policy

- vision `{config.vision.name}`, language `{config.language.name}`, fusion `{config.fusion.name}`, head
  `{config.head.name}`; {parameters:,} parameters
{frozen}- takes images of the cameras {", ".join(f"`{c}`" for c in processor.cameras)} (upright, used at {size} x {size}
  pixels), proprio [{processor.proprio_dim}] and an instruction
- gives chunks of {processor.action_horizon} actions [{spec.dim}] ({", ".join(spec.names)}) at {spec.control_hz:g} Hz;
  position unit {spec.position_unit_m:g} m, rotation unit {spec.rotation_unit_rad:g} rad, gripper -1 open, +1 close

Trained on:
{sources}

```python
from atlas.policy import AtlasPolicy

policy = AtlasPolicy.from_pretrained("this folder")
```
"""
