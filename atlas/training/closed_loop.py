"""Closed-loop evaluation during training: the episodes are spread over the ranks."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from atlas.config import EvaluationConfig
from atlas.cores import available_cores
from atlas.policy import AtlasPolicy
from atlas.rollout.evaluate import Evaluator, plan_episodes
from atlas.rollout.executor import ChunkExecutor
from atlas.rollout.report import EvaluationReport
from atlas.rollout.seeds import Purpose


class ClosedLoop:
    """Evaluates policies in one environment, whose processes start with the first evaluation and live on."""

    def __init__(self, config: EvaluationConfig, env: str, seed: int, accelerator: Accelerator) -> None:
        self.env = env
        self._config, self._seed, self._accelerator = config, seed, accelerator
        self._evaluator: Evaluator | None = None

    def run(
        self,
        policy: AtlasPolicy,
        purpose: Purpose,
        episodes: int,
        name: str,
        videos: int = 0,
        video_dir: Path | None = None,
    ) -> EvaluationReport:
        """Every rank runs its share and gets the whole report. `name` says in it which policy it was."""
        accelerator, processor = self._accelerator, policy.processor
        if self._evaluator is None:
            workers = self._config.workers or max(1, available_cores() // accelerator.num_processes)
            self._evaluator = Evaluator(self.env, processor.camera_size, workers)
        planned = plan_episodes(self.env, episodes, purpose, self._seed)
        rank, world = accelerator.process_index, accelerator.num_processes
        outcomes = self._evaluator.run(
            ChunkExecutor(policy, self._config.execute, self._config.ensemble),
            planned[rank::world],
            videos=-(-videos // world),
            video_dir=video_dir,
            fps=processor.action_spec.control_hz,
            title="evaluating" if accelerator.is_main_process else None,
        )
        gathered = gather_object(outcomes)
        order = {episode.seed: episode.number for episode in planned}
        return EvaluationReport(self.env, name, tuple(sorted(gathered, key=lambda o: order[o.seed])))

    def close(self) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
