"""LeRobot datasets: folders of Parquet files and videos, on disk or on the Hugging Face hub."""
