"""Good data with one thing changed, as the benchmark of planted bugs changes it."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

Changed = importlib.import_module("changed_data").Changed
