"""Lines of the command, its config, the launcher, and what is checked before a run."""

from broken_lines.row import of_part

CONFIG = "tests/test_config.py"
FAILURE_REPORT = "tests/launch/test_failure_report.py"
PLAN = "tests/launch/test_launch_plan.py"
COMMAND = "tests/launch/test_command_line.py"

ROWS = of_part(
    "command",
    (
        "atlas/config/reading.py",
        "    for override in overrides:\n",
        "    for override in overrides[:1]:\n",
        "of several overrides the first alone counts",
        f"{CONFIG}::test_overrides_are_yaml_and_numbers_may_have_exponents",
    ),
    (
        "atlas/config/reading.py",
        "place.clear()  # a different kind",
        "pass  # a different kind",
        "another kind of head keeps the settings of the old one",
        f"{CONFIG}::test_another_kind_of_part_starts_with_its_own_settings",
    ),
    (
        "atlas/config/section.py",
        'extra="forbid"',
        'extra="ignore"',
        "a misspelt key is passed over",
        f"{CONFIG}::test_what_is_wrong_is_named",
    ),
    (
        "atlas/cli/commands/train_command.py",
        "given = [*(overrides or []), *as_overrides(flags)]",
        "given = [*as_overrides(flags)]",
        "key=value on the command line does nothing",
        f"{COMMAND}::test_flags_become_config {COMMAND}::test_debug_is_small_and_without_wandb",
    ),
    (
        "atlas/cli/commands/train_command.py",
        '"training.num_epochs=null", "wandb.enabled=false"]',
        '"training.num_epochs=null"]',
        "--debug speaks to wandb",
        f"{COMMAND}::test_debug_is_small_and_without_wandb",
    ),
    (
        "atlas/cli/__init__.py",
        "            say(redact(str(error)), file=sys.stderr)\n        return 2\n",
        "            say(redact(str(error)), file=sys.stderr)\n        return 1\n",
        "wrong input does not end with exit code 2",
        f"{COMMAND}::test_what_training_raises_becomes_an_exit_code",
    ),
    (
        "atlas/cli/__init__.py",
        "        return 1 if code is None else code\n",
        "        return 1\n",
        "a run that was stopped ends with 1",
        f"{COMMAND}::test_what_training_raises_becomes_an_exit_code",
    ),
    (
        "atlas/launch/failure_report.py",
        "    if 2 in failed:\n        return 2\n",
        "",
        "the exit code is that of a rank that failed as a consequence",
        f"{PLAN}::test_common_exit_code",
    ),
    (
        "atlas/launch/failure_report.py",
        "return min(by_themselves, key=lambda cause: cause.time)",
        "return max(by_themselves, key=lambda cause: cause.time)",
        "the last error is told as the cause",
        f"{FAILURE_REPORT}::test_the_earliest_error_of_its_own_is_the_cause",
    ),
    (
        "atlas/launch/failure_report.py",
        "of_themselves = [code for rank, code in codes.items() if rank not in consequences]",
        "of_themselves = list(codes.values())",
        "the exit code may be that of a consequence",
        f"{FAILURE_REPORT}::test_the_exit_code_is_that_of_the_cause",
    ),
    (
        "atlas/launch/plan.py",
        '",".join(names[i].strip() for i in self.gpu_ids)',
        '",".join(names[: len(self.gpu_ids)])',
        "--gpu-ids takes the first GPUs",
        f"{PLAN}::test_environment_of_the_processes",
    ),
    (
        "atlas/launch/plan.py",
        "if distributed.gpus > gpus_found:",
        "if False:",
        "more GPUs are asked for than there are, and nobody says so",
        f"{PLAN}::test_wrong_requests_say_what_there_is",
    ),
    (
        "atlas/launch/rank.py",
        "        redact(text.rstrip()),\n",
        "        text.rstrip(),\n",
        "a key in an error of a rank is shown",
        "tests/launch/test_reports.py",
    ),
    (
        "atlas/prepare.py",
        "if not (run_dir / RESULTS).exists():",
        "if True:",
        "--resume auto goes on with a run that is finished",
        "tests/test_processes.py::test_resume_auto_without_a_name_goes_on_with_the_unfinished_run",
    ),
    (
        "atlas/prepare.py",
        'differing = differences("model", saved, config.model.model_dump(mode="json"))',
        "differing: list[str] = []",
        "a checkpoint of another policy is gone on from",
        "tests/bad_input/test_checkpoints.py::test_a_checkpoint_of_another_policy_is_not_gone_on_from",
    ),
    (
        "atlas/prepare.py",
        "    if resume is None:\n        raise InputError(",
        "    if False:\n        raise InputError(",
        "a finished run is written over",
        "tests/bad_input/test_flags.py::test_a_training_with_a_flag_that_cannot_be_meant_is_refused "
        "tests/test_vertical_slice.py::test_a_finished_run_is_not_written_over",
    ),
    (
        "atlas/system/files.py",
        "        yield partial\n        os.replace(partial, path)\n",
        "        yield path\n",
        "files are written in place: a reader sees half of one",
        "tests/test_files.py",
    ),
    (
        "atlas/system/files.py",
        "not (path.is_dir() and error.errno in _NO_FOLDER_SYNC)",
        "False",
        "a disk that does not take the bytes is not heard",
        "tests/test_files.py",
    ),
    (
        "atlas/sweeps/grid.py",
        "for values in itertools.product(*choices.values())]",
        "for values in zip(*choices.values(), strict=False)]",
        "a grid is not every combination",
        "tests/test_sweep.py::test_runs_are_named_after_what_is_varied_and_no_two_alike",
    ),
    (
        "atlas/launch/device.py",
        'if found or distributed.gpus or distributed.gpu_ids or os.environ.get(DEVICE) == "cuda":',
        "if False:",
        "the CPU trains instead of GPUs that torch cannot use",
        "tests/launch/test_device.py",
    ),
    (
        "atlas/launch/plan.py",
        "before = current.get(_BEFORE, current.get(VISIBLE, _ALL))",
        "before = current.get(VISIBLE, _ALL)",
        "a choice of GPUs is applied to itself",
        "tests/launch/test_device.py",
    ),
    (
        "atlas/launch/numa.py",
        'if allowed != _listed(root / "devices/system/cpu/online"):',
        "if False:",
        "a rank leaves the cores that a user has chosen",
        "tests/launch/test_numa.py",
    ),
    (
        "atlas/registry/wandb_variables.py",
        "if value and not getattr(config, key):",
        "if value:",
        "wandb's variables go before the config",
        "tests/tracking/test_wandb_sink.py::test_config_and_flags_go_before_the_variables",
    ),
    (
        "atlas/system/safe_text.py",
        "return _OBEYED.sub(lambda match: _written(match[0]), text)",
        "return text",
        "what a terminal obeys reaches it",
        "tests/test_shown.py",
    ),
    (
        "atlas/system/process_control/interpreter.py",
        'sys.path[:1] = [p for p in sys.path[:1] if p]; import runpy; "',
        'import runpy; "',
        "a rank imports modules of the user's folder",
        "tests/test_python.py",
    ),
)
