"""One page tells a run, whatever it has left; a real browser shows it, and plays its films."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.checks.acting.bug_walk import DIAGNOSIS
from atlas.errors import InputError
from atlas.report import report, write_report
from atlas.report.curve_drawing import Chart, Line, draw_chart
from atlas.report.markup import Html, table, tag
from atlas.report.origin_sections import default_differences, time_spent
from atlas.report.run_facts import gather
from atlas.runs.run_directory import read_run, summarize
from atlas.system.documents import read_yaml
from atlas.tracking.media_values import write_mp4
from tests.report.browser import CHROMIUM, Browser
from tests.tracking.written_runs import log_curves, write_evaluation, write_run

EVIL = "lift </style><script>document.title='owned'</script> \"it\" & <img src=x onerror=alert(1)>"
CURVES = {
    "train/loss": [(step, 1 / step) for step in range(1, 101)],
    "val/loss": [(50, 0.3), (100, 0.2)],
    "val/position_error_mm": [(100, 11.5)],
    "val/rotation_error_deg": [(100, 2.25)],
    "val/lift_it/position_error_mm": [(100, 13.5)],
    "val/lift_it/rotation_error_deg": [(100, 2.75)],
    "eval/success_rate": [(50, 0.5), (100, 0.8)],
    "timer/total": [(50, 0.02), (100, 0.04)],
    "timer/forward": [(50, 0.01), (100, 0.01)],
}


def film(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.zeros((12, 64, 48, 3), np.uint8)
    frames[:, :, :, 1] = np.arange(12, dtype=np.uint8)[:, None, None] * 20
    write_mp4(path, frames, 10)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 4 episodes, one of which failed and was filmed; what is from outside tries to get out."""
    overrides = ["training.max_steps=100", "data.batch_size=32", "wandb.project=atlas-vla"]
    folder = write_run(tmp_path / "a<b>", *overrides, curves=CURVES)
    each = {"episodes": 4, "successes": 3, "success_rate": 0.75}
    file = write_evaluation(folder, [True, True, False, True], per_instruction={EVIL: each})
    file.write_text(file.read_text().replace('"lift"', json.dumps(EVIL)))
    final = {"successes": 3, "episodes": 4, "success_rate": 0.75, "ci95": [0.3, 0.95]}
    (folder / "results.json").write_text(json.dumps({"metrics": {}, "final_evaluation": final}))
    film(folder / "videos" / "final_step_00000010" / "episode_002_lift_failure.mp4")
    film(folder / "videos" / "final_step_00000010" / "episode_000_lift_success.mp4")
    return folder


def text_of(page: Path) -> str:
    """What it says, without markup."""
    inside = re.sub(r"<(style|script)>.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", inside).split())


# ---- what the page holds -------------------------------------------------------------------------------------


def test_a_page_tells_the_run_and_refers_to_nothing_else(run: Path, atlas: Callable[..., int]) -> None:
    assert atlas("report", str(run)) == 0

    page = run / "report.html"
    text, shown = page.read_text(), text_of(page)
    assert not re.findall(r'(?:src|href)="(?!#|data:video/mp4;base64,)[^"]*"|url\(|@import|https?://', text)
    assert page.stat().st_size < 15e6
    for part in ("Succeeds in 3 of 4 episodes", "95% interval 30 to 95%", "not tried: atlas eval", "11.5", "2.75"):
        assert part in shown, part
    assert "1 of 4 episodes failed" in shown and text.count("data:video/mp4;base64,") == 2
    assert text.index("Films of failures") < text.index("Films of successes")
    assert "data.batch_size 32 64" in shown and "./train.sh" in shown and "data.batch_size=32" in shown


def test_what_comes_from_outside_stays_text(run: Path) -> None:
    page = write_report(run)

    text = page.read_text()
    assert "<img" not in text and "document.title=" not in re.sub(r"&lt;script&gt;document.title=", "", text)
    assert "&lt;/style&gt;&lt;script&gt;" in text and "a&lt;b&gt;" in text
    assert text.count("<script>") == 1


