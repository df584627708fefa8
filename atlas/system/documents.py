"""JSON and YAML that anybody may have written, read within limits: no file makes the reader hang or fill the memory.

The functions raise ValueError, whose text says why, or OSError; callers turn these into a message that names the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

try:
    from yaml import cyaml
except ImportError:  # a PyYAML that was built without libyaml
    cyaml = None  # type: ignore[assignment]

CParser: Any = getattr(cyaml, "CParser", None)

LARGEST_JSON = 16 * 2**20  # bytes
_LARGEST_YAML = 2**20  # bytes; people write YAML by hand
_MOST_VALUES = 20_000  # in YAML; a value counts each time it is referred to
_DEEPEST = 100  # levels of nesting; code that later reads or prints the values may need several calls per level
_LARGEST_NUMBER = 2**63  # for integers; nothing accepts larger ones
_LONGEST_NUMBER = 100  # characters
_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The value in a JSON file of at most `largest` bytes. Raises OSError, ValueError."""
    return parse_json(_read_text(path, largest))


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file, or where it holds anything else, also half of one."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError."""
    content = text.encode("utf-8") if isinstance(text, str) else text
    try:
        value = json.loads(content, parse_int=_integer)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    _check_depth(value)
    if _HALF_CHARACTER.search(content):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
    return value


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; a repeated key in a mapping is an error. Raises OSError, ValueError."""
    return parse_yaml(_read_text(path, _LARGEST_YAML))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; each reference to the same value (`*name`) gives a copy of its own.

    Raises ValueError.
    """
    try:
        value = _value_of(text)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:  # for values that do not fit their tag
        raise ValueError(f"a value does not fit its tag ({error})") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return _own(value)


def _value_of(text: str) -> Any:
    """The value as it was built. libyaml parses a text ten times as fast as PyYAML; one that it refuses PyYAML reads
    (halves of characters that belong together) or refuses, showing the line."""
    if CParser is not None:
        try:
            return _read(_FastLoader(text))
        except yaml.YAMLError:
            pass
    loader = _Loader(text)
    try:
        return _read(loader)
    finally:
        loader.dispose()


def _read(loader: _Limits) -> Any:
    node = loader.get_single_node()
    if node is None:
        return None
    _check_extent(node)
    return loader.construct_document(node)


# ---- small parts -----------------------------------------------------------------------------------------


def _read_text(path: Path, largest: int) -> str:
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest / 2**20:g} MiB")
    return content.decode("utf-8")


def _integer(digits: str) -> int:
    number = int(digits)
    if not -_LARGEST_NUMBER <= number < _LARGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(digits.lstrip('-'))} digits")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST + 1):
        collections = [item for item in level if isinstance(item, dict | list)]
        level = [item for found in collections for item in (found.values() if isinstance(found, dict) else found)]
        if not level:
            return
    raise ValueError(_too_deep())


def _whole(text: str) -> str:
    """A text whose characters beyond the first 65,536 were written as two halves each, as JSON has them."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("it holds half of a character") from None


def _too_deep() -> str:
    return "its values are nested too deeply"


def _too_many() -> str:
    return f"it holds more than {_MOST_VALUES:,} values, counting each reference"


class _Limits(Composer, SafeConstructor, Resolver):
    """YAML in which a repeated key is an error; plain PyYAML silently takes the last of the values."""

    _depth = _values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._values += 1
        if self._depth > _DEEPEST:
            raise ValueError(_too_deep())
        if self._values > _MOST_VALUES:
            raise ValueError(_too_many())
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
            node.value = _whole(node.value)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' occurs twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        if len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"it holds a number of {len(node.value)} characters")
        if node.tag.endswith(":float"):
            return float(super().construct_yaml_float(node))
        number = int(super().construct_yaml_int(node))
        if not -_LARGEST_NUMBER <= number < _LARGEST_NUMBER:
            raise ValueError(f"it holds a number of {number.bit_length()} bits")
        return number


for _kind in ("int", "float"):
    _Limits.add_constructor(f"tag:yaml.org,2002:{_kind}", _Limits.construct_number)  # type: ignore[type-var]


class _Loader(_Limits, yaml.SafeLoader):
    """From the text, as PyYAML parses it."""


if CParser is not None:

    class _FastLoader(_Limits, CParser):
        """From the text, as libyaml parses it."""

        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)


def _check_extent(root: yaml.Node) -> None:
    """Raises ValueError if the nodes, including what they refer to, are too many, nested too deeply, or endless."""
    extents: dict[int, tuple[int, int] | None] = {}  # by node: number of values and depth; None while being counted

    def measure(node: yaml.Node) -> tuple[int, int]:
        known = extents.get(id(node), ())
        if known is None:
            raise ValueError("a value refers to itself")
        if known:
            return known
        extents[id(node)] = None
        pairs = isinstance(node, yaml.MappingNode)
        inside = [part for pair in node.value for part in pair] if pairs else node.value
        found = [measure(part) for part in inside] if isinstance(node, yaml.CollectionNode) else []
        count, depth = 1 + sum(count for count, _ in found), 1 + max((depth for _, depth in found), default=0)
        if count > _MOST_VALUES:
            raise ValueError(_too_many())
        if depth > _DEEPEST:
            raise ValueError(_too_deep())
        extents[id(node)] = count, depth
        return count, depth

    measure(root)


def _own(value: Any) -> Any:
    """A copy that shares nothing. Raises ValueError if it holds a lone surrogate, which no file can store."""
    if isinstance(value, dict):
        return {_own(key): _own(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_own(item) for item in value)
    return value
