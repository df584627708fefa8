"""A perturbation of another package: it is dark. In `drift` a policy that saw the place then sees nothing of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from atlas.environments.perturbations.perturbation import Perturbation
from atlas.types import Observation


class Night(Perturbation):
    category = "light_conditions"
    visual = True

    def see(self, observation: Observation) -> Observation:
        images = {name: image // np.uint8(self.level + 1) for name, image in observation.images.items()}
        return replace(observation, images=images)
