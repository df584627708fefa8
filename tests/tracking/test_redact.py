"""Keys stay out of what is written."""

from __future__ import annotations

import pytest

from atlas.tracking.redact import cause, redact


def test_secrets_are_hidden_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEBODYS_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("GITHUB_TOKEN", "short")  # and so perhaps a word of the text

    assert redact("it has 0123456789abcdef in it, short") == "it has *** in it, short"
    assert redact("key wandb_v1_abcdefghijklmnopqrst") == "key ***"
    assert redact("https://me:password@host/x") == "https://***@host/x"
    assert cause(ValueError("no 0123456789abcdef\nand more")) == "ValueError: no ***"
