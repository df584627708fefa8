"""The first page of TensorBoard: a layout of charts, and the run's settings as hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# {group: {chart: tags}}, for the tab "Custom scalars"; tags are regular expressions.
_Groups = dict[str, dict[str, list[str]]]

_WORKS = {
    "success rate": ["^eval/success_rate$"],
    "success rate of each task": ["^eval/success_rate/"],
    "episodes: reward": ["^eval/mean_reward$"],
    "episodes: length": ["^eval/episode_length$"],
}
_SUPERVISED: _Groups = {
    "1 does it work": _WORKS,
    "2 does it learn": {
        "loss": ["^train/loss$", "^val/loss$"],
        "pose loss": ["^train/pose_loss$", "^val/pose_loss$"],
        "gripper loss": ["^train/gripper_loss$", "^val/gripper_loss$"],
    },
    "3 how far off is it": {
        "position error (mm)": ["^val/position_error_mm$"],
        "rotation error (deg)": ["^val/rotation_error_deg$"],
        "joint error (deg)": ["^val/joint_error_deg$"],
        "joint error (%)": ["^val/joint_error_percent$"],
        "error of each arm": ["^val/(left|right)/.*error_(mm|deg)$"],
        "pose error (action units)": ["^val/pose_l1_error$", "^val/pose_l2_error$"],
        "gripper": ["^val/gripper_error$", "^val/gripper_accuracy$"],
    },
    "4 is the optimizer healthy": {
        "learning rate": ["^train/lr$"],
        "gradient norm": ["^train/grad_norm$"],
        "gradient norm of each module": ["^gradients/.*norm"],
    },
    "5 is it fast": {
        "samples per second": ["^perf/samples_per_second$"],
        "seconds per step": ["^timer/"],
        "machine (%)": ["^system/.*percent$"],
        "memory (GiB)": ["^system/.*gib$", "^perf/gpu_memory_gib$"],
    },
}
_FROM_EXPERIENCE: _Groups = {
    "1 does it work": _WORKS,
    "2 environment": {
        "episode reward": ["^actor/episode_reward$", "^actor/avg_episode_reward_10$"],
        "episode length": ["^actor/episode_length$", "^actor/avg_episode_length_10$"],
        "size of actions": ["^actor/avg_action_magnitude$"],
        "steps per second": ["^actor/steps_per_second$"],
    },
    "3 training": {
        "losses": ["^(sac|ppo|grpo)/.*loss$"],
        "temperature and entropy": ["^sac/temperature$", "^(sac|ppo|grpo)/entropy$"],
        "distance from the last policy": ["^(ppo|grpo)/(kl|clip_fraction)$"],
        "size of the correction": ["^sac/residual_size$"],
        "groups that are kept": ["^grpo/groups_kept$"],
    },
    "4 is it fast": {
        "seconds per update": ["^timer/"],
        "machine (%)": ["^system/.*percent$"],
        "memory (GiB)": ["^system/.*gib$"],
    },
}

_HPARAM_SECTIONS = ("seed", "data", "model", "training")
_HPARAM_METRICS = ("eval/success_rate", "val/loss", "val/pose_l2_error", "val/position_error_mm", "best_model/value")


def layout(from_experience: bool) -> dict[str, dict[str, list[Any]]]:
    """The layout in the form that `SummaryWriter.add_custom_scalars` takes. from_experience: of a run that plays."""
    groups = _FROM_EXPERIENCE if from_experience else _SUPERVISED
    return {group: {chart: ["Multiline", tags] for chart, tags in charts.items()} for group, charts in groups.items()}


def hparams(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The settings of data, model and training by their dotted keys; {} if there are none of these sections."""
    flat: dict[str, bool | float | str] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                add(f"{key}.{name}", item)
        elif isinstance(value, bool | str):
            flat[key] = value
        elif isinstance(value, int | float):
            flat[key] = float(value)
        else:  # lists and null, for which the plugin has no column
            flat[key] = str(value)

    for section in _HPARAM_SECTIONS:
        if section in config:
            add(section, config[section])
    return flat


def hparams_summaries(settings: Mapping[str, bool | float | str]) -> list[Any]:
    """The summaries that make the run a row of the tab "HParams", with the metrics that matter as its columns."""
    from torch.utils.tensorboard.summary import hparams as make

    experiment, start, _ = make(dict(settings), dict.fromkeys(_HPARAM_METRICS, 0.0))
    return [experiment, start]


def hparams_end(success: bool) -> Any:
    """The summary that closes the row: finished, or not."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION, PLUGIN_NAME, SESSION_END_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.STATUS_SUCCESS if success else Status.STATUS_FAILURE
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status), version=PLUGIN_DATA_VERSION)
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=SummaryMetadata(plugin_data=plugin))])
