"""A tree of settings, checked: errors name the key, what it is and what is allowed."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distill.config.files import overridden, read

Node = TypeVar("Node", bound="Settings")


class Settings(BaseModel):
    """Frozen node of the tree; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            unknown = [key for key in values if key not in cls.model_fields]
            if unknown:
                raise ValueError(
                    "; ".join(f"unknown key {key!r:.80}{_nearest(key, cls.model_fields)}" for key in unknown)
                )
        return values


def load_settings(kind: type[Node], path: Path, overrides: Sequence[str] = ()) -> Node:
    """Settings that have a name, their file's: read it and its `base`, apply "a.b=value" overrides.

    Raises FileNotFoundError, or ValueError naming file and key.
    """
    values = read(path)
    try:
        values = overridden(values, overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    values.setdefault("name", path.stem)
    return parsed(kind, values, str(path))


def parsed(kind: type[Node], values: Mapping[str, Any], where: str) -> Node:
    """Checked settings; raises ValueError with `where` they come from and each wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(error)}") from None


def _nearest(key: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"


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
