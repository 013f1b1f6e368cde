"""What is checked before anything is installed, how a wheel is chosen, and what counts as installed."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distill import extras
from distill.recipe.script import run_script

ROOT = Path(__file__).resolve().parents[2]
FETCH = ROOT / "local" / "fetch_wheel.py"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def sourced(root: Path, command: str, **environment: str) -> subprocess.CompletedProcess:
    """A command of local/environment.sh, for a project that lies in `root`."""
    script = f"root={root}; source {ROOT}/local/environment.sh; {command}"
    return subprocess.run(
        ["bash", "-euc", script], capture_output=True, text=True, env={**os.environ, "TMPDIR": str(root), **environment}
    )


@pytest.mark.parametrize(("room", "message"), [("0 0", ""), ("900000 1", "installing needs 900001 GiB free in ")])
def test_a_full_disk_is_reported_before_installing(room: str, message: str) -> None:
    done = sourced(ROOT, f"need_room {room}")
    assert bool(done.returncode) == bool(message)
    assert done.stderr.startswith(message)


def test_nothing_is_installed_through_a_link(tmp_path: Path) -> None:
    """The project that it belongs to would be this one."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "other").mkdir()
    (tmp_path / ".venv").symlink_to(tmp_path / "other")
    done = sourced(tmp_path, "install_environment synth")
    assert done.returncode == 1 and not list((tmp_path / "other").iterdir())
    assert re.match(r".*/\.venv is a link, and lacks synth: install in the folder that it leads to", done.stderr)


def wheel(path: Path, tag: str) -> Path:
    """A wheel named for one Python with a module `toy` with that name, as k2's wheels are."""
    made = path / f"toy-1.2-py{tag}-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("toy.py", f"tag = {tag!r}\n")
        archive.writestr("toy-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.2\n")
        archive.writestr("toy-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.2.dist-info/RECORD", "")
    return made


def index(folder: Path, tags: tuple[str, ...], wrong_hash: bool = False) -> dict[str, str]:
    """pip's settings for an index of its own in a folder, whose page lists a wheel for each tag."""
    page = folder / "simple" / "toy"
    page.mkdir(parents=True)
    lines = []
    for path in (wheel(page, tag) for tag in tags):
        digest = "0" * 64 if wrong_hash else hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f'<a href="{path.name}#sha256={digest}">{path.name}</a>')
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(lines)}</body></html>")
    return {**alone(), "PIP_INDEX_URL": (folder / "simple").as_uri()}


