"""The guides: their commands are run as written, and every key and metric is explained, in both languages.

A comment above a block says what to know about it: `account` (run against a small server instead of wandb's), `slow`,
`until stopped` (started, and ended when it is up), or `not run: why`. A block of Python or YAML that begins with a
file's name is saved under that name, for the commands that follow.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from atlas.config import Config, LoggingConfig, WandbConfig, load_config
from atlas.config.tracking_sections import EpisodeLoggerConfig
from atlas.environments.perturbations.choices import PerturbationChoice
from atlas.rollout.episode_plan import Purpose
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.rollout.verdicts.failures import FailureKind
from atlas.rollout.verdicts.twins import TWINS
from atlas.runs.scalars import event_files
from atlas.tracking import RunTracker
from atlas.tracking.media_values import write_mp4
from atlas.training.judging.final_evaluation import FinalEvaluation, show_finally
from atlas.training.media.episode_logger import EpisodeLogger
from tests import warm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "tracking"))

GUIDES = ("wandb", "metrics")
LANGUAGES = {"": "eeds an account", ".zh-CN": "需要账号"}  # how a page says what a block needs
ENTITY = "my-team"  # of the pages' commands
_FENCE = re.compile(r"\s*```(\w*)$")
_MARKS = re.compile(r"\s*<!-- (.+) -->$")
_FILE = re.compile(r"# (\w+\.(?:py|yaml))$")
_BLOCK_SECONDS = 240


# ---- reading a page --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block. section: the heading it is under; marks: what the comment above it says."""

    section: str
    language: str
    text: str
    marks: frozenset[str]

    @property
    def file(self) -> str | None:
        """The name that the block is to be saved under; None for a command."""
        match = _FILE.match(self.text.splitlines()[0])
        return match[1] if match and self.language in ("python", "yaml") else None

    @property
    def not_run(self) -> bool:
        return any(mark.startswith("not run: ") for mark in self.marks)

    @property
    def needs_account(self) -> bool:
        return any("account" in mark for mark in self.marks)

    @property
    def without_comments(self) -> str:
        first, *rest = self.text.splitlines()
        lines = [first if _FILE.match(first) else _code(first), *map(_code, rest)]
        return "\n".join(line for line in lines if line)


def _code(line: str) -> str:
    return re.sub(r"(^|\s+)#\s.*$", "", line)


@dataclass(frozen=True)
class Page:
    path: Path
    headings: tuple[tuple[int, str], ...]  # (level, title)
    blocks: tuple[Block, ...]
    prose: dict[str, str]  # {section: its text, without blocks}

    @property
    def sections(self) -> list[str]:
        return [title for _, title in self.headings]


def read_page(guide: str, language: str = "") -> Page:
    return read_file(ROOT / "docs" / f"{guide}{language}.md")


def read_file(path: Path) -> Page:
    headings: list[tuple[int, str]] = []
    blocks: list[Block] = []
    prose: dict[str, list[str]] = {"": []}
    fenced: tuple[str, list[str]] | None = None
    above = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line)
        if fenced is not None:
            if fence:
                marks = _MARKS.match(above)
                said = frozenset(re.split(r",\s*(?=account|slow|until)", marks[1])) if marks else frozenset()
                blocks.append(Block(headings[-1][1], fenced[0], "\n".join(fenced[1]), said))
                fenced, above = None, ""
            else:
                fenced[1].append(line)
        elif fence:
            fenced = (fence[1], [])
        else:
            if heading := re.match(r"(#+) (.+)", line):
                headings.append((len(heading[1]), heading[2]))
            prose.setdefault(headings[-1][1] if headings else "", []).append(line)
            above = line
    assert fenced is None, f"{path} ends within a block"
    text = {section: "\n".join(lines) for section, lines in prose.items()}
    return Page(path, tuple(headings), tuple(blocks), text)


def table_rows(page: Page) -> Iterator[list[str]]:
    """The cells of every row of every table."""
    for text in page.prose.values():
        for line in text.splitlines():
            if line.lstrip().startswith("|"):
                yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


# ---- doing what a page says ------------------------------------------------------------------------------


