"""A tree of settings from YAML files, their bases and `key=value` overrides, with errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

Node = TypeVar("Node", bound="Settings")


class Settings(BaseModel):
    """Frozen node of the tree; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'{_nearest(key, cls.model_fields)}")
        return values


def load_settings(kind: type[Node], path: Path, overrides: Sequence[str] = ()) -> Node:
    """Settings that have a name, their file's: read it and its `base`, apply "a.b=value" overrides.

    Raises FileNotFoundError, or ValueError naming file and key.
    """
    values = overridden(read(path), overrides)
    values.setdefault("name", path.stem)
    return parsed(kind, values, str(path))


def parsed(kind: type[Node], values: Mapping[str, Any], where: str) -> Node:
    """Checked settings; raises ValueError with `where` they come from and each wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(error)}") from None


def read(path: Path) -> dict[str, Any]:
    """Values of a YAML file over those of its `base`; raises FileNotFoundError, or ValueError for no mapping."""
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=1)
        raise FileNotFoundError(f"no experiment at {path}{f'; did you mean {near[0]}?' if near else ''}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    base = values.pop("base", None)
    return _merge(read(path.parent / base), values) if base else values


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Values with each "a.b=value" applied; raises ValueError for text of another form."""
    changed = dict(values)
    for override in overrides:
        _override(changed, override)
    return changed


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override '{override}' is not of the form key=value, such as optim.lr=1e-3")
    *parents, leaf = key.split(".")
    for parent in parents:
        node = values.get(parent)
        values[parent] = dict(node) if isinstance(node, dict) else {}
        values = values[parent]
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override '{override}': not a valid value: {error}") from None


def _nearest(key: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        got = "" if isinstance(item.get("input"), dict) else f" (got {item.get('input')!r})"
        lines.append(f"{where + ': ' if where else ''}{message}{got}")
    return "; ".join(lines)
