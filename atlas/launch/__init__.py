"""Starting the ranks of a run on one or several machines, and how they end. Torch is only imported where it is used."""

from atlas.launch.device import acting_device, check_gpu_of_rank, settle_device
from atlas.launch.failure_report import common_exit_code
from atlas.launch.nodes import Nodes, plan_nodes
from atlas.launch.plan import Plan, count_gpus, plan_processes, without_choice
from atlas.launch.rank import (
    die_with_launcher,
    end_at_once,
    is_rank,
    launcher_folder,
    leave_error,
    leave_exit_code,
    on_first_rank,
)
from atlas.launch.ranks import launch_ranks

__all__ = [
    "Nodes",
    "Plan",
    "acting_device",
    "check_gpu_of_rank",
    "common_exit_code",
    "count_gpus",
    "die_with_launcher",
    "end_at_once",
    "is_rank",
    "launch_ranks",
    "launcher_folder",
    "leave_error",
    "leave_exit_code",
    "on_first_rank",
    "plan_nodes",
    "plan_processes",
    "settle_device",
    "without_choice",
]
