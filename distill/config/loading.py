"""A tree of settings, checked: errors name the key, what it is and what is allowed."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distill.config.files import overridden, read

if TYPE_CHECKING:
    from typing_extensions import Self


class Settings(BaseModel):
    """Frozen node of the tree; an unknown key is an error that names the nearest known one.

    RENAMED: earlier names of keys, which checkpoints and users' YAML files still contain.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values, problems = {cls.RENAMED.get(key, key): value for key, value in values.items()}, []
        for key in [key for key in values if key not in cls.model_fields]:
            near = difflib.get_close_matches(str(key), list(cls.model_fields), n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(cls.model_fields)}"
            problems.append(f"unknown key {key!r:.80}{hint}")
        if problems:
            raise ValueError("; ".join(problems))
        return values

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """From a YAML file and its `base`, then "a.b=value" overrides; a `name` is by default the file's.

        Raises FileNotFoundError, or ValueError naming file and key.
        """
        return cls._from(read(path), path, overrides)

    @classmethod
    def _from(cls, values: dict[str, Any], path: Path, overrides: Sequence[str]) -> Self:
        try:
            values = overridden(values, overrides)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if "name" in cls.model_fields:
            values.setdefault("name", path.stem)
        return cls.parse(values, str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """From a nested mapping; raises ValueError with `where` it comes from and each wrong key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{where}: {_explain(error)}") from None

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, for checkpoints and hashes."""
        return self.model_dump(mode="json")


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = re.sub(r"a valid dictionary or instance of \w+", "a mapping of settings", message)
        message = re.sub(r"\w+ should have (.*) after validation, not \d+", r"must have \1", message)
        of_a_node = item["type"] == "missing" or (item["type"] == "value_error" and isinstance(item["input"], Mapping))
        got = "" if of_a_node else f" (got {_SHORT.repr(item['input'])})"
        lines.append(f"{where + ': ' if where else ''}{message}{got}")
    return "; ".join(lines)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