def alone() -> dict[str, str]:
    """pip without the settings of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def fetch(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(FETCH), "toy==1.2", str(folder)], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("place", ["index", "extra index", "folder", "pip.conf"])
def test_the_wheel_of_this_python_is_chosen_by_its_name(place: str, tmp_path: Path) -> None:
    settings = index(tmp_path, ("3.7", "3.99", HERE, "3.8"))
    url, page = settings["PIP_INDEX_URL"], tmp_path / "simple" / "toy"
    if place == "extra index":
        (tmp_path / "empty").mkdir()
        settings |= {"PIP_INDEX_URL": (tmp_path / "empty").as_uri(), "PIP_EXTRA_INDEX_URL": url}
    elif place == "folder":
        settings = {**alone(), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(page)}
    elif place == "pip.conf":
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")
        settings = {**alone(), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    done = fetch(tmp_path, settings)
    found = Path(done.stdout.strip())
    assert (done.returncode, found.name) == (0, f"toy-1.2-cp{HERE.replace('.', '')}-none-any.whl"), done.stderr
    if place != "index":
        return
    target, pip = tmp_path / "installed", [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--quiet", "--no-index", "--target", target, found], check=True, env=alone())
    assert (target / "toy.py").read_text() == f"tag = {HERE!r}\n"


def test_a_wheel_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    for name in ("none", "damaged"):
        (tmp_path / name).mkdir()
    missing = fetch(tmp_path, index(tmp_path / "none", ("3.7", "3.8")))
    assert missing.returncode and f"no wheel for Python {HERE} among the 2 files" in missing.stderr
    assert "toy-1.2-py3.7-none-any.whl" in missing.stderr and "Traceback" not in missing.stderr
    damaged = fetch(tmp_path, index(tmp_path / "damaged", (HERE,), wrong_hash=True))
    assert damaged.returncode and re.search(r"has the sha256 \w{64}, expected 0{64}", damaged.stderr)
    assert [path.name for path in tmp_path.glob("toy*")] == []


def python_that(folder: Path, fails_at: str) -> Path:
    """A Python whose venv has a stand-in: it logs its arguments, and fails where `fails_at` occurs."""
    tool, made = folder / "tool", folder / "python3"
    seen = "$* bytecode:${PYTHONDONTWRITEBYTECODE-written}"
    tool.write_text(f'#!/bin/bash\necho "{seen}" >>{folder}/asked\n[[ "$*" != *"{fails_at}"* ]]\n')
    made.write_text(f'#!/bin/bash\n[[ $1 == -m ]] || exit 0\nmkdir -p "$3/bin" && cp {tool} "$3/bin/python"\n')
    for path in (tool, made):
        path.chmod(0o755)
    return made


@pytest.mark.parametrize(
    ("name", "fails_at"),
    [
        *(("k2", step) for step in ("fetch_wheel.py", "pip install", "import k2", "nothing at all")),
        *(("superb", step) for step in ("wheel==", "--requirement", "import s3prl", "nothing at all")),
    ],
)
def test_an_environment_beside_counts_only_once_it_has_been_used(name: str, fails_at: str, tmp_path: Path) -> None:
    (tmp_path / f"constraints-{name}.txt").write_text("k2==1.23.4\nwheel==0.45.1\n")
    python, venv = python_that(tmp_path, fails_at), tmp_path / f".venv-{name}"
    done = sourced(tmp_path, f"need_room() {{ :; }}; install_beside {name}", PYTHON310=str(python))
    asked = (tmp_path / "asked").read_text()
    if fails_at != "nothing at all":
        assert done.returncode and f".venv-{name} is removed again; see the lines above" in done.stderr
        assert not venv.exists() and fails_at in asked
    else:
        assert done.returncode == 0, done.stderr
        assert f"import {'k2' if name == 'k2' else 's3prl'}" in asked and (venv / ".installed").is_file()


@pytest.mark.parametrize("fails_at", ["pip install", "distill.extras", "nothing at all"])
def test_the_environment_counts_only_once_it_has_been_used(fails_at: str, tmp_path: Path) -> None:
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    python = python_that(tmp_path, fails_at)
    call = "need_room() { :; }; install_environment dev,deploy"
    done = sourced(tmp_path, call, PYTHON=str(python), PYTHONDONTWRITEBYTECODE="1")
    assert (tmp_path / ".venv" / ".installed").is_file() == (done.returncode == 0) == (fails_at == "nothing at all")
    asked = (tmp_path / "asked").read_text()
    assert fails_at == "pip install" or "-m distill.extras deploy dev bytecode:written" in asked
    sourced(tmp_path, call, PYTHON=str(python))
    again = (tmp_path / "asked").read_text() != asked
    assert again == bool(done.returncode)  # what failed is tried again, what works costs nothing


@pytest.mark.parametrize("name", [".venv", ".venv-k2"])
def test_of_two_calls_one_installs(name: str, tmp_path: Path) -> None:
    for each in ("constraints.txt", "pyproject.toml"):
        (tmp_path / each).write_text("")
    (tmp_path / "constraints-k2.txt").write_text("k2==1.23.4\n")
    python = python_that(tmp_path, "nothing at all")
    tool = tmp_path / "tool"
    tool.write_text(tool.read_text().replace("#!/bin/bash\n", "#!/bin/bash\nsleep 0.5\n"))
    install = "install_environment dev" if name == ".venv" else "install_beside k2"
    call = f"need_room() {{ :; }}; {install}"
    done = sourced(tmp_path, f"({call}) & ({call}); wait", PYTHON=str(python), PYTHON310=str(python))
    assert done.returncode == 0, done.stderr
    assert f"== waiting for another call that installs {name}\n" in done.stdout
    asked = (tmp_path / "asked").read_text()
    assert asked.count("pip install") == 1 and (tmp_path / name / ".installed").is_file()


def test_an_installation_names_its_packages(tmp_path: Path) -> None:
    printed = (
        r"  Installing build dependencies: done\nCollecting torch==2.8.0 (from distill-asr)\n"
        r"  Downloading torch.whl (9 MB)\nInstalling collected packages: a"
    )
    done = sourced(tmp_path, f"printf '{printed}\\n' | show_packages")
    assert done.stdout == "   fetching torch==2.8.0\n   installing these packages\n"
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    python = python_that(tmp_path, "nothing at all")
    done = sourced(tmp_path, "need_room() { :; }; install_environment dev,deploy", PYTHON=str(python))
    assert "== installing the project with deploy dev into .venv: once, 2 to 10 minutes, about 5 GB" in done.stdout


@pytest.mark.parametrize("marked", ["deploy dev", "dev deploy", "dev deploy synth", "synth dev deploy"])
@pytest.mark.parametrize("asked", ["dev,deploy", "deploy,dev", "dev"])
def test_the_order_of_extras_installs_nothing(marked: str, asked: str, tmp_path: Path) -> None:
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    call, python = "need_room() { :; }; install_environment", python_that(tmp_path, "nothing at all")
    sourced(tmp_path, f"{call} serve", PYTHON=str(python))
    marker = tmp_path / ".venv/.installed"
    marker.write_text(f"{marker.read_text().split()[0]} {marked}\n")
    (tmp_path / "asked").unlink()
    sourced(tmp_path, f"{call} {asked}", PYTHON=str(python))
    assert not (tmp_path / "asked").exists()
    sourced(tmp_path, f"{call} {asked},serve", PYTHON=str(python))
    assert marker.read_text().split()[1:] == sorted({*marked.split(), "serve"})


def test_a_broken_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "ALWAYS", ("json",))
    monkeypatch.setattr(extras, "PARTS", ("json.decoder", "onnxruntime.no_such_part"))
    assert extras.broken(["serve"]) == [] != extras.broken(["deploy"])
    monkeypatch.setitem(sys.modules, "websockets", None)
    (line,) = extras.broken(["serve"])
    assert line.startswith("websockets cannot be imported: ModuleNotFoundError")


def test_every_extra_of_the_project_has_its_modules() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert set(re.findall(r"^(\w+) = ", block, re.M)) == set(extras.EXTRAS)
    names = re.findall(r'"([a-z0-9-]+)(?:\[[a-z0-9,]+\])?>=', block)
    modules = {"hibari-tts": "hibari"}
    asked = {modules.get(name, name.replace("-", "_")) for name in names} | {"ruff", "mypy", "pre_commit"}
    assert {module for modules in extras.EXTRAS.values() for module in modules} <= asked


@pytest.mark.parametrize("folder", ["README.md", "docs", "distill", "local", "tools", "egs"])
def test_every_command_that_installs_the_project_has_its_constraints(folder: str) -> None:
    places = [ROOT / folder] if folder.endswith(".md") else (ROOT / folder).rglob("*")
    texts = [p.read_text(encoding="utf-8") for p in places if p.suffix in (".py", ".md", ".sh") and p.is_file()]
    commands = [line for text in texts for line in text.splitlines() if re.search(r"pip install.* -e ", line)]
    assert [line for line in commands if ".venv/bin/pip install -c constraints.txt -e" not in line] == []


LACKING = """import runpy, sys
sys.modules[{module!r}] = None
sys.path[:0] = ["tools", "local"]
sys.argv = {argv!r}
runpy.run_path({argv!r}[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "argv", "extra"),
    [
        ("websockets", ["tools/serve.py", "--experiment", "none"], "serve"),
        ("websockets", ["benchmarks/server.py", "--experiment", "none"], "serve"),
    ],
)
def test_a_tool_names_the_extra_that_it_lacks(module: str, argv: list[str], extra: str) -> None:
    script = LACKING.format(module=module, argv=argv)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        f"{Path(argv[0]).name} needs {module}" in done.stderr
        and f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'" in done.stderr
    )


@pytest.mark.parametrize("module", [module for modules in extras.EXTRAS.values() for module in modules])
def test_a_script_names_the_extra_of_any_missing_package(module: str, monkeypatch, caplog) -> None:
    def main() -> None:
        importlib.import_module(f"{module}.part")

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit):
        run_script(main)
    (extra,) = [name for name, modules in extras.EXTRAS.items() if module in modules]
    assert (
        f"needs {module}," in caplog.text and f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'" in caplog.text
    )


def test_a_missing_module_of_nobodys_stays_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_script(lambda: importlib.import_module("no_such_module"))