def test_markup_is_only_what_was_made_as_such() -> None:
    assert tag("p", "<b>", Html("<i>"), class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;<i></p>'
    assert "&lt;td&gt;" in table(["<td>"], [["a"]])
    assert tag("p", "\x1b[31m\u202e") == "<p>\\x1b[31m\\u202e</p>"


def test_twins_are_shown_beside_the_success(run: Path) -> None:
    write_evaluation(run, [True, True, True, False], purpose="report", probes=["blind"])

    shown = text_of(write_report(run))

    assert re.search(r"with black images\s+3/4", shown) and "--instruction-shuffle" in shown
    assert '"track bad"' in (run / "report.html").read_text()  # it needs no eyes


def test_a_diagnosis_is_on_the_first_screen(run: Path) -> None:
    lines = [
        {
            "bug": "turned",
            "title": "Images are rotated",
            "status": "problem",
            "evidence": "by 180 degrees",
            "fix": "Turn them",
        },
        {"title": "Actions come late", "status": "ok", "evidence": "they do not"},
    ]
    (run / DIAGNOSIS).write_text(json.dumps({"advice": "Turn the images.", "lines": lines}))

    shown = text_of(write_report(run))

    first = shown[: shown.index("Curves")]
    assert "What is wrong Turn the images. Images are rotated : by 180 degrees → Turn them" in first
    assert "1 of the known silent bugs are ruled out" in first


def test_perturbations_and_kinds_of_failure_are_shown_where_they_are_known(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    rates = {"1": {"success_rate": 0.9, "ci95": [0.8, 1]}, "5": {"success_rate": 0.1, "ci95": [0, 0.2]}}
    mean, plain = {"success_rate": 0.5, "ci95": [0.4, 0.6]}, {"success_rate": 0.95, "ci95": [0.85, 1]}
    perturbed = {"unperturbed": plain, "perturbations": {"camera_pose": {**mean, "levels": rates}}}
    (run / "results.json").write_text(json.dumps(results | {"robustness": perturbed}))
    found = json.loads((run / "evaluations" / "final_step_00000010.json").read_text())
    found["outcomes"][2]["failure"] = "missed_the_grasp"
    (run / "evaluations" / "final_step_00000010.json").write_text(json.dumps(found))

    shown = text_of(write_report(run))

    table = "as they are 95% 85 to 100% camera pose 90% 80 to 100% 10% 0 to 20% 50% 40 to 60%"
    assert table in shown and "missed the grasp: 1" in shown

    file = write_evaluation(run, [True, False], "report", robustness=perturbed)
    assert table in text_of(report([str(file)], run / "one.html"))


def test_how_a_result_came_about_is_told_with_the_command_that_repeats_it(run: Path) -> None:
    protocol = {"env": "cubes", "episodes": 4, "seed": 0, "perturb": ["blur:1", "blur:2"], "blind": False}
    evidence = {"protocol": protocol, "policy_sha256": "a1b2", "dataset_fingerprint": "c3d4", "software": {}}
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"evidence": evidence}))
    file = write_evaluation(run, [True, False], "report", evidence=evidence)

    for page, repeated in ((write_report(run), run / "results.json"), (report([str(file)], run / "one.html"), file)):
        shown = html.unescape(text_of(page))
        assert shlex.join(["atlas", "eval", "--reproduce", str(repeated)]) in shown
        for part in ("a1b2", "c3d4", "env=cubes episodes=4 seed=0 perturb=blur:1,blur:2"):
            assert part in shown, part


def test_runs_are_put_side_by_side(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "training.learning_rate=0.5", curves=CURVES)
    write_evaluation(other, [False] * 4)

    page = report([str(run), str(other)], tmp_path / "both.html")

    shown = text_of(page)
    assert "2 runs side by side" in shown and "training.learning_rate 0.001 0.5" in shown
    assert "no difference can be claimed from" in shown and page.read_text().count("<article") == 2