class Reader:
    """Somebody who follows the guide from its beginning, in a separate folder and home."""

    def __init__(self, folder: Path, server: Any) -> None:
        from fake_sweeps import environment_for

        self.folder, self.server = folder, server
        self._blocks = [block for block in read_page("wandb").blocks if not block.not_run]
        self._failed: str | None = None
        (folder / "bin").mkdir()
        warm.write_python(folder / "bin")
        _write_script(folder / "bin" / "atlas", 'exec python -m atlas.cli "$@"')
        _write_script(folder / "train.sh", f'exec "{ROOT / "train.sh"}" "$@"')
        account = environment_for(server, folder / "home")
        # Where wandb keeps things follows from the home alone, as it does for a user.
        account = {name: value for name, value in account.items() if not name.startswith(("XDG_", "WANDB_", "NETRC"))}
        account["PATH"] = os.pathsep.join([str(folder / "bin"), account["PATH"]])
        account |= {"WANDB_ERROR_REPORTING": "false"}
        self._account = account | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": _key()}
        self._nobody = account | {"WANDB_BASE_URL": "http://127.0.0.1:9"}  # where nobody answers

    def follow(self, section: str, slow: bool = False) -> None:
        """Run the blocks up to this section that have not been run yet; slow ones only in this section."""
        sections = read_page("wandb").sections
        end = sections.index(section)
        due = [b for b in self._blocks if sections.index(b.section) <= end]
        for block in due:
            if "slow" in block.marks and not (slow and block.section == section):
                continue
            if self._failed is not None:
                pytest.fail(f"an earlier command of the guide failed: {self._failed}")
            self._blocks.remove(block)
            self._do(block)

    def _do(self, block: Block) -> None:
        text = block.text.replace("YOUR_KEY", _key()).replace("SWEEP_ID", next(reversed(self.server.sweeps), ""))
        if block.file is not None:
            (self.folder / block.file).write_text(text + "\n", encoding="utf-8")
            return
        assert block.language in ("bash", "text"), f"neither a file's name nor a command: {text}"
        if block.language == "text":
            return
        environment = self._account if "account" in block.marks else self._nobody
        command = ["bash", "-euo", "pipefail", "-c", text]
        if "until stopped" in block.marks:
            self._start_and_stop(command, environment)
            return
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BLOCK_SECONDS,
        )
        went_offline = "account" in block.marks and "goes offline" in done.stdout
        if done.returncode or "Traceback" in done.stdout or went_offline:
            self._failed = text
            pytest.fail(f"In '{block.section}':\n{text}\nended with {done.returncode} and printed\n{done.stdout}")

    def _start_and_stop(self, command: list[str], environment: dict[str, str]) -> None:
        """Until it prints the address at which it can be visited."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout
        try:
            said = next((line for line in process.stdout if "http://" in line), None)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
            process.stdout.close()
        assert said is not None, command


def _write_script(path: Path, line: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)


def _key() -> str:
    from tracked_run import KEY

    return str(KEY)


@contextmanager
def account_server() -> Iterator[Any]:
    """A small server instead of wandb's, for the user of the pages."""
    import fake_sweeps
    import fake_wandb

    class Server(fake_sweeps.FakeSweeps):
        def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
            given = variables.get("input")
            if isinstance(given, dict) and given.get("entityName") == "":  # a synced run's: whoever has the key
                variables = {**variables, "input": {**given, "entityName": ENTITY}}
            return super().answer(operation, variables)

    with pytest.MonkeyPatch.context() as patch:
        for module in (fake_wandb, fake_sweeps):
            patch.setattr(module, "ENTITY", ENTITY)
        with Server() as server:
            yield server
            server.shutdown()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    pytest.importorskip("wandb")
    with account_server() as server:
        yield Reader(tmp_path_factory.mktemp("guide"), server)


def _sections_with_commands(slow: bool) -> list[str]:
    blocks = [b for b in read_page("wandb").blocks if not b.not_run and b.language == "bash"]
    return list(dict.fromkeys(b.section for b in blocks if ("slow" in b.marks) == slow))


