"""JSON and YAML from anybody: the values they mean, or a ValueError soon."""

from itertools import pairwise
from pathlib import Path

import pytest

from atlas.system.documents import parse_json, parse_yaml, read_json, read_yaml

LAUGHS = "a: &a [1, 1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))


def test_json_and_yaml_are_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, -2.5, "ä", null, 9223372036854775807]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, -2.5, "ä", None, 2**63 - 1]}
    (tmp_path / "a.yaml").write_text("a: [1, -2.5, ä, null, .inf]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, -2.5, "ä", None, float("inf")]}
    assert parse_yaml("") is None
    assert parse_yaml('a: "\\ud83d\\ude00"') == {"a": "\U0001f600"}  # in two halves, as JSON has it


def test_what_is_referred_to_is_a_value_of_its_own_each_time() -> None:
    values = parse_yaml("a: &one {k: [1]}\nb: *one\nc: {<<: *one, d: 2}\n")
    values["a"]["k"].append(2)
    assert values == {"a": {"k": [1, 2]}, "b": {"k": [1]}, "c": {"k": [1], "d": 2}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "values"),
        ("a: &a [*a]", "refers to itself"),
        ("[" * 5_000, "deep"),
        ("- " * 5_000 + "x", "deep"),
        ("\n".join([f"a0: &a0 {'[' * 60}{']' * 60}", f"a1: {'[' * 60}*a0{']' * 60}"]), "deep"),
        ("x: 2024-99-99", "month"),
        ("x: !!int ''", "tag"),
        ("x: !!timestamp soon", "tag"),
        ("x: !!python/object:os.system y", "tag"),
        ("x: 1" + ":1" * 3_000, "number"),
        ("x: 99999999999999999999", "number"),
        ('x: "\\ud800"', "half of a character"),
        ('"\\ud800": 1\n"\\ud800": 2', "half of a character"),
        ("a: 1\na: 2", "twice"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_yaml_beyond_its_bounds_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        parse_yaml(text)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: b: c", "\tx: 1", "a: 1\nb: 2\n b: 3", "a: {b: 1", "k: &x 1\nk: *x", "- *none"],
)
def test_what_libyaml_refuses_is_refused_with_its_line_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"line \d+, column \d+:\n.*\n +\^") as refused:
        parse_yaml(text)
    monkeypatch.setattr("atlas.system.documents.CParser", None)  # as where PyYAML has no libyaml
    with pytest.raises(ValueError, match="line") as alone:
        parse_yaml(text)
    assert str(refused.value) == str(alone.value)


def test_yaml_is_parsed_by_libyaml_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml.cyaml")
    monkeypatch.setattr("atlas.system.documents._Loader", None)
    assert parse_yaml("a: [1, {b: 2.5}]") == {"a": [1, {"b": 2.5}]}


def test_yaml_of_very_many_values_is_refused_before_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.system.documents._MOST_VALUES", 10)
    assert parse_yaml("[" + "1," * 9 + "]") == [1] * 9
    with pytest.raises(ValueError, match="more than 10 values"):
        parse_yaml("[" + "1," * 10 + "[")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 150 + "]" * 150, "deep"),
        ("9" * 100, "number"),
        ("9" * 10_000, "number|digits"),
        ('"\\ud800"', "surrogates"),
        (b"\xff", "utf-8"),
        ("", "Expecting value"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_beyond_its_bounds_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_of_a_huge_file_no_more_is_read_than_may_be(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    for read in (read_json, read_yaml):
        with pytest.raises(ValueError, match="larger than"):
            read(tmp_path / "huge")
    (tmp_path / "small").write_text("[1, 2, 3]")
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "small", largest=8)