def test_a_run_that_has_left_little_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", curves={"train/loss": [(1, 0.5)]})
    logged = write_run(tmp_path / "diverged", curves={"train/loss": [(3, float("nan"))]})

    assert "Reached a loss of 0.5 after 1 steps" in text_of(write_report(bare))
    assert "Reached a loss of not a number after 3 steps" in text_of(write_report(logged))


def test_a_file_of_outcomes_is_told_too(run: Path, tmp_path: Path) -> None:
    page = report([str(run / "evaluations" / "final_step_00000010.json")], tmp_path / "one.html")

    assert "Succeeds in 3 of 4 episodes" in text_of(page)


def test_a_run_of_learning_is_told_by_its_policies_before_and_after(tmp_path: Path) -> None:
    learned = write_run(tmp_path / "learned", curves={"train/loss": [(1, 0.5)]})
    before = write_evaluation(learned, [True, False, False, False], "report", step=None)
    before.rename(before.with_name("before.json"))

    assert "the policy before learning, on starts held out" in text_of(write_report(learned))
    after = write_evaluation(learned, [True, True, True, False], "report", step=None)
    after.rename(after.with_name("after.json"))
    (learned / "results.json").write_text('{"algorithm": "ppo"}')
    shown = text_of(write_report(learned))

    summary = summarize(learned, "learned")
    assert summary.state == "finished" and summary.final_success is not None and summary.final_success.successes == 3
    assert "Succeeds in 3 of 4 episodes" in shown and "the policy after learning, on starts held out" in shown
    assert re.search(r"after learning\s+3/4\s+before learning\s+1/4", shown)
    assert [each.success_rate for each in read_run(learned).evaluations] == [0.25, 0.75]
    (learned / "results.json").write_text('{"algorithm": "ppo", "kept": "before", "env_steps": 640}')
    (learned / "learning.json").write_text('{"algorithm": "residual", "env": "cubes", "checkpoint": "first"}')
    log_curves(learned / "actor", {"actor/total_steps": [(600, 600.0)], "actor/avg_episode_reward_10": [(600, 0.5)]})
    log_curves(learned / "learner", {"sac/entropy": [(9, 0.5)], "eval/mean_reward": [(9, 0.25)]})

    shown = text_of(write_report(learned))

    assert "Succeeds in 1 of 4 episodes" in shown and "the policy before learning" in shown
    assert "640 steps in the world" in shown and "Reward while learning" in shown and "Entropy" in shown
    assert "atlas learn sac --residual --env cubes --checkpoint first" in shown and "run_name=learned-again" in shown


