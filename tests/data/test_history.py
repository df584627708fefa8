"""What a policy sees of earlier frames: the same in training, in a rollout and through a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.config import load_config
from atlas.data.caches.frame_cache import fill_caches, frame_caches
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.history import ONE_FRAME, History, SeenFrames, recorded_observations
from atlas.errors import InputError
from atlas.policies.modular.policy import ModularPolicy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import EpisodePlayer
from atlas.serving.access import Access
from atlas.serving.action_stream import ActionStream
from atlas.serving.policy_client import AtlasClient
from atlas.serving.server import ServerSettings, serving_in_a_thread
from tests.conftest import MakeOnce
from tests.policies.test_policy import HORIZON, SIZE, VISIONS, make_processor
from tests.policies.test_policy import SMALL as SMALL_POLICY
from tests.robots import ROBOTS, write_robot
from tests.rollout.bench_world import INSTRUCTIONS, Bench

THREE = History(steps=3, stride=2)


@pytest.fixture
def recorded(make_once: MakeOnce) -> EpisodeDataset:
    return open_dataset(make_once("robot_so100", lambda folder: write_robot(folder, ROBOTS["so100"])))


def chunks_of(dataset: EpisodeDataset, history: History = THREE) -> ChunkDataset:
    return ChunkDataset(dataset, np.array([1, 3]), ["front"], image_size=32, horizon=4, history=history)


def test_a_sample_shows_earlier_frames_of_its_episode(recorded: EpisodeDataset) -> None:
    plain, chunks = chunks_of(recorded, ONE_FRAME), chunks_of(recorded)
    first = int(recorded.lengths[1])  # of the second episode

    batch = chunks.__getitems__([(0, first + 9), (0, first + 1)])

    assert batch.images is not None and batch.images.shape == (2, 3, 3, 32, 32)
    for row, seen in enumerate(([5, 7, 9], [0, 0, 1])):  # before the first frame there is the first frame
        alone = plain.__getitems__([(0, first + frame) for frame in seen])
        assert torch.equal(batch.proprio[row], alone.proprio.reshape(-1))
        assert torch.equal(batch.images[row], alone.images[:, 0])
    assert torch.equal(batch.actions, plain.__getitems__([(0, first + 9), (0, first + 1)]).actions)


def test_cached_frames_are_the_same(recorded: EpisodeDataset, tmp_path: Path) -> None:
    chunks = chunks_of(recorded)
    expected = chunks.__getitems__([(0, 0), (0, 12)]).images
    fill_caches(tmp_path, recorded, ["front"], 32)

    chunks.use_frames(frame_caches(tmp_path, recorded, ["front"], 32))

    assert torch.equal(chunks.__getitems__([(0, 0), (0, 12)]).images, expected)


def make_policy(dataset: EpisodeDataset, history: History = THREE) -> ModularPolicy:
    """For the robot's frames, with all random weights."""
    processor = replace(
        make_processor(),
        cameras=("front",),
        proprio_dim=dataset.proprio_dim,
        action_spec=dataset.action_spec,
        statistics=chunks_of(dataset).statistics(),
        history=history,
    )
    torch.manual_seed(0)
    return ModularPolicy(load_config({}, [*SMALL_POLICY, *VISIONS["keypoints"]]).model, processor).eval()


def test_a_rollout_and_a_server_see_what_training_sees(recorded: EpisodeDataset) -> None:
    """The same answer at the same frame, from the data, through the executor and over a websocket."""
    chunks, episode = chunks_of(recorded), recorded.episode(1)
    policy = make_policy(recorded)
    seen = recorded_observations(episode, range(10), ["front"], ONE_FRAME)

    batch = chunks.__getitems__([(0, 9)])
    expected = policy.sample(batch)[0].numpy()
    rollout = SeenFrames(THREE)
    for observation in seen:
        rollout.add(observation)
    executor = ChunkExecutor(policy, execute=HORIZON)
    executor.reset(0, 0)
    planned = executor.plan({0: rollout.latest()})[0]
    settings = ServerSettings(execute=HORIZON, access=Access(port=0))
    with serving_in_a_thread(ChunkExecutor(policy, HORIZON), settings) as port:
        with AtlasClient(f"ws://127.0.0.1:{port}", HORIZON) as client:
            assert client.processor.history == THREE
            client.reset(0, 0)
            served = client.plan({0: rollout.latest()})[0]
            with pytest.raises(InputError, match=r"should hold 3 frames .* 2 control steps apart"):
                client.plan({0: seen[0]})
        with AtlasClient(f"ws://127.0.0.1:{port}", HORIZON) as client, ActionStream(client, ask_at=1) as stream:
            streamed = [stream.step(observation) for observation in seen]

    np.testing.assert_allclose(planned, expected, atol=1e-5)
    np.testing.assert_allclose(served, planned, atol=1e-5)
    np.testing.assert_allclose(streamed[0], policy.sample(chunks.__getitems__([(0, 0)]))[0, 0].numpy(), atol=1e-5)
    assert torch.equal(policy.processor.batch([rollout.latest()]).images, batch.images), (
        "the pictures are others than in training"
    )


def test_an_observation_without_its_past_is_refused(recorded: EpisodeDataset) -> None:
    seen = recorded_observations(recorded.episode(0), [3], ["front"], ONE_FRAME)

    with pytest.raises(InputError, match="must have 2 earlier ones in `past`; it has 0"):
        make_policy(recorded).processor.batch(seen)


def test_an_environment_is_seen_at_every_step_where_earlier_frames_count() -> None:
    player = EpisodePlayer(Bench(SIZE), PlannedEpisode(0, 1, INSTRUCTIONS[1]), history=History(steps=3, stride=2))

    begun = player.begin().observation
    then = player.run(np.zeros((3, 7), np.float32)).observation
    later = player.run(np.zeros((4, 7), np.float32)).observation

    assert begun is not None and then is not None and later is not None
    seen = [[int(each.images["agentview"][0, 0, 0]) for each in (*o.past, o)] for o in (begun, then, later)]
    assert seen == [[0, 0, 0], [0, 20, 60], [60, 100, 140]]  # 20 a step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.history.steps=0"], "greater than or equal to 1"),
        (["data.history.steps=17"], "less than or equal to 16"),
        (["data.history.stride=0"], "greater than or equal to 1"),
        (["data.history.steps=2", "data.drop_noops=true"], "drop_noops leaves frames out"),
        (["data.history.steps=2", "data.feature_cache=/x"], "feature_cache holds single frames"),
        (["data.history.steps=2", "model={type: smolvla, pretrained: x}"], "smolvla looks at one frame"),
        (["model.processor.proprio_margin=-1"], "greater than or equal to 0"),
    ],
)
def test_histories_that_cannot_be_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config({}, settings)
