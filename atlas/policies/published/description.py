"""The description of a policy in LeRobot's folder, which is all but its weights, and the resulting processor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atlas.config.model_section import ProcessorConfig
from atlas.data.image_fit import ImageFit
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor
from atlas.policies.published.camera_slots import EMPTY_CAMERA
from atlas.policies.published.lerobot_folder import ACTION, STATE, LeRobotFolder
from atlas.policies.published.lerobot_scaling import LeRobotScaler, columns_of, identity_columns
from atlas.policies.published.processor_files import ProcessorFiles, TokenizerStep, read_processor_files
from atlas.policies.published.published_section import PublishedConfig
from atlas.policies.published.tokenized_prompt import PromptTokenizer, find_tokenizer
from atlas.types import ActionGroup, ActionSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """A folder's config.json and processor files."""

    folder: LeRobotFolder
    files: ProcessorFiles
    saved: bool = False  # whether Atlas saved the policy; its statistics are then in its processor.json

    @classmethod
    def read(
        cls,
        path: Path,
        kind: str,
        own_steps: Sequence[str],
        called: str,
        saved: bool = False,
        usual: Mapping[str, str] | None = None,
    ) -> Description:
        """usual: the normalization_mapping where config.json has none. Raises InputError for a folder of another type
        or with unknown steps."""
        folder = LeRobotFolder.open(path, kind, called)
        return cls(folder, read_processor_files(folder, own_steps, usual), saved)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The slots for cameras, without LeRobot's empty ones."""
        return tuple(name for name in self.folder.cameras if not name.startswith(EMPTY_CAMERA))

    def tokenizer(self, config: PublishedConfig, step: TokenizerStep) -> PromptTokenizer:
        """The tokenizer that the section names, else that of the processor files, else that of `step`. Raises
        InputError."""
        step = self.files.tokenizer or step
        if config.tokenizer is not None and not self.saved:
            found = find_tokenizer(config.tokenizer, Path(), "model.tokenizer")
            return PromptTokenizer(found, step, "model.tokenizer")
        key = f"The tokenizer of {self.folder.called}"
        return PromptTokenizer(find_tokenizer(step.name, self.folder.path, key), step, key)

    def scalers(self, processor: PolicyProcessor) -> tuple[LeRobotScaler, LeRobotScaler]:
        """The scalers of state and actions, with a processor's statistics."""
        modes, eps = self.files.modes, self.files.eps
        states = [source.proprio for source in processor.statistics]
        actions = [source.action for source in processor.statistics]
        return LeRobotScaler(states, modes["STATE"], eps), LeRobotScaler(actions, modes["ACTION"], eps)

    def with_statistics(self, processor: PolicyProcessor, choice: str) -> PolicyProcessor:
        """The processor with the folder's statistics, where the choice (model.statistics) allows it and they fit.

        Decides for state and action separately, and logs which statistics are used. Raises InputError where the choice
        requires the folder's and they cannot be used.
        """
        if self.saved or choice == "dataset":
            return processor
        self.check_statistics(choice, processor.action_spec.dim, processor.proprio_dim)
        wanted = {"action": (ACTION, "ACTION", processor.action_spec.dim)}
        wanted["proprio"] = (STATE, "STATE", processor.proprio_dim)
        for name, (feature, kind, dim) in wanted.items():
            found = columns_of(self.files, feature, self.files.modes[kind], dim)
            if isinstance(found, ColumnStatistics):
                logger.info("'%s' is scaled by the statistics of %s.", feature, self.folder.called)
                sources = tuple(
                    replace(s, action=found) if name == "action" else replace(s, proprio=found)
                    for s in processor.statistics
                )
                processor = replace(processor, statistics=sources)
            else:
                logger.warning("%s: %s. '%s' is scaled by the dataset's.", self.folder.called, found, feature)
        return processor

    def check_statistics(self, choice: str, action_dim: int, proprio_dim: int) -> None:
        """Raise InputError where `with_statistics` would, for data of these widths."""
        if self.saved:
            return
        for feature, kind, dim in ((ACTION, "ACTION", action_dim), (STATE, "STATE", proprio_dim)):
            found = columns_of(self.files, feature, self.files.modes[kind], dim)
            if choice == "checkpoint" and isinstance(found, str):
                raise InputError(
                    f"model.statistics is 'checkpoint', but {self.folder.called} cannot provide them: {found}."
                )

    def own_processor(self, fit: ImageFit, cameras: Mapping[str, str] | None = None) -> PolicyProcessor:
        """The processor that follows from the folder alone. cameras: {the folder's: the world's}; None: the same names.

        Numbers without statistics pass unscaled, with a warning. Raises InputError for statistics that do not fit.
        """
        state, dim = self.folder.state_dim, self.folder.action_dim
        columns = {}
        for feature, kind, width in ((ACTION, "ACTION", dim), (STATE, "STATE", state)):
            found = columns_of(self.files, feature, self.files.modes[kind], width)
            if not isinstance(found, ColumnStatistics):
                if self.files.statistics.get(feature):
                    raise InputError(f"{self.folder.called} cannot be used as it is: {found}.")
                if self.files.modes[kind] != "identity":
                    logger.warning("%s: %s. '%s' passes unscaled.", self.folder.called, found, feature)
                found = identity_columns(width)
            columns[feature] = found
        statistics = DatasetStatistics(self.folder.called, 0, 0, columns[ACTION], columns[STATE])
        named = {name: name for name in self.cameras} if cameras is None else cameras
        shapes = [shape for name, shape in self.folder.camera_shapes.items() if name in named]
        sizes = [min(shape[-2:]) for shape in shapes if len(shape) == 3]
        return PolicyProcessor(
            cameras=tuple(named.values()),
            camera_size=min(sizes, default=min(fit.height, fit.width)),
            image_size=min(fit.height, fit.width),
            action_horizon=self.folder.integer("chunk_size"),
            proprio_dim=state,
            action_spec=_spec(dim, self.folder.called),
            statistics=(statistics,),
            scaling=ProcessorConfig(),
            fit=fit,
        )


def _spec(dim: int, called: str) -> ActionSpec:
    """The meaning of an action's numbers, as far as their count determines it."""
    if dim == ActionSpec().dim:
        logger.info("%s does not say what its %d action numbers mean; LIBERO's meaning is assumed.", called, dim)
        return ActionSpec()
    logger.info("%s does not say what its %d action numbers mean.", called, dim)
    return ActionSpec((ActionGroup("other", tuple(f"action_{i}" for i in range(dim))),))


def check_widths(description: Description, actions: int, proprio: int, most_actions: int, most_proprio: int) -> None:
    """Raise InputError where the data has more numbers than the weights take."""
    for what, has, most in (("actions have", actions, most_actions), ("state (proprio) has", proprio, most_proprio)):
        if has > most:
            raise InputError(
                f"The data's {what} {has} numbers, and the weights of {description.folder.called} take {most}."
            )
