"""Keys stay out of what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas.config import load_config
from atlas.config.secrets import without_keys
from atlas.errors import InputError
from atlas.system.safe_text import cause, redact


def test_secrets_are_hidden_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEBODYS_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("GITHUB_TOKEN", "short")  # and so perhaps a word of the text

    assert redact("it has 0123456789abcdef in it, short") == "it has *** in it, short"
    assert redact("key wandb_v1_abcdefghijklmnopqrst") == "key ***"
    assert redact("https://me:password@host/x") == "https://***@host/x"
    assert cause(ValueError("no 0123456789abcdef\nand more")) == "ValueError: no ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://token0123@host/x.git", "https://***@host/x.git"),
        ("https://me:p@ss@host/x", "https://***@host/x"),
        ("https://host/x?a=1&access_token=abc&b=2", "https://host/x?a=1&access_token=***&b=2"),
        ("s3://bucket/x?X-Amz-Signature=abc", "s3://bucket/x?X-Amz-Signature=***"),
        ("hf_abcdefghijklmnopqrstuvwxyz and ghp_abcdefghijklmnopqrstuvwxyz0123456789", "*** and ***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        (
            "see https://host/a@b and me@host; TOKENIZERS=12345678",
            "see https://host/a@b and me@host; TOKENIZERS=12345678",
        ),
    ],
)
def test_what_has_the_form_of_a_key_is_one(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_variables_are_secret_by_any_word_of_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "DB_PASSWORD_OLD", "hf_token"):
        monkeypatch.setenv(name, f"value-of-{name}")
        assert redact(f"x value-of-{name} y") == "x *** y", name
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "innocent text")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))  # a file, which may be named
    assert redact(f"innocent text in {tmp_path}") == f"innocent text in {tmp_path}"


# ---- keys in configs ---------------------------------------------------------------------------------------


def test_a_key_in_what_describes_a_run_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(
        None, ["wandb.notes=with wandb_v1_abcdefghijklmnopqrst", "wandb.tags=[a, AKIAIOSFODNN7EXAMPLE]"]
    )

    free = without_keys(config)

    assert (free.wandb.notes, free.wandb.tags) == ("with ***", ["a", "***"])
    assert free.model_copy(update={"wandb": config.wandb}) == config
    assert "wandb.notes held a key" in caplog.text and "wandb_v1" not in caplog.text


@pytest.mark.parametrize(
    "override", ["data.path=https://token0123@host/x", "output_dir=SECRET", "data.cameras=[agentview, SECRET]"]
)
def test_a_key_in_what_decides_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghij/klmnopqrst")
    config = load_config(None, [override.replace("SECRET", "abcdefghij/klmnopqrst")])

    with pytest.raises(InputError, match="holds a key") as error:
        without_keys(config)

    assert "token0123" not in str(error.value) and "klmnop" not in str(error.value)


def test_a_word_that_is_also_a_short_password_may_be_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "postgres")
    config = load_config(None, ["output_dir=runs/postgres"])
    assert without_keys(config) == config
