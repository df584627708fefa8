"""LeRobot datasets: folders of Parquet files and videos, on disk or on the Hugging Face hub."""

from atlas.data.lerobot.dataset import LeRobotDataset, is_lerobot

__all__ = ["LeRobotDataset", "is_lerobot"]