def test_where_success_is_not_told_a_page_speaks_of_rewards(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = write_evaluation(run, [False, False])
    values = json.loads(file.read_text())
    for reward, outcome in enumerate(values["outcomes"], 1):
        outcome |= {"reward": reward, "judged": False}
    file.write_text(json.dumps(values))

    shown = text_of(write_report(run))

    assert "A mean reward of 1.5 in 2 episodes" in shown and "Succeeds" not in shown and "0%" not in shown


def test_films_beyond_the_room_are_left_out_and_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas.report import film_strip

    monkeypatch.setattr(film_strip.FilmRoom.__init__, "__defaults__", (2000,))

    page = write_report(run)

    assert "left out, to keep the page small" in text_of(page) and page.stat().st_size < 100_000


def test_the_worst_failures_together_come_before_each_by_itself(run: Path) -> None:
    from atlas.rollout.filming.film_choice import OVERVIEW

    alone = text_of(write_report(run))
    film(run / "videos" / "final_step_00000010" / OVERVIEW)

    page = write_report(run)

    together = "the worst failures together"
    assert together not in alone and text_of(page).count(together) == 1
    assert page.read_text().index('class="film together bad"') < page.read_text().index('class="films"')


def test_time_is_told_by_where_it_went(run: Path) -> None:
    facts = gather(read_run(run))
    origin = type(facts.origin)({}, [(100.0, 110.0)])

    spent = time_spent(type(facts)(**{**vars(facts), "origin": origin}))

    assert spent["forward"] == pytest.approx(1.0) and spent["other in steps"] == pytest.approx(2.0)
    assert spent["validation, rollouts, films, checkpoints"] == pytest.approx(7.0)


def test_settings_of_the_default_job_do_not_differ_from_it(run: Path) -> None:
    keys = {"data.batch_size", "training.max_steps"}

    assert default_differences(read_yaml(run / "config.yaml")).keys() == keys


def test_curves_of_numbers_that_are_none_are_left_out() -> None:
    nan = float("nan")
    assert draw_chart(Chart("a", "", [Line("x", 0, [(1, nan)])])) is None
    drawn = draw_chart(Chart("a", "", [Line("x", 0, [(0, 0.0), (1, nan), (2, 1e9)])]))
    assert drawn is not None and "nan" not in drawn and drawn.count("<circle") == 2
    for points in ([(5, 1.0)], [(0, 0.0)], [(1, -3.0), (2, -3.0)], [(1, 1e-12), (900, 1e12)]):
        assert draw_chart(Chart("a", "", [Line("x", 0, points)])) is not None


# ---- bad input -----------------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_what_would_be_right(
    run: Path, tmp_path: Path, atlas: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    cases = [
        (["report", str(tmp_path / "empty")], "is not a run: it holds neither config.yaml nor tensorboard/"),
        (["report", str(tmp_path / "nothing")], "There is no run"),
        (["report", str(run), str(run)], "named twice"),
        (["report", str(run), "--out", str(tmp_path / "file" / "x.html")], "--out"),
        (["report", str(run), "--out", str(tmp_path)], "--out"),
    ]
    for arguments, message in cases:
        assert atlas(*arguments) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [('{"format": 7}', "has format version 7"), ("[]", "damaged"), ("{", "not valid JSON")]
)
def test_results_of_another_form_are_refused(run: Path, text: str, message: str) -> None:
    (run / "results.json").write_text(text)

    with pytest.raises(InputError, match=message):
        write_report(run)


# ---- a real browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def shown_words(browser: Browser) -> Any:
    return browser.say("document.body.innerText")


def test_a_browser_plays_films_and_opens_what_is_folded(run: Path, browser: Browser) -> None:
    browser.open(write_report(run))

    assert browser.say("document.title").startswith("a<b>")  # and nothing of the instruction has run
    assert "All 4 episodes" in shown_words(browser) and "how it failed" not in shown_words(browser)
    browser.until("document.querySelector('video').readyState >= 2")
    browser.say("document.querySelector('video').play()")
    browser.until("document.querySelector('video').currentTime > 0.1")
    assert "episode\tinstruction" not in shown_words(browser)
    browser.point("#episodes details:last-of-type > summary", 0.02, click=True)
    browser.until("document.body.innerText.includes('episode\\tinstruction\\toutcome')")
    browser.point(".chart svg", 0.7, 0.5)
    browser.until("getComputedStyle(document.getElementById('tip')).visibility === 'visible'")
    assert browser.say("document.getElementById('tip').innerText").startswith("step ")
    browser.point("nav a:last-child", click=True)
    browser.until("location.hash === '#again'")
    assert browser.errors == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_nothing_is_wider_than_the_screen(run: Path, browser: Browser, width: int, dark: bool, tmp_path: Path) -> None:
    browser.open(write_report(run), width, 800, dark)

    assert browser.say("document.documentElement.scrollWidth") <= width
    light = browser.say("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)")
    assert (light < 150) == dark
    browser.picture(tmp_path / "shot.png")
    assert (tmp_path / "shot.png").stat().st_size > 10_000


def test_print_shows_what_is_folded(run: Path, browser: Browser) -> None:
    browser.open(write_report(run))
    browser.ask("Emulation.setEmulatedMedia", media="print")
    try:
        browser.until("document.querySelector('#settings pre').getBoundingClientRect().height > 100")
        assert browser.printed().startswith(b"%PDF")
    finally:
        browser.ask("Emulation.setEmulatedMedia", media="")
