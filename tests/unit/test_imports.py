"""What imports what, and other promises about the source that no single module can keep."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "distill").rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "local").glob("*.py"), *(ROOT / "tools").glob("*.py")])
BASE = {"config", "batch", "text", "features", "files", "extras"}
MAY_IMPORT = {
    "config": {"stages", "files"}, "batch": set(), "text": {"files"}, "features": {"batch", "config", "files"},
    "files": set(), "locks": set(), "contents": set(), "folders": set(), "launch": set(), "extras": set(),
    "stages": {"files", "locks", "contents", "folders", "launch", "extras"},
    "report": {"files", "folders"}, "differences": {"report", "files"},
    "pareto": {"report", "files"}, "speed": {"report", "pareto", "files"}, "benchmarks": {"report", "files"},
    "language_models": {"report", "differences", "files", "folders"},
    "confidences": {"report", "speed", "decode", "files"},
    "fsa": BASE,
    "graphs": BASE | {"fsa"},
    "data": BASE | {"fsa", "graphs"},
    "models": BASE,
    "losses": BASE | {"fsa"},
    "lm": BASE | {"graphs", "models"},
    "decode": BASE | {"fsa", "graphs", "models"},
    "train": BASE | {"launch", "fsa", "graphs", "data", "models", "losses", "decode", "lm"},
    "deploy": BASE | {"models", "decode"},
}  # fmt: skip
ONLY_IN = {
    "lhotse": ("data/",), "k2": ("fsa/k2.py",), "onnx": ("deploy/",), "onnxruntime": ("deploy/",),
    "argparse": ("stages.py",), "transformers": ("models/pretrained",), "s3prl": ("models/pretrained",),
    "triton": ("fsa/triton",),
}  # fmt: skip
LONGEST_FUNCTION = 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "distill").as_posix()


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, wherever in the file."""
    package = ("distill", *path.relative_to(ROOT / "distill").parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_directions(path: Path) -> list[str]:
    own = name_of(path).split("/")[0].removesuffix(".py")
    parts = {module.split(".")[1] for module in imported(path) if module.startswith("distill.")}
    return sorted(parts - MAY_IMPORT[own] - {own})


@pytest.mark.parametrize(
    "path", [p for p in LIBRARY if p.parent != ROOT / "distill" or p.stem != "__init__"], ids=name_of
)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_directions(path) == []


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_each_foreign_library_has_one_place(path: Path) -> None:
    foreign = {module.split(".")[0] for module in imported(path)}
    misplaced = [lib for lib, places in ONLY_IN.items() if lib in foreign and not name_of(path).startswith(places)]
    assert misplaced == []


@pytest.mark.parametrize(
    "name",
    [
        "files.py",
        "locks.py",
        "contents.py",
        "folders.py",
        "stages.py",
        "extras.py",
        "report.py",
        "differences.py",
        "language_models.py",
        "speed.py",
        "pareto.py",
        "data/layout.py",
    ],
)
def test_what_every_call_imports_is_quick(name: str) -> None:
    heavy = {"torch", "numpy", "lhotse", "pydantic"}
    assert heavy.isdisjoint(module.split(".")[0] for module in imported(ROOT / "distill" / name))


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_does_not_print(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_functions_fit_a_screen(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, kinds)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION]


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_pickles_are_never_loaded(path: Path) -> None:
    """torch.load without weights_only=True runs whatever the file says."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node), f"line {node.lineno}"


def test_no_file_names_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/|pypi\.org/simple|--(?:extra-)?index-url|file:///")
    found = []
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{name}:{i}: {line[:80]}" for i, line in enumerate(text.splitlines(), 1) if machine.search(line)]
    assert found == []
