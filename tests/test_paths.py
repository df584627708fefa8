"""Names from outside stay in their folder."""

from pathlib import Path

import pytest

from atlas.errors import InputError
from atlas.system.paths import inside


@pytest.mark.parametrize("name", ["a", "a/b.txt", "a//b", "./a", "..a/b..", "ä/ü", ".hidden", "c/d:e"])
def test_a_name_below_the_folder_is_a_path_in_it(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (".", "empty"),
        ("..", "leads out"),
        ("../a", "leads out"),
        ("a/../../b", "leads out"),
        ("a/..", "leads out"),
        ("/etc/passwd", "absolute"),
        ("//host/share", "absolute"),
        ("C:/a", "absolute"),
        ("c:a", "absolute"),
        ("..\\a", "backslash"),
        ("a\\..\\b", "backslash"),
        ("a\0b", "control character"),
        ("a\x1b[2Jb", "control character"),
        ("a\ud800b", "a lone surrogate"),
        ("a" * 256, "too long"),
        ("a/" * 2100, "too long"),
    ],
)
def test_any_other_name_is_refused_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        inside(tmp_path / "folder", name, where="list.json")
    assert str(refused.value).startswith("list.json: ")
    assert len(str(refused.value)) < 400 and str(refused.value).isprintable()


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "within").symlink_to("real")
    (folder / "out").symlink_to(tmp_path)
    (folder / "file").symlink_to(tmp_path / "not there")
    assert inside(folder, "within/a") == folder / "within" / "a"
    for name in ("out", "out/a", "file"):
        with pytest.raises(InputError, match="link"):
            inside(folder, name)


def test_readers_may_follow_links_of_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    assert inside(folder, "out/a", follow_links=True) == folder / "out" / "a"
    with pytest.raises(InputError, match="leads out"):
        inside(folder, "out/../a", follow_links=True)