@pytest.mark.timeout(900)  # the first to be run does all that is before it
@pytest.mark.parametrize("section", _sections_with_commands(slow=False))
def test_the_commands_of_the_guide_work(reader: Reader, section: str) -> None:
    reader.follow(section)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("section", _sections_with_commands(slow=True))
def test_the_longer_commands_of_the_guide_work(reader: Reader, section: str) -> None:
    reader.follow(section, slow=True)


@pytest.mark.timeout(900)
def test_following_the_guide_leaves_what_it_promises(reader: Reader) -> None:
    reader.follow("A metric of your own")
    runs = {run.get("displayName"): run for run in reader.server.runs.values()}
    models = reader.server.artifacts

    assert list((reader.folder / "outputs" / "first" / "wandb").glob("offline-run-*"))  # nobody was logged in
    assert "cluster" in runs and runs["cluster"]["rows"]  # synced
    assert models.names("cluster") and "best" in models.names("cluster")["v1"]
    assert {"prod", "latest"} <= set(models.aliases[("somebodys-org", "wandb-registry-models", "cubes")])
    steps = [row["train/step"] for row in runs["cubes"]["rows"] if "train/loss" in row]
    assert steps[:6] == [5, 10, 15, 20, 25, 30]  # it is resumed by a longer command
    for made in ("comparison.png", "exported/model.safetensors", "pulled/policy", "best-of-first"):
        assert (reader.folder / made).exists(), made
    assert "custom/metric" in tags_of(reader.folder / "outputs" / "own")


# ---- keys and metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_is_explained_with_its_default(language: str) -> None:
    row = re.compile(r"`((?:wandb|logging|model_management)\.[\w.]+)`")
    explained = {
        match[1]: yaml.safe_load(cells[1].strip("`"))
        for cells in table_rows(read_page("wandb", language))
        if len(cells) == 3 and (match := row.fullmatch(cells[0]))
    }
    sections = Config().model_dump(mode="json")
    keys = {name: sections[name] for name in ("wandb", "logging", "model_management")}
    assert explained == dict(_flat(keys))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_yaml_in_the_guide_is_taken_by_the_config_or_by_sweeps(tmp_path: Path) -> None:
    from atlas.sweeps.grid import grid_points, read_sweep

    found = [block for block in read_page("wandb").blocks if block.language == "yaml"]
    assert len(found) >= 4
    for block in found:
        values = yaml.safe_load(block.text)
        if "method" in values:
            assert block.file is not None
            (tmp_path / block.file).write_text(block.text)
            assert len(grid_points(read_sweep(tmp_path / block.file))) == 2
        else:
            load_config(values)


def tags_of(run_dir: Path) -> set[str]:
    """Everything that TensorBoard has of a run, except what its own plugins keep."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = (event for file in event_files(run_dir) for event in EventFileLoader(str(file)).Load())
    tags = {value.tag for event in events for value in event.summary.value}
    return {tag for tag in tags if not tag.startswith(("_hparams_/", "custom_scalars__"))}


def explained_metrics(language: str) -> set[str]:
    """The names in the first column of the page's tables of metrics, with their placeholders."""
    first_cells = (cells[0] for cells in table_rows(read_page("metrics", language)) if len(cells) >= 4)
    return {name for cell in first_cells for name in re.findall(r"`([a-z_]+/[^`]+)`", cell)}


def _matches(tag: str, name: str) -> bool:
    parts = {"<module>": r"[\w/]+", "<n>": r"\d+"}
    pattern = "".join(
        parts.get(part, r"[^/]+") if part.startswith("<") else re.escape(part) for part in re.split(r"(<\w+>)", name)
    )
    # A further term has a name of its own: it must not stand for any metric that the page forgets.
    return name.rpartition("/")[2] != "<term>" and re.fullmatch(pattern + "(/text_summary)?", tag) is not None


_NOT_IN_A_SMALL_RUN = re.compile(
    r"system/gpu.*|perf/gpu_memory_gib|perf/mfu|.*/alignment_loss|.*/<term>"
    r"|.*/(joint_error_(deg|percent)|(left|right)(/.*)?)"  # of other actions than LIBERO's
    r"|dataset/frames"  # the projector's
    r"|dataset/frames_by_source"  # of a mixture
)


