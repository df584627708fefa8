"""The configuration: every section typed and checked, read from YAML, changed by `key=value` overrides.

Imports no torch, so that the command line can refuse a wrong config in a moment.
"""

from atlas.config.config import Config
from atlas.config.data import AugmentConfig, DataConfig, RecordConfig
from atlas.config.loading import DEFAULT_CONFIG, config_schema, dump_yaml, load_config, parse_config
from atlas.config.model import (
    AlignmentConfig,
    BidirectionalFusionConfig,
    BytesLanguageConfig,
    FlowMatchingHeadConfig,
    FusionConfig,
    HeadConfig,
    HuggingFaceLanguageConfig,
    KeypointVisionConfig,
    LanguageConfig,
    LoRAConfig,
    ModelConfig,
    PretrainedVGGTConfig,
    ProcessorConfig,
    QueryFusionConfig,
    RegressionHeadConfig,
    VGGTVisionConfig,
    VisionConfig,
)
from atlas.config.tracking import (
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
from atlas.config.training import CheckpointConfig, DistributedConfig, EvaluationConfig, TrainingConfig

__all__ = [
    "DEFAULT_CONFIG",
    "ActionLoggerConfig",
    "AlignmentConfig",
    "AugmentConfig",
    "BidirectionalFusionConfig",
    "Bounds",
    "BytesLanguageConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EpisodeLoggerConfig",
    "EvaluationConfig",
    "FlowMatchingHeadConfig",
    "FusionConfig",
    "GradientLoggerConfig",
    "HeadConfig",
    "HuggingFaceLanguageConfig",
    "KeypointVisionConfig",
    "LanguageConfig",
    "LoRAConfig",
    "LoggingConfig",
    "MediaConfig",
    "ModelConfig",
    "ModelManagementConfig",
    "PlotLoggerConfig",
    "PretrainedVGGTConfig",
    "ProcessorConfig",
    "QueryFusionConfig",
    "RecordConfig",
    "RegressionHeadConfig",
    "TrainingConfig",
    "VGGTVisionConfig",
    "VisDatasetConfig",
    "VisionConfig",
    "WandbConfig",
    "config_schema",
    "dump_yaml",
    "load_config",
    "parse_config",
]
