"""Lines of the checks of data: gripper, lag, scale, split, pictures."""

from broken_lines.row import of_part

CHECK = "tests/checks/test_data_check.py"

ROWS = of_part(
    "checks",
    (
        "atlas/checks/recording_agreement.py",
        "    if agreement > CLEAR:\n",
        "    if agreement < -2:\n",
        "a flipped gripper is not named",
        f"{CHECK}::test_wrong_actions_are_named_by_what_the_recordings_show",
    ),
    (
        "atlas/data/motion.py",
        "start = int(np.flatnonzero(weights >= _STARTS * weights.max())[0])",
        "start = int(np.flatnonzero(LAGS == 0)[0])",
        "actions that come too late or too early are not seen",
        f"{CHECK}::test_wrong_actions_are_named_by_what_the_recordings_show",
    ),
    (
        "atlas/data/motion.py",
        "float(answer) / group.unit",
        "float(answer)",
        "the check of scale does not know the unit",
        f"{CHECK}::test_wrong_actions_are_named_by_what_the_recordings_show "
        f"{CHECK}::test_a_good_recording_has_no_error_and_replays_as_it_was",
    ),
    (
        "atlas/checks/recording_agreement.py",
        "if context.takes_poses:\n        yield Finding(",
        "if False:\n        yield Finding(",
        "poses that are taken for deltas are not named",
        f"{CHECK}::test_poses_that_are_taken_for_deltas_are_named",
    ),
    (
        "atlas/checks/split_check.py",
        "    shared = sorted(train & val)\n",
        "    shared: list[int] = []\n",
        "an episode on both sides of the split is not seen",
        f"{CHECK}::test_an_episode_on_both_sides_is_named",
    ),
    (
        "atlas/checks/split_check.py",
        "near = squared < _CANDIDATE**2 * summaries.shape[1]",
        "near = squared < 0 * summaries.shape[1]",
        "episodes that are nearly another are not seen",
        f"{CHECK}::test_episodes_that_are_nearly_another_are_named",
    ),
    (
        "atlas/data/motion.py",
        "    if weights[-1] >= _STARTS * weights.max():",
        "    if False:",
        "an arm that lags behind its target is taken for one that begins to move late",
        "tests/checks/test_target_checks.py::test_an_arm_that_lags_is_no_fault_and_hides_none",
    ),
)
