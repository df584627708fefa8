"""The configuration: every section typed and checked, read from YAML, changed by `key=value` overrides.

Imports no torch, so the command line can refuse a wrong config at once.
"""

from atlas.config.data_sections import AugmentConfig, DataConfig, RecordConfig, SourceConfig
from atlas.config.experience_sections import (
    DaggerConfig,
    GrpoConfig,
    LearningConfig,
    OnlineConfig,
    OnPolicyConfig,
    PpoConfig,
    ResidualSacConfig,
    RftConfig,
    RoundsConfig,
    SacBaseConfig,
    SacConfig,
)
from atlas.config.model_section import ModelConfig, ProcessorConfig
from atlas.config.reading import DEFAULT_CONFIG, config_schema, dump_yaml, load_config, parse_config
from atlas.config.root import Config
from atlas.config.tracking_sections import (
    ActionLoggerConfig,
    Bounds,
    EpisodeLoggerConfig,
    GradientLoggerConfig,
    LoggingConfig,
    MediaConfig,
    ModelManagementConfig,
    PlotLoggerConfig,
    VisDatasetConfig,
    WandbConfig,
)
from atlas.config.training_sections import (
    CheckpointConfig,
    DistributedConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    ProfileConfig,
    TrainingConfig,
)

__all__ = [
    "DEFAULT_CONFIG",
    "ActionLoggerConfig",
    "AugmentConfig",
    "Bounds",
    "CheckpointConfig",
    "Config",
    "DaggerConfig",
    "DataConfig",
    "DistributedConfig",
    "EarlyStoppingConfig",
    "EpisodeLoggerConfig",
    "EvaluationConfig",
    "GradientLoggerConfig",
    "GrpoConfig",
    "LearningConfig",
    "LoggingConfig",
    "MediaConfig",
    "ModelConfig",
    "ModelManagementConfig",
    "OnPolicyConfig",
    "OnlineConfig",
    "PlotLoggerConfig",
    "PpoConfig",
    "ProcessorConfig",
    "ProfileConfig",
    "RecordConfig",
    "ResidualSacConfig",
    "RftConfig",
    "RoundsConfig",
    "SacBaseConfig",
    "SacConfig",
    "SourceConfig",
    "TrainingConfig",
    "VisDatasetConfig",
    "WandbConfig",
    "config_schema",
    "dump_yaml",
    "load_config",
    "parse_config",
]
