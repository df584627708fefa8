"""`atlas eval` with perturbations, against another policy, and repeating a result: in a world that takes no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from atlas.errors import InputError
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.robustness import RobustnessReport
from tests.policies.test_policy import make_policy
from tests.rollout.sites import install

Atlas = Callable[..., int]
KEYS = set("env checkpoint episodes successes success_rate ci95 mean_episode_length per_instruction".split())


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "drift", "atlas.environments", "drift = tests.rollout.drift_world:WORLD")
    install(tmp_path, monkeypatch, "night", "atlas.perturbations", "night = tests.rollout.night:Night")


@pytest.fixture
def policy(tmp_path: Path) -> str:
    folder = tmp_path / "policy"
    make_policy().eval().save_pretrained(folder)
    return str(folder)


def flags(policy: str, *more: str, episodes: int = 4) -> list[str]:
    return ["--checkpoint", policy, "--env", "drift", "--workers", "1", "--episodes", str(episodes), *more]


@pytest.fixture
def refused(atlas: Atlas, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `atlas eval` says of wrong input."""

    def run(*arguments: str) -> str:
        assert atlas("eval", *arguments) == 2
        return capfd.readouterr().err

    return run


def test_perturbations_beside_what_was_always_said(
    atlas: Atlas, policy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "bars.svg"
    more = ["--perturb", "action_noise:1-2,night:5", "--perturb-episodes", "3", "--out", str(out), "--plot", str(plot)]

    assert atlas("eval", *flags(policy, *more, "--json")) == 0

    found = json.loads(capfd.readouterr().out)
    assert set(found) >= KEYS and found["episodes"] == 4
    robust = found["robustness"]
    assert robust["episodes"] == robust["unperturbed"]["episodes"] == 3
    assert {name: list(each["levels"]) for name, each in robust["perturbations"].items()} == {
        "action_noise": ["1", "2"],
        "night": ["5"],
    }
    night = robust["perturbations"]["night"]
    assert night["category"] == "light_conditions" and night["visual"]
    level = night["levels"]["5"]
    assert level["episodes"] == 3 and level["ci95"][0] <= level["success_rate"] <= level["ci95"][1]
    assert level["difference"] == pytest.approx(level["success_rate"] - robust["unperturbed"]["success_rate"])
    assert plot.read_text().startswith("<?xml") and "night" in plot.read_text()
    kept = json.loads(out.read_text())
    assert kept["robustness"] == robust and len(kept["perturbed_outcomes"]) == 9
    report = EvaluationReport.load(out)
    again = RobustnessReport.of(report)
    assert again is not None and again.to_dict() == robust
    assert set(again.metrics()) == {
        *("eval/action_noise/success_rate", "eval/night/success_rate"),
        *(f"eval/action_noise/success_rate/level_{n}" for n in (1, 2)),
        "eval/night/success_rate/level_5",
    }
    seeds = [[row["seed"] for row in kept["perturbed_outcomes"][first : first + 3]] for first in (0, 3, 6)]
    assert seeds == [[outcome.seed for outcome in report.outcomes[:3]]] * 3  # the same episodes under each


def test_what_is_wrong_is_said_with_what_would_be_right(policy: str, refused: Callable[..., str]) -> None:
    assert "Unknown perturbation 'nigth'. Did you mean 'night'" in refused(*flags(policy, "--perturb", "nigth"))
    assert "'0' is not a level; give one from 1 to 5" in refused(*flags(policy, "--perturb", "night:0"))
    camera = refused(*flags(policy, "--perturb", "camera_pose:1"))
    assert "'drift' does not support the perturbation 'camera_pose': its camera cannot be changed" in camera
    assert "--perturb cannot be combined with" in refused(*flags(policy, "--perturb", "blur:1", "--blind"))
    assert "add --perturb all" in refused(*flags(policy, "--plot", "a.png"))
    assert "belong together" in refused(*flags(policy, "--until-clear"))
    assert "as they are" in refused(*flags(policy, "--until-clear", "--against", policy, "--blind"))
    assert "--env cubes" in refused("--checkpoint", policy)


def write(file: Path, policy: str, **changed: Any) -> Path:
    """The outcomes of four episodes, changed."""
    evaluate_checkpoint(policy, "drift", 4, workers=1, perturb=["night:1"], perturb_episodes=2).save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return file


def test_a_result_says_what_it_came_from_and_holds(
    atlas: Atlas, policy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    file = write(tmp_path / "results.json", policy)
    evidence = json.loads(file.read_text())["evidence"]
    assert evidence["protocol"]["perturb"] == ["night:1"] and evidence["protocol"]["episodes"] == 4
    assert len(evidence["policy_sha256"]) == 64 and "torch" in evidence["software"]["packages"]

    assert atlas("eval", "--reproduce", str(file), "--workers", "2", "--json") == 0
    found = json.loads(capfd.readouterr().out)["reproduction"]
    assert found["holds"] == "exactly" and found["episodes"] == 6 and found["same_length"] == 6

    kept = json.loads(file.read_text())
    kept["outcomes"][1]["success"] ^= True
    file.write_text(json.dumps(kept))
    assert atlas("eval", "--reproduce", str(file), "--workers", "1") == 0
    said = capfd.readouterr().out
    assert "within chance: 1 of 6 episodes ended otherwise" in said and str(kept["outcomes"][1]["seed"]) in said

    other = tmp_path / "other"
    make_policy("keypoints", "model.fusion.layers=2").eval().save_pretrained(other)
    assert "is not the one" in refused("--reproduce", str(file), "--checkpoint", str(other))
    assert "leave out --env" in refused("--reproduce", str(file), "--env", "drift")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 4}, "has format version 4, but this Atlas reads versions 1 to 3"),
        ({"evidence": None}, "does not say how it came about"),
        ({"evidence": {}}, "is no file of results (KeyError('protocol'))"),
        ({"outcomes": 3}, "is no file of results"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    from atlas.rollout.verdicts.reproduction import read_claim

    file = tmp_path / "results.json"
    values = {"env": "drift", "checkpoint": "a", "outcomes": [], "evidence": {}} | changed
    file.write_text(json.dumps(values))

    with pytest.raises(InputError) as refused:
        read_claim(file)

    assert message in str(refused.value)
    with pytest.raises(InputError, match=r"absent\.json cannot be read"):
        read_claim(tmp_path / "absent.json")


def test_a_claim_that_is_false_does_not_hold(policy: str, tmp_path: Path, atlas: Atlas) -> None:
    file = tmp_path / "results.json"
    evaluate_checkpoint(policy, "drift", 14, workers=1).save(file)
    kept = json.loads(file.read_text())
    for outcome in kept["outcomes"]:
        outcome["success"] = True
    file.write_text(json.dumps(kept))

    assert atlas("eval", "--reproduce", str(file), "--workers", "1") == 1


def test_against_another_policy_or_its_outcomes(
    atlas: Atlas, policy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    out = tmp_path / "first.json"
    against = ["--until-clear", "--against", policy]

    assert atlas("eval", *flags(policy, *against, "--out", str(out), episodes=12)) == 0

    said = capfd.readouterr().out
    assert "not clear which is better: just one succeeds in 0 : 0 of" in said
    kept = json.loads(out.read_text())
    assert kept["comparison"]["episodes"] == kept["episodes"] == 10  # no two more episodes could make it clear
    assert kept["comparison"]["error_rate"] == 0.05 and not kept["comparison"]["clear"]
    for outcome in kept["outcomes"]:
        outcome["success"] = False
    worse = tmp_path / "worse.json"
    worse.write_text(json.dumps(kept))
    assert atlas("eval", *flags(policy, "--until-clear", "--against", str(worse), "--json", episodes=10)) == 0
    found = json.loads(capfd.readouterr().out)["comparison"]
    assert found["second_only"] == 0 and found["first_only"] == round(10 * found["difference"])
    assert found["clear"] == (found["first_only"] >= 7)

    assert "shares no episodes with these" in refused(
        *flags(policy, "--until-clear", "--against", str(worse), "--seed", "5")
    )


def test_a_policy_behind_a_server_is_compared_episode_by_episode(
    atlas: Atlas, policy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    """With an earlier evaluation, and with a saved policy, filmed."""
    pytest.importorskip("websockets", reason="websockets is not installed: pip install 'atlas-vla[serve]'")
    from atlas.serving.server import ServerSettings, load_actor
    from tests.serving.running import running

    out, pairs = tmp_path / "earlier.json", tmp_path / "pairs"
    assert atlas("eval", *flags(policy, "--out", str(out), episodes=3)) == 0
    with running(load_actor(Path(policy), ServerSettings())) as port:
        url = f"ws://127.0.0.1:{port}"
        for who, against, more in (
            (["--policy", url], str(out), []),
            (["--checkpoint", policy], url, ["--video", str(pairs), "--episodes", "1"]),
        ):
            given = [*who, "--env", "drift", "--workers", "1", "--until-clear", "--against", against, "--json"]
            capfd.readouterr()
            assert atlas("eval", *given, "--episodes", "3", *more) == 0
            found = json.loads(capfd.readouterr().out)
            assert found["checkpoint"] == who[1] and found["comparison"]["against"] in (policy, against)
            assert found["comparison"]["difference"] == 0 and found["episodes"] == (1 if more else 3)
        assert len(list(pairs.iterdir())) == 1
        blind = refused("--policy", url, "--env", "drift", "--until-clear", "--against", policy, "--blind")
        assert "as they are" in blind and "--policy" not in blind


def test_films_show_where_a_policy_looks_and_two_policies_side_by_side(
    atlas: Atlas, policy: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    seen, both = tmp_path / "seen", tmp_path / "both"
    assert atlas("eval", *flags(policy, "--video", str(seen), "--show", "attention", episodes=1)) == 0
    assert atlas("eval", *flags(policy, "--video", str(both), "--until-clear", "--against", policy, episodes=1)) == 0

    (film,) = seen.glob("episode_000_*")
    assert film.name.endswith(("success.mp4", "failure.mp4"))
    (pair,) = both.iterdir()
    assert "_both_" in pair.name
    assert (width_of(film), width_of(pair)) == (256 + 128, 2 * 256 + 4)

    assert "Did you mean 'attention'" in refused(*flags(policy, "--video", str(seen), "--show", "atention"))
    assert "--video DIR" in refused(*flags(policy, "--show", "attention"))
    outcomes = tmp_path / "outcomes.json"
    outcomes.write_text("{}")
    filmed = ("--until-clear", "--against", str(outcomes), "--video", str(both))
    assert "holds outcomes: give the policy" in refused(*flags(policy, *filmed))


def width_of(film: Path) -> int:
    with av.open(str(film)) as container:
        return int(container.streams.video[0].width)
