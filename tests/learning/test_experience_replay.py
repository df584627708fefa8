"""What was experienced, in memory of a fixed size: stored once, returns that add up, saved and loaded whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from atlas.data.formats import open_dataset
from atlas.errors import InputError
from atlas.learning.experience_replay import Column, Replay, draw_mixed
from atlas.learning.policy_view import PolicyView
from atlas.learning.run_config import config_from_nothing
from atlas.learning.run_parts import start_policy

ONE = {"proprio": Column((1,), "float32")}


def numbered(replay: Replay, first: int, count: int, terminated: bool = True) -> None:
    """An episode whose states count from `first`; the reward of a decision is the state it was made in."""
    states = np.arange(first, first + count + 1, dtype=np.float32)[:, None]
    replay.begin({"proprio": states[0]})
    replay.extend(states[:-1], states[:-1, 0], {"proprio": states[1:]}, terminated, over=True)


def test_what_is_drawn_belongs_together_however_often_the_ring_went_round() -> None:
    replay = Replay(50, ONE, 1)
    for episode in range(40):
        numbered(replay, 100 * episode, 7)

    drawn = replay.draw(2000, np.random.default_rng(0))

    state, then = drawn.observations["proprio"][:, 0], drawn.next_observations["proprio"][:, 0]
    assert (then == state + 1).all() and (drawn.actions[:, 0] == state).all() and (drawn.returns == state).all()
    assert ((drawn.discounts == 0) == (state % 100 == 6)).all()
    # Rows of the last six episodes that are whole, and of one that is not: each as likely.
    numbers, counts = np.unique(state.numpy(), return_counts=True)
    assert len(numbers) == replay.decisions and counts.min() > 2000 / len(numbers) / 2
    assert numbers.min() >= 100 * 33


def test_returns_of_several_steps_stop_where_the_episode_does() -> None:
    replay = Replay(100, ONE, 1)
    numbered(replay, 0, 4, terminated=True)
    numbered(replay, 100, 4, terminated=False)  # its time was up: what was seen last has a value

    drawn = replay.draw(500, np.random.default_rng(0), steps=3, gamma=0.5)

    by_state = {
        int(state): (float(returns), float(discount), int(then))
        for state, returns, discount, then in zip(
            drawn.observations["proprio"][:, 0],
            drawn.returns,
            drawn.discounts,
            drawn.next_observations["proprio"][:, 0],
            strict=True,
        )
    }
    assert by_state[0] == (0 + 0.5 * 1 + 0.25 * 2, 0.125, 3)
    assert by_state[2] == (2 + 0.5 * 3, 0, 4)
    assert by_state[102] == (102 + 0.5 * 103, 0.25, 104)
    assert by_state[101] == (101 + 0.5 * 102 + 0.25 * 103, 0.125, 104)


def test_an_episode_that_goes_on_can_be_drawn_from() -> None:
    replay = Replay(10, ONE, 1)
    replay.begin({"proprio": np.zeros(1)})
    for step in range(3):
        replay.extend(np.full((1, 1), step), np.ones(1), {"proprio": np.full((1, 1), step + 1)})

    drawn = replay.draw(50, np.random.default_rng(0), steps=5, gamma=1.0)

    assert replay.decisions == 3 and set(drawn.observations["proprio"][:, 0].tolist()) == {0, 1, 2}
    assert (drawn.next_observations["proprio"] == 3).all() and (drawn.discounts == 1).all()


def test_images_are_there_once_and_memory_is_bounded() -> None:
    image = Replay(100, {"image": Column((4, 4, 3), "uint8")}, 2)
    assert image.nbytes == 100 * (48 + 2 * 4 + 4 + 1 + 1)
    columns = {"proprio": Column((20,), "float32")}
    replay, process = Replay(10_000, columns, 6), psutil.Process()
    states, actions = np.ones((501, 20), np.float32), np.ones((500, 6), np.float32)
    before, most = process.memory_info().rss, 0

    for _ in range(400):  # 200,000 transitions
        replay.begin({"proprio": states[0]})
        replay.extend(actions, actions[:, 0], {"proprio": states[1:]}, over=True)
        most = max(most, process.memory_info().rss)

    assert replay.written == 200_400 and len(replay) == 10_000
    assert most - before < replay.nbytes + 4 * 2**20


def test_it_is_saved_and_goes_on(tmp_path: Path) -> None:
    replays = [Replay(30, ONE, 1, about="cubes") for _ in range(2)]
    for episode in range(9):
        numbered(replays[0], 100 * episode, 5)

    replays[0].save(tmp_path / "replay")
    replays[1].load(tmp_path / "replay")

    for replay in replays:
        numbered(replay, 5000, 5)
    one, other = (replay.draw(100, np.random.default_rng(1), steps=2) for replay in replays)
    assert (one.observations["proprio"] == other.observations["proprio"]).all() and (one.returns == other.returns).all()
    for stranger, words in (
        (Replay(30, ONE, 1, about="elsewhere"), "about is cubes, not elsewhere"),
        (Replay(31, ONE, 1, about="cubes"), "capacity is 30, not 31"),
        (Replay(30, ONE, 2, about="cubes"), r"actions is \[1\], not \[2\]"),
        (Replay(30, {"other": ONE["proprio"]}, 1, about="cubes"), "not .*seen/other"),
    ):
        with pytest.raises(InputError, match=words):
            stranger.load(tmp_path / "replay")


def test_half_of_a_batch_is_from_demonstrations() -> None:
    own, shown = Replay(50, ONE, 1), Replay(50, ONE, 1)
    numbered(own, 0, 10)
    numbered(shown, 1000, 10)

    drawn = draw_mixed(own, shown, 64, 0.5, np.random.default_rng(0))

    assert (drawn.observations["proprio"] >= 1000).sum() == 32 and (drawn.returns >= 1000).sum() == 32
    assert (draw_mixed(own, None, 64, 0.5, np.random.default_rng(0)).returns < 1000).all()


def test_recorded_episodes_are_demonstrations(make_libero: Callable[..., Path]) -> None:
    """Their last action brings the reward; a dataset of other numbers, or told otherwise, is refused."""
    folder = make_libero({"open the drawer": [6, 4]})
    config = config_from_nothing("sac", "cubes", ["model.fusion.dim=16", "model.language.name=none"])
    view = PolicyView(start_policy(config, "cubes", None), ("open the drawer",))

    replay = view.demonstrations(str(folder))

    drawn = replay.draw(200, np.random.default_rng(0))
    assert replay.decisions == 10 and ((drawn.returns == 1) == (drawn.discounts == 0)).all()
    numbers = open_dataset(folder).numbers()
    recorded = {tuple(row) for row in np.round(numbers.proprio, 4).tolist()}
    assert {tuple(row) for row in np.round(drawn.observations["proprio"].numpy(), 4).tolist()} == recorded
    np.testing.assert_allclose(view.in_units(view.scaled(numbers.actions[:1])[0]), numbers.actions[:1], atol=1e-6)
    with pytest.raises(InputError, match="its instruction 'open the drawer' is none of the world's"):
        PolicyView(view.policy, ("lift it",)).demonstrations(str(folder))
    pendulum = config_from_nothing("sac", "gym:Pendulum-v1", ["model.fusion.dim=16"])
    other = PolicyView(start_policy(pendulum, "gym:Pendulum-v1", None), ("open the drawer",))
    with pytest.raises(InputError, match=r"does not fit the policy: .*its proprio has 8 numbers, not 3"):
        other.demonstrations(str(folder))


def test_decisions_whose_values_are_off_are_drawn_more_often(tmp_path: Path) -> None:
    replays = [Replay(100, ONE, 1, priority=0.5) for _ in range(2)]
    numbered(replays[0], 0, 20)
    replays[0].update_priorities(np.arange(20), np.full(20, 0.01))
    replays[0].update_priorities(np.array([3]), np.array([1.0]))
    replays[0].save(tmp_path / "replay")
    replays[1].load(tmp_path / "replay")

    one, other = (replay.draw(4000, np.random.default_rng(0)) for replay in replays)

    assert one.rows is not None and other.rows is not None and one.weights is not None
    np.testing.assert_array_equal(one.rows, other.rows)
    share = (one.rows == 3).mean()  # ten times as likely as each of the other nineteen
    assert share == pytest.approx(10 / 29, abs=0.03) and (one.rows < 20).all()
    assert float(one.weights[one.rows == 3].max()) == pytest.approx(10**-0.4) and float(one.weights.max()) == 1
    numbered(replays[0], 100, 5)
    new = replays[0].draw(4000, np.random.default_rng(0)).observations["proprio"][:, 0] >= 100
    assert float(new.float().mean()) == pytest.approx(50 / 79, abs=0.03)  # as likely as the farthest
    mixed = draw_mixed(replays[0], replays[1], 8, 0.5, np.random.default_rng(0))
    assert mixed.weights is not None and len(mixed.weights) == 8 and mixed.rows is not None and len(mixed.rows) == 4
