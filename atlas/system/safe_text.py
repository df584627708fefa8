"""Text made safe: keys are kept out of what this package writes, and what others wrote is made safe to show."""

from __future__ import annotations

import html
import numbers
import os
import re
from collections.abc import Mapping
from typing import Any

# Names of environment variables: AWS_SECRET_ACCESS_KEY, HF_TOKEN, DB_PASSWORD_OLD; not TOKENIZERS_PARALLELISM.
_SECRET_VARIABLE = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|PASSPHRASE|CREDENTIALS?|PAT)(_|$)", re.IGNORECASE
)
# Values recognisable as keys: of wandb, Hugging Face, GitHub, OpenAI and AWS.
_KEY = re.compile(
    r"\bwandb_v\d+_\w{16,}|\bhf_[A-Za-z0-9]{20,}|\b(gh[pousr]_|github_pat_)\w{20,}|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b"
)
_URL_LOGIN = re.compile(r"(?<=://)[^\s/?#]+(?=@)")  # with or without a password: tokens are given as user names
_URL_PARAMETER = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|password|signature|credential)[\w.-]*=)[^&\s\"']+", re.IGNORECASE
)
_SHORTEST_SECRET = 8  # shorter values ("1", "true") would blank out innocent text
CERTAIN_SECRET = 16  # shorter ones may be words
_HIDDEN = "***"

# What a terminal obeys instead of showing (C0 except tab and newline, DEL, C1), and what changes the direction of the
# text after it.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$@])")


def redact(text: str, shortest: int = _SHORTEST_SECRET) -> str:
    """The text with `***` for keys: values of secret environment variables that are at least `shortest` long, anything
    that looks like a key, and logins in URLs.
    """
    for name, value in os.environ.items():
        if len(value) >= shortest and value in text and _SECRET_VARIABLE.search(name) and not _is_path(value):
            text = text.replace(value, _HIDDEN)
    return _URL_PARAMETER.sub(rf"\1{_HIDDEN}", _URL_LOGIN.sub(_HIDDEN, _KEY.sub(_HIDDEN, text)))


def _is_path(value: str) -> bool:
    """Whether a variable such as GOOGLE_APPLICATION_CREDENTIALS names a file, which is no secret itself."""
    return value.startswith(("/", "~", "./")) and os.path.exists(os.path.expanduser(value))


def cause(error: BaseException) -> str:
    """An error as the end of a sentence: its type and the first line of its message, without keys."""
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def plain(value: Any) -> Any:
    """A copy of a nested config as mappings, lists, str, numbers, bool and None, without keys."""
    if isinstance(value, Mapping):
        return {redact(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):  # numpy's numbers too, which YAML cannot write as they are
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return redact(str(value))


# ---- text from others, such as instructions and names in datasets ----------------------------------------


def printable(text: str) -> str:
    """The text for a terminal or a log: what a terminal would obey is escaped, such as \\x1b."""
    return _OBEYED.sub(lambda match: _written(match[0]), text)


def markdown(text: str) -> str:
    """The text as one line of Markdown that is shown as it is: it makes no tags, links, code or cells."""
    line = " ".join(printable(text).split())
    return _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))


def markdown_code(text: str) -> str:
    """The same, as code."""
    line = " ".join(printable(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
