"""The commands on all pages except wandb.md (see test_guides.py): the fast ones are run, the others say why not.

`<!-- not run: why -->` above a block applies to all of its lines. Whether a command is run or not, the command line's
parser has to accept it, with its flags, overrides and files, and also all commands within a text.
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from atlas import cli
from atlas.config import load_config
from tests.conftest import MakeLibero
from tests.test_guides import Block, read_file

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
PAGES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").glob("*.md") if not page.name.startswith("wandb"))]
PAGES = sorted(page for page in PAGES if page.name != "CHANGELOG.md")  # which tells of commands that once were
OURS = ("./train.sh", "./test.sh", "atlas", "python", "sbatch", "torchrun")
OTHERS = ("pip", "hf", "tensorboard", "wandb", "export", "source")
_INLINE = re.compile(r"`((?:\./train\.sh|\./test\.sh|atlas|python benchmarks/\w+\.py|sbatch|torchrun)(?: [^`]+)?)`")
_OF_THE_SCRIPT = re.compile(r"--(background|log|help)\b")  # train.sh's own flags; the others go on to `atlas train`


@dataclass(frozen=True)
class Command:
    page: Path
    line: str
    block: Block | None  # None where it stands within a text

    @property
    def words(self) -> list[str]:
        words = shlex.split(self.line, comments=True)
        return words[1:] if words and re.fullmatch(r"[A-Z_]+=\S*", words[0]) else words

    @property
    def ours(self) -> bool:
        return self.words[0] in OURS


def commands_of(path: Path) -> Iterator[Command]:
    page = read_file(path)
    for block in page.blocks:
        if block.language in ("bash", "sh", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if shlex.split(line, comments=True):
                    yield Command(path, line, block)
    for text in page.prose.values():
        for match in _INLINE.finditer(" ".join(text.split())):
            yield Command(path, match[1], None)


ALL = [command for page in PAGES for command in commands_of(page)]


# ---- what can be said without running them ---------------------------------------------------------------


@cache
def _all_commands() -> Any:
    """Of click, which typer may have as its own copy."""
    return typer.main.get_command(cli.app)


def leaf_of(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The verb that the words name, and the remaining words. Fails if there is no such verb."""
    command = _all_commands()
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        verbs = rest.pop(0).split("|")
        assert set(verbs) <= set(command.commands), f"no verb {verbs}"
        command = command.commands[verbs[0]]
    return command, rest


def check_atlas(words: Sequence[str], told: Command) -> None:
    command, rest = leaf_of(words)
    flags = {option for each in command.params for option in each.opts} | {"--help"}
    for word in rest:
        assert not word.startswith("--") or word.partition("=")[0] in flags, f"no flag {word}"
    overrides = [word for word in rest if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
    if told.block is None:  # it is only named, perhaps without all that it needs
        load_config(None, [each for each in overrides if "…" not in each])
        return
    given = command.make_context("atlas", list(rest)).params
    config = given.get("config")
    if config and not (ROOT / config).exists():  # the reader's own, which the page begins with
        config = next((yaml.safe_load(b.text) for b in read_file(told.page).blocks if b.language == "yaml"), None)
        load_config(config, overrides)
    else:
        load_config(ROOT / config if config else None, overrides)


def check_command(command: Command) -> None:
    words = command.words
    if words[0] == "atlas":
        check_atlas(words[1:], command)
    elif words[0] == "torchrun":
        check_atlas(words[words.index("atlas.cli") + 1 :] if "atlas.cli" in words else [], command)
    elif words[0] == "./train.sh":
        own = [i for i, word in enumerate(words) if _OF_THE_SCRIPT.match(word)]
        own += [i + 1 for i in own if words[i] == "--log"]
        check_atlas(["train", *(word for i, word in enumerate(words[1:], 1) if i not in own)], command)
    elif words[0] == "python":
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(word in text for word in words[2:] if word.startswith("--"))
    elif words[0] == "./test.sh":
        assert all(word in (ROOT / "test.sh").read_text(encoding="utf-8") for word in words[1:])
    elif words[0] == "sbatch":
        assert all((ROOT / word).exists() for word in words if word.endswith(".sh"))
    elif words[0] == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        named = re.findall(r"\[([\w,]+)\]", command.line)
        assert {extra for each in named for extra in each.split(",")} <= set(extras)


def test_every_command_is_one_that_the_parser_takes() -> None:
    assert len(ALL) > 60
    wrong = []
    for command in ALL:
        try:
            assert command.words[0] in (*OURS, *OTHERS), "neither one of Atlas's commands nor a known one"
            check_command(command)
        except (AssertionError, Exception) as error:  # each is said, whatever it is
            wrong.append(f"{command.page.name}: {command.line}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_command_is_run_or_says_why_not() -> None:
    unsaid = [f"{c.page.name}: {c.line}" for c in ALL if c.block is not None and not c.ours and not c.block.not_run]
    assert not unsaid, "\n".join(unsaid)
    assert {c.words[0] for c in ALL if c.block is not None and not c.block.not_run} <= {"atlas"}


def test_the_chinese_readme_has_no_command_of_its_own() -> None:
    lines = {name: {" ".join(c.words) for c in ALL if c.page.name == name} for name in ("README.md", "README.zh-CN.md")}
    assert lines["README.zh-CN.md"] <= lines["README.md"] | {"atlas doctor"}


# ---- running them ----------------------------------------------------------------------------------------


def _to_run() -> list[str]:
    """The commands; of those that differ only in how they show their results, the longest."""
    lines = {shlex.join(c.words) for c in ALL if c.block is not None and not c.block.not_run}
    longest: dict[str, str] = {}
    for line in sorted(lines, key=len):
        longest[re.sub(r" --json| --out \S+", "", line)] = line
    return sorted(longest.values())


@pytest.fixture
def somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cubes_dataset: Path, make_libero: MakeLibero
) -> Callable[[str], list[str]]:
    """A folder with what the pages assume; returns the words of a command that goes there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cubes").symlink_to(cubes_dataset)
    (tmp_path / "atlas").symlink_to(ROOT / "atlas")
    monkeypatch.chdir(tmp_path)
    stand_ins = {
        "/my/dataset": str(FIXTURES / "lerobot_v30_image"),
        "hf:lerobot/libero": str(FIXTURES / "lerobot_v30_video"),
        "/data/libero_goal": str(make_libero()),
        "/my/smolvla": str(FIXTURES / "smolvla"),
    }

    def words(line: str) -> list[str]:
        for name, there in stand_ins.items():
            line = line.replace(name, there)
        return shlex.split(line)

    return words


@pytest.mark.parametrize("line", _to_run())
def test_it_runs(
    line: str,
    somewhere: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", somewhere(line))

    code = cli._run()

    said = capfd.readouterr()
    found_errors = code == 1 and line.startswith("atlas data check")  # the stand-ins may well have some
    assert (code == 0 or found_errors) and "Traceback" not in said.err, said.err
    assert said.out


# ---- what is not a command -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_taken_by_the_config_and_python_is_python(page: Path) -> None:
    for block in read_file(page).blocks:
        text = textwrap.dedent(block.text)
        if block.language == "yaml":
            values = yaml.safe_load(text)
            load_config(values, [] if "data" in values else ["data.image_size=224"])  # which any backbone takes
        if block.language == "python":
            compile(text, str(page), "exec")
            imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
            exec("\n".join(imports), {})
