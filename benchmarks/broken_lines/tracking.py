"""Lines of tracking and of models in wandb: statistics, what is kept to oneself, ranks, failing sinks, verification."""

from broken_lines.row import of_part

COMPARISON = "tests/tracking/test_comparison.py"
TRACKER = "tests/tracking/test_tracker.py"
SINK = "tests/tracking/test_wandb_sink.py"
FETCHING = "tests/registry/test_fetching.py"
VALUES = "tests/tracking/test_tracking_values.py"

ROWS = of_part(
    "tracking",
    (
        "atlas/rollout/proportions.py",
        "centre = (p + z * z / (2 * n)) / (1 + z * z / n)",
        "centre = p",
        "Wilson's interval is not Wilson's",
        "tests/rollout/test_executor.py::test_the_wilson_interval_of_a_known_case",
    ),
    (
        "atlas/rollout/proportions.py",
        "return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)",
        "return min(1.0, sum(math.comb(n, k) for k in range(least + 1)) / 2**n)",
        "McNemar's test is one-sided",
        f"{COMPARISON}::test_mcnemar_is_the_exact_binomial_test_of_the_telling_episodes",
    ),
    (
        "atlas/rollout/proportions.py",
        "together: float = both * neither - first_only * second_only",
        "together: float = 0",
        "the interval of a paired difference takes no account of the pairs",
        f"{COMPARISON}::test_intervals_are_those_of_the_papers",
    ),
    (
        "atlas/rollout/proportions.py",
        "return sum(w for w in weights.values() if w <= weights[first]) / math.comb(episodes, successes)",
        "return weights[first] / math.comb(episodes, successes)",
        "Fisher's p is that of one table alone",
        f"{COMPARISON}::test_fishers_test_sums_the_tables_that_are_no_more_probable",
    ),
    (
        "atlas/runs/paired_success.py",
        "counts[first.outcomes[episode], second.outcomes[episode]] += 1",
        "counts[second.outcomes[episode], first.outcomes[episode]] += 1",
        "of two runs the worse is called the better",
        f"{COMPARISON}::test_two_runs_on_the_same_episodes_are_compared_as_pairs",
    ),
    (
        "atlas/runs/paired_success.py",
        "one, other = counts[True, False], counts[False, True]",
        "one, other = counts[True, False] + counts[True, True], counts[False, True] + counts[True, True]",
        "episodes that both solve count as telling",
        f"{COMPARISON}::test_two_runs_on_the_same_episodes_are_compared_as_pairs",
    ),
    (
        "atlas/runs/paired_success.py",
        "adjusted = holm([pair.p for pair in pairs])",
        "adjusted = [pair.p for pair in pairs]",
        "of many pairs of equal runs some are called different",
        f"{COMPARISON}::test_the_p_values_of_several_pairs_are_adjusted",
    ),
    (
        "atlas/system/safe_text.py",
        "text = text.replace(value, _HIDDEN)",
        "pass",
        "keys in variables of the environment are written to logs",
        f"{VALUES}::test_a_config_becomes_plain_and_loses_its_keys tests/tracking/test_redact.py",
    ),
    (
        "atlas/tracking/tracker.py",
        "        if not is_main:\n            return\n",
        "",
        "every rank writes to TensorBoard and wandb",
        f"{TRACKER}::test_other_ranks_import_and_write_nothing",
    ),
    (
        "atlas/tracking/tracker.py",
        "if name not in self._warned:",
        "if True:",
        "a wrong value is warned of in every step",
        f"{TRACKER}::test_a_value_that_is_not_a_number_is_left_out_with_one_warning",
    ),
    (
        "atlas/tracking/tracker.py",
        "return self.step if step is None else int(step)",
        "return self.step",
        "what is logged for another step is logged for the present one",
        f"{TRACKER}",
    ),
    (
        "atlas/tracking/sinks/queued.py",
        "if len(self._waiting) >= self._room or",
        "if",
        "a sink that stalls takes all memory",
        f"{TRACKER}::test_a_stalled_sink_loses_what_it_has_no_room_for_and_says_how_much",
    ),
    (
        "atlas/tracking/sinks/queued.py",
        "            prepared = self.sink.prepare(record)\n        except Exception as error:",
        "            prepared = self.sink.prepare(record)\n        except OSError as error:",
        "a sink that fails ends the training",
        f"{TRACKER}::test_a_failing_sink_is_switched_off_with_one_warning "
        f"{TRACKER}::test_a_slow_sink_that_raises_is_switched_off_and_closed tests/tracking/test_queued.py",
    ),
    (
        "atlas/tracking/sinks/tensorboard.py",
        "purge_step=0 if resume_step is None else resume_step + 1,",
        "purge_step=0,",
        "a resumed run loses its curve",
        f"{TRACKER}::test_a_resumed_run_drops_what_was_logged_beyond_its_checkpoint",
    ),
    (
        "atlas/runs/scalars.py",
        "points[:] = [point for point in points if point[0] < event.step]",
        "pass",
        "what was logged beyond a checkpoint stays in the curve of the run that goes on",
        f"{TRACKER}::test_a_resumed_run_drops_what_was_logged_beyond_its_checkpoint "
        "tests/tracking/test_runs.py::test_scalars_are_those_that_tensorboard_reads",
    ),
    (
        "atlas/tracking/sinks/wandb.py",
        "if not self._wandb.login(prompt=False, verify=False):",
        "if not self._wandb.login():",
        "a run without a key waits for one to be typed",
        "tests/tracking/test_wandb_starts.py::test_a_terminal_without_a_key_is_not_asked_for_one "
        f"{SINK}::test_without_a_key_it_goes_offline_and_says_how_to_log_in",
    ),
    (
        "atlas/tracking/sinks/wandb.py",
        'self._run = self._init("offline", {"id": self._identity.run_id, "resume": "allow"})',
        'raise WandbUnavailable("no server")',
        "without a network wandb's curves are lost",
        f"{SINK}::test_without_a_key_it_goes_offline_and_says_how_to_log_in",
    ),
    (
        "atlas/tracking/sinks/wandb.py",
        'self._run.log({"train/step": step, **row})',
        "self._run.log(dict(row))",
        "wandb's curves have no step for an axis",
        f"{SINK}::test_an_offline_run_holds_everything",
    ),
    (
        "atlas/tracking/sinks/wandb.py",
        "return RunIdentity(wandb_id or from_environment or unfinished or _new_id(), given=False)",
        "return RunIdentity(_new_id(), given=False)",
        "a run that goes on is a second run in wandb",
        f"{SINK}::test_resume_auto_finds_the_run_that_did_not_end_well",
    ),
    (
        "atlas/tracking/sinks/wandb.py",
        "return stage_model(record, self._staging())",
        "return record",
        "a checkpoint may be removed before it is uploaded",
        "tests/test_online_training.py tests/tracking/test_uploads.py",
    ),
    (
        "atlas/registry/download.py",
        "if base64.b64encode(digest.digest()).decode() != entry.digest:",
        "if False:",
        "a damaged download is taken for a model",
        f"{FETCHING}::test_a_damaged_download_is_refused_and_fetched_again "
        f"{FETCHING}::test_a_download_that_stays_damaged_leaves_nothing_behind",
    ),
    (
        "atlas/training/publishing.py",
        "return low <= value <= high",
        "return True",
        "models are uploaded that are not good enough",
        "tests/registry/test_publishing.py::test_only_what_meets_every_condition_is_uploaded",
    ),
    (
        "atlas/tracking/uploads.py",
        "if waiting.step < self._arrived_step:  # moving aliases stay with the newer model",
        "if False:  # moving aliases stay with the newer model",
        "an older model that comes late is called the newest",
        "tests/tracking/test_uploads.py::test_an_older_model_that_comes_late_takes_no_alias_from_a_newer_one",
    ),
    (
        "atlas/registry/package.py",
        "            if not isinstance(error, ValueError):\n                return\n",
        "            return\n",
        "one model that is refused holds up all after it",
        "tests/tracking/test_uploads.py",
    ),
)