def assert_explained(tags: set[str], language: str) -> None:
    names = explained_metrics(language)
    assert [tag for tag in sorted(tags) if not any(_matches(tag, name) for name in names)] == []
    idle = {name for name in names if not any(_matches(tag, name) for tag in tags)}
    assert [name for name in sorted(idle) if not _NOT_IN_A_SMALL_RUN.fullmatch(name)] == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_metric_of_a_run_is_explained_and_no_other(reader: Reader, tmp_path: Path, language: str) -> None:
    """The guide's own run; and what the evaluation loggers make of one that would take a minute to play."""
    reader.follow("Switch it on")
    tracker = RunTracker(tmp_path, "evaluated", WandbConfig(), LoggingConfig(), strict=True)
    for purpose in ("selection", "final"):
        log_evaluation(tracker, purpose, tmp_path)
    tracker.finish()

    tags = tags_of(reader.folder / "outputs" / "first") | tags_of(tmp_path)
    assert {"train/loss", "val/position_error_mm", "eval/final/video_median"} <= tags
    assert_explained(tags, language)


def log_evaluation(tracker: RunTracker, purpose: Purpose, folder: Path) -> None:
    film = folder / "film.mp4"
    write_mp4(film, np.zeros((4, 32, 32, 3), np.uint8), 10)
    failed: FailureKind = "stuck"
    outcomes = [
        EpisodeOutcome(f"lift cube {i % 2}", i, i > 0, float(i), 10 + i, str(film), None if i else failed)
        for i in range(3)
    ]
    report = EvaluationReport("cubes", "here", tuple(outcomes), purpose, 30)
    if purpose == "selection":
        tracker.log(report.metrics())
    else:
        perturbed = replace(report, perturbed={PerturbationChoice("blur", 2): tuple(outcomes)})
        show_finally(FinalEvaluation(perturbed, dict.fromkeys(TWINS, report)), tracker)
    EpisodeLogger(EpisodeLoggerConfig(), tracker).log(report)


@pytest.mark.slow
def test_every_metric_of_a_run_with_rollouts_is_explained(cubes_dataset: Path, tmp_path: Path) -> None:
    import atlas

    small = next(block for block in read_page("wandb").blocks if block.file == "my.yaml")
    episodes = ["evaluation.episodes=3", "evaluation.final_episodes=3", "evaluation.perturbations=[blur:1]"]
    given = [*episodes, f"data.path={cubes_dataset}", f"output_dir={tmp_path}", "run_name=played"]
    run_dir = atlas.train(yaml.safe_load(small.text), given).run_dir
    for language in LANGUAGES:
        assert_explained(tags_of(run_dir), language)


# ---- pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", GUIDES)
def test_both_languages_have_the_same_structure_and_commands(guide: str) -> None:
    english, chinese = (read_page(guide, language) for language in LANGUAGES)

    assert [level for level, _ in english.headings] == [level for level, _ in chinese.headings]
    for one, other in zip(english.blocks, chinese.blocks, strict=True):
        assert one.without_comments == other.without_comments
        assert (one.language, one.marks) == (other.language, other.marks)
        assert english.sections.index(one.section) == chinese.sections.index(other.section)
    names = [[re.findall("`[^`]+`", cells[0]) for cells in table_rows(page)] for page in (english, chinese)]
    assert names[0] == names[1]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("guide", GUIDES)
def test_what_needs_an_account_says_so(guide: str, language: str) -> None:
    page = read_page(guide, language)
    for block in page.blocks:
        if block.needs_account:
            text = " ".join(page.prose[block.section].split())
            assert LANGUAGES[language] in text, f"{page.path}: {block.section}"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide: str, language: str) -> None:
    page = read_page(guide, language)
    links = [link for text in page.prose.values() for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.path.parent / file if file else page.path
        assert target.is_file(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, link


def _anchor(title: str) -> str:
    """The anchor that GitHub makes from a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
