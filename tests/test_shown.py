"""Text from datasets and servers on terminals, in logs, tables, pages and cards."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atlas.cli.output import log_lines_shown_as_text, print_json, print_table, say
from atlas.errors import InputError
from atlas.policies.model_card import model_card
from atlas.system.safe_text import markdown, markdown_code, printable
from atlas.tracking.sinks.console import setup_logging
from tests.policies.test_policy import make_policy

EVIL = "open\x1b]0;owned\x07 \x9b31mthe\u202e drawer\r"
SHOWN = "open\\x1b]0;owned\\x07 \\x9b31mthe\\u202e drawer\\x0d"


def test_what_a_terminal_obeys_is_written_out() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("两行\n\t é — ✓") == "两行\n\t é — ✓"


def test_lines_tables_and_json_show_it_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    print_table(EVIL, ("instruction",), [(EVIL,)])
    print_json({"instruction": EVIL})

    out = capsys.readouterr().out
    assert out.startswith(SHOWN + "\n")
    assert not set(out) & set("\x1b\x07\x9b\r")
    assert json.loads(out[out.index("{") :]) == {"instruction": EVIL}


def test_log_lines_show_it_as_text_before_and_while_a_run_has_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = logging.lastResort
    assert last is not None
    monkeypatch.setattr(last, "formatter", None)
    with log_lines_shown_as_text():
        record = logging.makeLogRecord({"levelno": logging.WARNING, "msg": "episode %s", "args": (EVIL,)})
        assert last.format(record) == f"episode {SHOWN}"

        undo = setup_logging(tmp_path, is_main=True)
        logging.getLogger("atlas.test").info("episode %s", EVIL)
        undo()

    assert SHOWN in capfd.readouterr().err
    assert SHOWN in (tmp_path / "train.log").read_text()


def test_an_error_of_the_command_shows_it_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas import cli

    monkeypatch.setattr(sys, "argv", ["atlas", "data", "inspect", "nowhere\x1b[31m"])
    with pytest.raises(SystemExit):
        cli.main()

    said = capsys.readouterr().err
    assert "nowhere\\x1b[31m" in said and "\x1b" not in said


def test_markdown_is_text() -> None:
    assert markdown("<img src=x> [a](b) | c_d\n# e") == "&lt;img src=x&gt; \\[a\\]\\(b\\) \\| c\\_d \\# e"
    assert markdown_code("a`b") == "``a`b``" and markdown_code("a|b\nc") == "`a\\|b c`"


def test_a_model_card_shows_names_of_others_as_text() -> None:
    policy = make_policy()
    statistics = tuple(replace(s, source="data/<img src=x>|a_b") for s in policy.processor.statistics)
    policy.processor = replace(policy.processor, cameras=("front`<b>`", "wrist"), statistics=statistics)

    card = model_card(policy)

    assert "cameras `` front`<b>` ``, `wrist` (upright" in card
    assert "- data/&lt;img src=x&gt;\\|a\\_b: " in card


def test_a_message_can_be_written_whatever_it_quotes() -> None:
    assert str(InputError("caf\xe9, caf\udce9")) == "caf\xe9, caf\\udce9"
