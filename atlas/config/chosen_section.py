"""A section that comes in kinds: one of its keys says which, and other packages may add kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from atlas.config.section import Section
from atlas.errors import InputError
from atlas.system.plugins import PluginTable


@dataclass(frozen=True)
class Chosen:
    """Marks a field: `vision: Annotated[VisionSection, Chosen(VISION_ENCODERS, VisionSection, "name", "keypoints")]`.

    table: the kinds' sections by name; each derives from `base` and has that name as the default of `key`. default: the
    kind used if the key is left out. Errors inside a section are reported under the field's own key.
    """

    table: PluginTable[type[Any]]
    base: type[Section]
    key: str
    default: str

    def kind(self, values: Mapping[str, Any]) -> type[Section] | None:
        """The section class that plain values belong to; None if no kind has that name. Raises InputError if another
        package's class is not a proper section."""
        return self._section(values.get(self.key, self.default))

    def validate(self, values: Any) -> Any:
        """The checked section for plain values; a value that is already a section is returned unchanged.

        Raises ValueError (of pydantic's kinds), and InputError as `kind` does.
        """
        if isinstance(values, self.base):
            return values
        if not isinstance(values, Mapping):
            raise PydanticKnownError("model_type", {"class_name": self.base.__name__})
        kind = self.kind(values)
        if kind is None:
            raise PydanticKnownError(
                "union_tag_invalid",
                {
                    "discriminator": self.key,
                    "tag": str(values[self.key]),
                    "expected_tags": ", ".join(f"'{name}'" for name in self.table.names()),
                },
            )
        return kind.model_validate({self.key: self.default, **values})

    def _section(self, name: object) -> type[Section] | None:
        found = self.table.find(name)
        if found is None:
            return None
        sound = isinstance(found, type) and issubclass(found, self.base)
        if not sound or found.model_fields[self.key].default != name:
            raise InputError(
                f"'{name}' in {self.table.group} should be a section derived from {self.base.__name__} with "
                f'`{self.key}: Literal["{name}"] = "{name}"`, but is {found!r}.'
            )
        return found

    # ---- pydantic's hooks --------------------------------------------------------------------------------

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Every kind there is, including those of other packages."""
        kinds = [self._section(name) for name in self.table.names()]
        schemas = [kind.__pydantic_core_schema__ for kind in kinds if kind is not None]
        return handler(core_schema.union_schema(list(schemas)))
