"""Lines of rollouts: seeds, chunks, probes, what a world is, reports and films."""

from broken_lines.row import of_part

EXECUTOR = "tests/rollout/test_executor.py"
REPORT = "tests/rollout/test_report.py"
FILMS = "tests/rollout/test_films.py"
CUBES = "tests/rollout/test_cubes.py"
PERTURBATIONS = "tests/rollout/test_perturbations.py"
SAME = "tests/rollout/test_same_episodes.py::test_any_number_of_workers_in_any_order_and_with_one_killed"
TRANSITIONS = "tests/rollout/test_transitions.py"
EVALUATED = (
    f"{EXECUTOR}::test_a_saved_policy_is_evaluated_on_episodes_of_nobody_else_three_quarters_of_a_chunk_at_a_time"
)

ROWS = of_part(
    "rollout",
    (
        "atlas/rollout/evaluation.py",
        "planned = plan_episodes(env, episodes, purpose, seed)",
        'planned = plan_episodes(env, episodes, "selection", seed)',
        "`atlas eval` plays the episodes that chose the checkpoint",
        EVALUATED,
    ),
    (
        "atlas/rollout/evaluation.py",
        "execute or usual_execute(horizon, hz, delay_ms, policy.validated_execute)",
        "execute or horizon",
        "by default the whole chunk is executed before the policy looks again",
        EVALUATED,
    ),
    (
        "atlas/rollout/episode_plan.py",
        "instructions[i % len(instructions)]",
        "instructions[0]",
        "one instruction alone is evaluated",
        f"{EXECUTOR}::test_planned_episodes_are_balanced_over_the_instructions",
    ),
    (
        "atlas/rollout/actor.py",
        "{c: np.zeros_like(image) for c, image in observation.images.items()}",
        "dict(observation.images)",
        "the blind policy sees",
        f"{EXECUTOR}::test_an_ablation_changes_what_is_told_and_not_what_is_true",
    ),
    (
        "atlas/rollout/evaluation.py",
        "actor.reset(worker, episode.seed)",
        "actor.reset(worker, 0)",
        "all episodes of a generative policy draw the same noise",
        f"{EXECUTOR}::test_an_evaluation_asks_with_its_episodes_seeds",
    ),
    (
        "atlas/rollout/evaluation.py",
        "return [played[e.number] for e in episodes]",
        "return list(played.values())",
        "outcomes are those of other episodes, where several run at once",
        "tests/rollout/test_evaluator.py",
    ),
    (
        "atlas/rollout/evaluation.py",
        "in processor.action_spec.differences(spec.action_spec):",
        "in processor.action_spec.differences(spec.action_spec, ends=False):",
        "a policy acts in a world whose actions mean something else",
        "tests/rollout/test_evaluator.py",
    ),
    (
        "atlas/rollout/episode_plan.py",
        "return (_PURPOSES.index(purpose) * _LIMIT + seed) * _LIMIT + episode",
        "return seed * _LIMIT + episode",
        "recording, selection and evaluation share episodes",
        f"{EXECUTOR}::test_no_two_purposes_share_an_episode",
    ),
    (
        "atlas/rollout/chunk_timeline.py",
        "return chunk[: how.execute]",
        "return chunk",
        "the number of executed actions is not looked at",
        f"{EXECUTOR}::test_the_first_actions_are_executed_before_the_policy_is_asked_again",
    ),
    (
        "atlas/rollout/chunk_executor.py",
        "self._episodes[episode] = self._new_episode(seed)",
        "self._episodes[episode].seed = seed",
        "an episode begins with what is left of the last one's chunks",
        f"{EXECUTOR}::test_a_new_episode_forgets_the_old_ones_chunks",
    ),
    (
        "atlas/rollout/chunk_timeline.py",
        "np.stack([old[age] for age, old in",
        "np.stack([old[0] for age, old in",
        "ensembling averages what chunks say of different moments",
        f"{EXECUTOR}::test_temporal_ensembling_averages_what_the_chunks_say_about_now",
    ),
    (
        "atlas/rollout/chunk_timeline.py",
        "weights = np.exp(-ensemble * np.arange(len(actions)))",
        "weights = np.exp(ensemble * np.arange(len(actions)))",
        "ensembling weighs the newest chunk most",
        f"{EXECUTOR}::test_temporal_ensembling_averages_what_the_chunks_say_about_now",
    ),
    (
        "atlas/rollout/chunk_executor.py",
        "            episode.asked += 1\n",
        "            pass\n",
        "every chunk of an episode grows from the same noise",
        f"{EXECUTOR}::test_a_generative_policy_draws_anew_for_each_chunk_and_each_seed",
    ),
    (
        "atlas/environments/cubes.py",
        "return bool(lifted[self._target]), bool(lifted.any())",
        "return bool(lifted.any()), bool(lifted.any())",
        "lifting the other cube is a success",
        f"{CUBES}::test_lifting_the_other_cube_ends_the_episode_as_a_failure",
    ),
    (
        "atlas/environments/cubes.py",
        "if np.linalg.norm(centres[0] - centres[1]) >= MIN_DISTANCE_M and beyond.all():",
        "if beyond.all():",
        "cubes may lie in one another",
        f"{CUBES}::test_starts_cover_the_area_and_keep_the_distance",
    ),
    (
        "atlas/environments/cubes.py",
        "rng = np.random.default_rng(seed if seed is not None else 0)",
        "rng = np.random.default_rng()",
        "an episode's start does not follow its seed",
        f"{CUBES}::test_the_same_seed_gives_the_same_start_whatever_came_before",
    ),
    (
        "atlas/rollout/chunk_executor.py",
        'in_one = device.type != "cpu" if self._together is None else self._together',
        "in_one = True",
        "an episode's numbers depend on how many others are asked with it",
        SAME,
    ),
    (
        "atlas/rollout/chunk_timeline.py",
        "new = chunk[now - start :]",
        "new = chunk",
        "a late chunk is executed from its beginning, which is over",
        "tests/rollout/test_chunk_timeline.py",
    ),
    (
        "atlas/rollout/workers.py",
        "if died is not None and not answers:",
        "if died is not None:",
        "answers that come together with a worker's death are lost",
        "tests/rollout/test_workers.py::test_answers_beside_a_death_are_not_lost",
    ),
    (
        "atlas/environments/perturbations/perturbation.py",
        "return np.random.default_rng([seed, zlib.crc32(name.encode())])",
        "return np.random.default_rng([zlib.crc32(name.encode())])",
        "all episodes are perturbed alike",
        f"{PERTURBATIONS}::test_levels_of_an_episode_differ_in_how_much_and_not_in_what",
    ),
    (
        "atlas/environments/model_variation.py",
        "        changed = self._restore_textures()\n",
        "        changed = set()\n",
        "a pattern stays on the table when its episode is over",
        f"{PERTURBATIONS}::test_it_changes_something_is_the_same_each_time_and_leaves_nothing_behind",
    ),
    (
        "atlas/environments/perturbations/sensor_changes.py",
        "deque(maxlen=level + 1)",
        "deque(maxlen=level)",
        "late pictures are a step less late than is said",
        f"{PERTURBATIONS}::test_late_and_dropped_pictures_are_earlier_ones",
    ),
    (
        "atlas/rollout/verdicts/failures.py",
        "low = rise < _KEPT * rise[top]",
        "low = rise > _KEPT * rise[top]",
        "what was dropped is called lifted too little",
        "tests/rollout/test_failures.py::test_each_kind_of_failure_and_when",
    ),
    (
        "atlas/rollout/verdicts/sequential.py",
        "return self.evidence >= 1 / self.error_rate",
        "return self.evidence >= 0.3 / self.error_rate",
        "a difference is claimed too soon",
        "tests/rollout/test_sequential.py",
    ),
    (
        "atlas/rollout/success_report.py",
        "ranked = sorted(outcomes, key=lambda o: (not o.success, -o.reward, o.length))",
        "ranked = sorted(outcomes, key=lambda o: (o.success, -o.reward, o.length))",
        "the film of the best episode is of a failure",
        f"{REPORT}::test_the_best_the_median_and_the_worst_episode",
    ),
    (
        "atlas/rollout/success_report.py",
        '"median": (len(ranked) - 1) // 2}',
        '"median": len(ranked) // 2 - 1}',
        "the film of the median episode is of another one",
        f"{REPORT}::test_no_episode_is_better_than_the_best_and_as_many_on_either_side_of_the_median "
        f"{REPORT}::test_the_best_the_median_and_the_worst_episode",
    ),
    (
        "atlas/rollout/traces.py",
        "fps = spec.control_hz / every",
        "fps = spec.control_hz",
        "a film of every second step runs at twice the speed",
        f"{FILMS}::test_a_film_that_is_to_be_short_leaves_out_steps_at_even_distances",
    ),
    (
        "atlas/rollout/traces.py",
        "shown = [*range(0, len(trace), every), len(trace)]",
        "shown = [*range(0, len(trace), every), len(trace) - 1]",
        "a film ends before the last scene",
        f"{FILMS}::test_a_film_shows_every_step_and_then_the_outcome",
    ),
    (
        "atlas/rollout/episode_player.py",
        "steps=len(results),",
        "steps=len(actions),",
        "lengths of episodes count actions that were not executed",
        "tests/rollout/test_evaluator.py",
    ),
    (
        "atlas/rollout/episode_player.py",
        "taken = [a if r.executed is None else r.executed for",
        "taken = [a for",
        "a transition holds what the policy wanted, and not what was done",
        f"{TRANSITIONS}::test_a_world_that_is_no_simulator_is_observed_at_its_end_too",
    ),
    (
        "atlas/training/media/episode_logger.py",
        "return (self._evaluations - 1) % self._interval == 0",
        "return self._evaluations % self._interval == 0",
        "the first evaluation is not shown",
        "tests/training/test_episode_media.py::test_the_interval_counts_evaluations_and_begins_with_the_first",
    ),
    (
        "atlas/rollout/success_report.py",
        "        if not self.judged:\n",
        "        if False:\n",
        "a film says that an episode failed where nobody tells",
        "tests/rollout/test_film_compositions.py::test_a_world_that_tells_no_success_has_no_failures",
    ),
)
