"""A section that comes in kinds: one of its keys says which, and other packages may add some."""

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

    table: the kinds' sections by name; each is a `base` and has that name as the default of `key`. default: the kind
    that is meant where the key is left out. What a section complains of, it complains of under the field's own key.
    """

    table: PluginTable[type[Any]]
    base: type[Section]
    key: str
    default: str

    def kind(self, values: Mapping[str, Any]) -> type[Section] | None:
        """The section that plain values are of; None where no kind has that name. Raises InputError for one of another
        package that is not as it should be."""
        return self._section(values.get(self.key, self.default))

    def validate(self, values: Any) -> Any:
        """The section of plain values, checked; one that is a section already is left as it is.

        Raises ValueError (of pydantic's kinds), and InputError as `kind`.
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
                f'`{self.key}: Literal["{name}"] = "{name}"`, and is {found!r}.'
            )
        return found

    # ---- what pydantic asks for --------------------------------------------------------------------------

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Each kind that there is, those of other packages too."""
        kinds = [self._section(name) for name in self.table.names()]
        schemas = [kind.__pydantic_core_schema__ for kind in kinds if kind is not None]
        return handler(core_schema.union_schema(list(schemas)))
