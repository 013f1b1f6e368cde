"""A tree of settings, checked: errors name the key, what it is and what is allowed."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distill.config.files import option_of, overridden, read
from distill.config.names import hint

if TYPE_CHECKING:
    from typing_extensions import Self


UNKNOWN = "unknown key"


class WrongSettings(ValueError):
    """problems: file or option -> its errors in one line."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{where}: {text}" for where, text in problems.items()))
        self.problems = problems


class Settings(BaseModel):
    """Frozen node of the tree; an unknown key is an error that names the nearest known one.

    RENAMED: earlier names of keys, which checkpoints and users' YAML files still contain. SCOPE: what precedes the
    tree's keys in options --set.
    """

    SCOPE: ClassVar[str] = ""
    RENAMED: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values, problems = {cls.RENAMED.get(key, key): value for key, value in values.items()}, []
        for key in [key for key in values if key not in cls.model_fields]:
            problems.append(f"{UNKNOWN} {key!r:.80}{hint(str(key), cls.model_fields)}")
        if problems:
            raise ValueError("; ".join(problems))
        return values

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """From a YAML file and its `base`, then "a.b=value" overrides; a `name` is by default the file's.

        Raises FileNotFoundError, or ValueError naming key and file or option.
        """
        return cls._from(read(path), path, overrides)

    @classmethod
    def _from(cls, values: dict[str, Any], path: Path, overrides: Sequence[str]) -> Self:
        def parsed(chosen: Sequence[str]) -> Any:
            named = {"name": path.stem} if "name" in cls.model_fields else {}
            return cls.model_validate(named | overridden(values, chosen, cls.SCOPE))

        def errors(chosen: Sequence[str]) -> list[str]:
            try:
                parsed(chosen)
            except ValidationError as error:
                return _explain(error)
            return []

        try:
            settings: Self = parsed(overrides)
        except ValidationError as error:
            found, left, problems = _explain(error), list(overrides), dict[str, list[str]]()
        else:
            return settings
        while found:
            without, hiding = {o: errors([other for other in left if other != o]) for o in left}, set[str]()
            for text in found:  # an option is to blame for what is right without it
                options = [o for o, others in without.items() if text not in others]
                texts = problems.setdefault(", ".join(option_of(cls.SCOPE + o) for o in options) or str(path), [])
                texts += [text] if text not in texts else []
                hiding.update(options if UNKNOWN in text else ())  # what is below and beside it was not looked at
            left = [o for o in left if o not in hiding]
            found = errors(left) if hiding else []
        raise WrongSettings({where: "; ".join(texts) for where, texts in problems.items()})

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """From a nested mapping; raises ValueError with `where` it comes from and each wrong key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise WrongSettings({where: "; ".join(_explain(error))}) from None

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, for checkpoints and hashes."""
        return self.model_dump(mode="json")

    def changed(self) -> dict[str, Any]:
        """Those that differ from their defaults, as plain values: for names that a later setting must not change."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _explain(error: ValidationError) -> list[str]:
    """One line per error: its key, the rule and the value."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = re.sub(r"a valid dictionary or instance of \w+", "a mapping of settings", message)
        message = re.sub(r"\w+ should have (.*) after validation, not \d+", r"must have \1", message)
        of_a_node = item["type"] == "missing" or (item["type"] == "value_error" and isinstance(item["input"], Mapping))
        got = "" if of_a_node else f" (got {_SHORT.repr(item['input'])})"
        lines.append(f"{where + ': ' if where else ''}{message}{got}")
    return lines


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
