"""YAML files of settings, merged over their bases, and "key=value" overrides.

An unambiguous subset of YAML: mappings with text as keys, none twice, lists, text, numbers, true and false, null.
010, 1:30, 2024-01-01 are text; 1e-3 is a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill.config.names import NAME, NAME_RULE, hint

MOST_BYTES, MOST_VALUES, DEEPEST = 1 << 20, 10_000, 20
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")  # YAML's types that settings have
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
DECIMAL = re.compile(
    r"(?:[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)


def _plain(tag: str | None, kinds: Sequence[str]) -> bool:
    return tag is None or str(tag).rpartition(":")[2] in kinds


_CONSTRUCTORS = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if _plain(tag, PLAIN)}
_RESOLVERS = {
    first: [pair for pair in pairs if _plain(pair[0], ("null", "bool", "merge"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """Refuses keys that are not text or duplicate, and types that no setting has."""

    yaml_constructors = _CONSTRUCTORS
    yaml_implicit_resolvers = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                name = repr(key.value) if isinstance(key, yaml.ScalarNode) else f"of type {key.tag.rpartition(':')[2]}"
                raise yaml.MarkedYAMLError(problem=f"key {name:.80} is not text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r:.80} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, kind: type) -> None:
        self._check_depth(self.flow_level)  # here: the scanner takes quadratic time in the depth
        super().fetch_flow_collection_start(kind)

    def add_indent(self, column: int) -> bool:
        self._check_depth(len(self.indents))
        return super().add_indent(column)

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=self.get_mark())


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", DECIMAL, list("-+0123456789."))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; raises ValueError with `where` it is from, the line, and the reason."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = "; ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{where}: not valid YAML: {line}{reason}") from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two: text that an explicit tag does not fit
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{where}: nested more than {DEEPEST} deep") from None
    _check_size(value, where)
    return value


def _check_size(value: Any, where: str) -> None:
    """Raise ValueError for a tree with too many values, as aliases of aliases make it, or too deep a one."""
    waiting, count = [(value, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise ValueError(f"{where}: nested more than {DEEPEST} deep")
        if count > MOST_VALUES:
            raise ValueError(f"{where}: more than {MOST_VALUES} values")
        if isinstance(node, (dict, list)):
            waiting += [(child, depth + 1) for child in (node.values() if isinstance(node, dict) else node)]


def read(path: Path) -> dict[str, Any]:
    """Values of a YAML file over those of its `base`, over those of that one's, and so on.

    Raises FileNotFoundError, or ValueError naming the file, of bases the chain of files.
    """
    merged_values: dict[str, Any] = {}
    chain = [path]
    while True:
        names = " -> ".join(path.name for path in chain)
        led_by = f" (by base: {names})" if len(chain) > 1 else ""
        if chain[-1] in chain[:-1]:
            raise ValueError(f"{path}: its bases form a circle: {names}")
        values = _read_one(chain[-1], led_by)
        base = values.pop("base", None)
        if len(chain) > 1:
            values.pop("name", None)  # a name is its own file's
        merged_values = merged(values, merged_values)
        if base is None:
            return merged_values
        parts = base.split("/") if isinstance(base, str) else []
        if not parts or not all(NAME.fullmatch(part) for part in parts):
            raise ValueError(
                f"{chain[-1]}: base: must be the name of one YAML file beside this one or below (got {base!r:.60})"
                f"{led_by}; a name has {NAME_RULE}"
            )
        chain.append(chain[-1].parent.joinpath(*parts))


def _read_one(path: Path, led_by: str) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(other.stem for other in (path if path.is_dir() else path.parent).glob("*.yaml"))
        raise FileNotFoundError(f"no experiment at {path}{led_by}{hint(path.stem, known)}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}{led_by}: has {path.stat().st_size} bytes; settings have at most {MOST_BYTES}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}{led_by}: line {line} has byte 0x{error.object[error.start]:02x}, which is not UTF-8;"
            " save the file in UTF-8"
        ) from None
    values = parse_yaml(text, f"{path}{led_by}")
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}{led_by}: expected a mapping of settings, got {type(values).__name__}")
    return values or {}


def merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`: mappings are merged, all else is replaced."""
    both = dict(base)
    for key, value in values.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def option_of(setting: str) -> str:
    """The option that gives a setting, shortened for messages."""
    return f"--set {setting!r}" if len(setting) <= 100 else f"--set {setting[:100]!r}…"


def overridden(values: Mapping[str, Any], overrides: Sequence[str], scope: str = "") -> dict[str, Any]:
    """Values with each "a.b=value" merged in; raises ValueError with all options --set that have another form.

    scope: what precedes the keys of these settings in the options, such as "lm.".
    """
    changed, problems = dict(values), []
    for override in overrides:
        try:
            changed = _override(changed, override, option_of(scope + override))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return changed


def _override(values: dict[str, Any], override: str, option: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    keys = key.split(".")
    if not equals or not all(keys):
        raise ValueError(f"{option} is not of the form key=value, such as optim.lr=1e-3")
    if len(keys) > DEEPEST:
        raise ValueError(f"{option}: its key is nested more than {DEEPEST} deep")
    node: Any = values
    for depth, name in enumerate(keys[:-1], 1):
        node = node.get(name)
        if not isinstance(node, dict):
            if node is None:
                break
            raise ValueError(f"{option}: {'.'.join(keys[:depth])} is {node!r:.60}, which has no settings below it")
    value = parse_yaml(text, option)
    for name in reversed(keys):
        value = {name: value}
    return merged(values, value)
