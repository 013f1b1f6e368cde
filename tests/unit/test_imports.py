"""What imports what, and other promises about the source that no single module can keep."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "distill").rglob("*.py"))
SCRIPTS = sorted(path for folder in ("local", "tools", "benchmarks") for path in (ROOT / folder).glob("*.py"))
BASE = {"config", "batch", "text", "mel", "fbank", "files", "extras", "precision"}
GRAPHS = BASE | {"kernels", "fsa", "search", "lfmmi", "graphs"}
MAY_IMPORT = {
    "config": {"files"}, "batch": {"config"}, "text": {"files"}, "mel": {"config"},
    "fbank": {"config", "mel", "precision"}, "files": set(), "extras": set(), "precision": set(), "kernels": {"files"},
    "fsa": BASE, "search": BASE | {"kernels", "fsa"}, "lfmmi": BASE | {"kernels", "fsa", "search"},
    "graphs": GRAPHS, "synthetic": BASE, "corpora": BASE | {"synthetic"}, "data": GRAPHS | {"corpora", "synthetic"},
    "models": BASE, "losses": BASE | {"fsa", "lfmmi", "models"}, "lm": GRAPHS | {"models"},
    "scoring": BASE, "decode": GRAPHS | {"models", "scoring"},
    "train": GRAPHS | {"corpora", "data", "models", "losses", "decode", "lm", "analysis"},
    "export": BASE | {"models"}, "runtime": BASE | {"models", "decode", "export"},
    "server": BASE | {"runtime", "decode", "models"}, "report": BASE | {"scoring"},
    "analysis": GRAPHS | {"models", "losses", "decode"},
    "plan": BASE | {"models", "losses", "report"},
    "recipe": GRAPHS | {
        "corpora", "data", "models", "losses", "lm", "scoring", "decode", "train", "export", "runtime", "report",
    },
    "superb": BASE | {"corpora", "data", "models", "report", "recipe"},
}  # fmt: skip
"""Rooms and files at the root, and what each may import; a room below another is part of it."""
ONLY_IN = {
    "lhotse": ("corpora/", "data/"), "k2": ("lfmmi/k2.py",), "onnx": ("export/",),
    "onnxruntime": ("export/", "runtime/"), "argparse": ("recipe/",), "transformers": ("models/pretrained",),
    "s3prl": ("superb/",), "triton": ("lfmmi/triton",),
}  # fmt: skip
LONGEST_FUNCTION = 60
LARGEST_ROOM = 0.12  # of the library's lines


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "distill").as_posix()


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, wherever in the file."""
    package = path.relative_to(ROOT).parent.parts
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


def test_no_room_is_too_large() -> None:
    lines = Counter[str]()
    for path in LIBRARY:
        lines[name_of(path).split("/")[0]] += len(path.read_text(encoding="utf-8").splitlines())
    (room, largest), *_ = lines.most_common(1)
    assert largest <= LARGEST_ROOM * lines.total(), room


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {".".join(("distill", *path.relative_to(ROOT / "distill").with_suffix("").parts)): path for path in LIBRARY}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    below = {
        name: {m if m in files else m.rpartition(".")[0] for m in imported(path)} & set(files)
        for name, path in files.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in below[name] - {name}:
                visit(other, (*way, name))
            done.add(name)

    for name in files:
        visit(name, ())


def test_no_script_imports_a_script() -> None:
    scripts = {path.stem: path for path in SCRIPTS if "__main__" in path.read_text(encoding="utf-8")}
    for path in SCRIPTS:
        modules = list(imported(path))
        beside = {p.stem for p in SCRIPTS if p.parent == path.parent} if path.parent.name != "benchmarks" else set()
        assert not beside & {module.split(".")[0] for module in modules}, path.name
        of_package = {m.split(".")[1] for m in modules if m.startswith(("benchmarks.", "local.", "tools."))}
        assert not of_package & set(scripts), f"{path.name} imports {of_package & set(scripts)}"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_each_foreign_library_has_one_place(path: Path) -> None:
    foreign = {module.split(".")[0] for module in imported(path)}
    misplaced = [lib for lib, places in ONLY_IN.items() if lib in foreign and not name_of(path).startswith(places)]
    assert misplaced == []


QUICK = """import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if heavy := sorted({"torch", "numpy", "scipy", "lhotse", "soundfile"} & sys.modules.keys()):
        sys.exit(f"{name} imports {', '.join(heavy)}")
"""


def test_what_every_call_imports_is_quick() -> None:
    """A script imports heavy libraries, directly or through others, only when its stage has work to do."""
    scripts = [f"local.{p.stem}" for p in SCRIPTS if p.parent.name == "local" and p.stem != "report"]  # always at work
    modules = [*scripts, "distill.report.plots", "distill.report.recognition", "distill.corpora.kaldi"]
    done = subprocess.run([sys.executable, "-c", QUICK, *modules], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_does_not_print(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_functions_fit_a_screen(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, kinds)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION]


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_pickles_are_never_loaded(path: Path) -> None:
    """torch.load without weights_only=True runs any code in the file."""
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
