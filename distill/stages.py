"""The stage contract: what a stage reads, what it leaves behind, and when it may be passed over.

A stage writes into a temporary folder that is renamed when complete, and leaves `.done` with a hash of
its settings and inputs. The same hash again: nothing to do. Another hash: done again, saying why. Only
the standard library is imported, so asking a finished recipe costs no time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from distill.extras import explained

log = logging.getLogger(__name__)

ENGINES = ("native", "torch", "k2")
UNITS = ("phones", "chars", "bpe", "biphones")
TOPOLOGIES = ("ctc", "ctc_compact", "two_pdf")  # the first is what units come with
GRAPHS, LM = "graphs.", "lm."
NO_K2 = (
    "--engine k2 needs k2, which this Python does not have; wheels for each torch stand at"
    " https://k2-fsa.github.io/k2/installation. --engine native gives the same values, faster"
)


def mark(variant: str) -> str:
    """What folders and experiments of other units or another topology are marked with; nothing for plain phones."""
    return "" if variant == "phones" else f"_{variant}"


@dataclass(frozen=True)
class Recipe:
    """The options of one call of a recipe's run.sh, and the folders that follow from them."""

    corpus: str
    conf_dir: Path
    data_dir: Path
    exp_dir: Path
    corpus_dir: Path | None
    nj: int
    device: str
    engine: str
    units: str
    topology: str
    mini: bool
    rehearse: bool
    settings: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def manifests(self) -> Path:
        return self.data_dir / "manifests"

    @property
    def cuts(self) -> Path:
        return self.data_dir / "cuts"

    @property
    def fbank(self) -> Path:
        return self.data_dir / "fbank"

    @property
    def text(self) -> Path:
        return self.data_dir / "text"

    @property
    def variant(self) -> str:
        """Units, and the topology where it is not the usual one: `biphones`, `phones_two_pdf`."""
        return self.units if self.topology == TOPOLOGIES[0] else f"{self.units}_{self.topology}"

    @property
    def suffix(self) -> str:
        """The variant's `mark`."""
        return mark(self.variant)

    @property
    def lang(self) -> Path:
        return self.data_dir / f"lang_{self.variant}"

    @property
    def lm(self) -> Path:
        return self.data_dir / f"lm{self.suffix}"

    @property
    def graphs(self) -> Path:
        return self.data_dir / f"graphs{self.suffix}"

    @property
    def num(self) -> Path:
        return self.data_dir / "num"

    @property
    def graph_overrides(self) -> tuple[str, ...]:
        """The `--set graphs.KEY=VALUE` of this call, without "graphs."."""
        return tuple(item.removeprefix(GRAPHS) for item in self.settings if item.startswith(GRAPHS))

    @property
    def lm_overrides(self) -> tuple[str, ...]:
        """The `--set lm.KEY=VALUE` of this call, without "lm."."""
        return tuple(item.removeprefix(LM) for item in self.settings if item.startswith(LM))

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set KEY=VALUE` that concern experiments."""
        return tuple(item for item in self.settings if not item.startswith((GRAPHS, LM)))

    @property
    def graphs_yaml(self) -> Path:
        """Settings of language models and graphs; the file need not be there."""
        return self.conf_dir / "graphs.yaml"

    @property
    def lm_yaml(self) -> Path:
        """Settings of the Transformer language model."""
        return self.conf_dir / "lm.yaml"

    def exp(self, name: str) -> Path:
        """Folder of an experiment, by its full name (`Experiment.name`)."""
        return self.exp_dir / name

    def experiment_yaml(self, name: str) -> Path:
        """Settings of an experiment; raises FileNotFoundError with the known ones, the nearest first."""
        path = self.conf_dir / f"{name}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in self.conf_dir.glob("*.yaml") if p not in (self.graphs_yaml, self.lm_yaml))
            near = get_close_matches(name, known, n=len(known) or 1, cutoff=0.0)
            raise FileNotFoundError(f"no experiment '{name}' in {self.conf_dir}; there are: {', '.join(near)}")
        return path


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every stage script takes; run.sh passes them on."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", required=True, help="name of the recipe below egs/")
    for name in ("conf-dir", "data-dir", "exp-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--corpus-dir", default="", help="where the corpus lies; empty: the recipe's default")
    parser.add_argument("--experiment", default="", help="comma-separated names of YAML files")
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="processes and threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--engine", default="native", help=", ".join(ENGINES))
    parser.add_argument("--units", default="phones", help=", ".join(UNITS))
    parser.add_argument("--topology", default="", help=f"{', '.join(TOPOLOGIES)}; empty: {TOPOLOGIES[0]}")
    parser.add_argument("--mini", choices=("true", "false"), default="false")
    parser.add_argument("--rehearse", choices=("true", "false"), default="false")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    return parser


def log_to_console() -> None:
    """Time, level and message of everything from INFO up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe of parsed options; also sets up logging and the thread count for the script."""
    log_to_console()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.nj))
    units = _known("--units", args.units, UNITS)
    if _known("--engine", args.engine, ENGINES) == "k2" and importlib.util.find_spec("k2") is None:
        raise ValueError(NO_K2)
    topology = _known("--topology", args.topology or TOPOLOGIES[0], TOPOLOGIES)
    return Recipe(
        args.corpus, args.conf_dir, args.data_dir, args.exp_dir, Path(args.corpus_dir) if args.corpus_dir else None,
        args.nj, args.device, args.engine, units, topology, args.mini == "true", args.rehearse == "true",
        tuple(args.set), tuple(name for name in args.experiment.split(",") if name),
    )  # fmt: skip


def _known(option: str, value: str, known: Iterable[str]) -> str:
    """The value, if it is known; else ValueError with the known ones, the nearest first."""
    if value not in known:
        near = get_close_matches(value, list(known), n=len(list(known)), cutoff=0.0)
        raise ValueError(f"{option} {value} is not known; did you mean '{near[0]}'? There are: {', '.join(near)}")
    return value


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: user errors become one line, an interruption a quiet exit."""
    try:
        main()
    except (ValueError, FileNotFoundError, FloatingPointError, RuntimeError) as error:
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        log.error("%s (DISTILL_TRACEBACK=1 shows where)", error)
        sys.exit(1)
    except ImportError as error:
        message = explained(error, Path(sys.argv[0]).name) if error.name else str(error)  # ours explain themselves
        if not message or os.environ.get("DISTILL_TRACEBACK"):
            raise
        log.error("%s", message)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def command_line() -> str:
    """What results name as the command that made them: run.sh's where it started this script, else the script's."""
    return shlex.join(shlex.split(os.environ.get("RECIPE_COMMAND", "")) or sys.argv)


class Stage:
    """One stage with one output folder.

    inputs: files or folders it reads -> number of the stage that writes them. resumable: the work
    continues in the folder itself after a kill, as long as settings and inputs are the same.
    """

    def __init__(
        self, number: int, out: Path, settings: Mapping[str, Any], inputs: Mapping[Path, int], resumable: bool = False
    ) -> None:
        self.number, self.out, self.resumable = number, Path(out), resumable
        self.settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        self.inputs = {Path(path): stage for path, stage in inputs.items()}

    def check_inputs(self) -> None:
        """Raise FileNotFoundError naming the stage that makes what is missing."""
        for path, stage in self.inputs.items():
            if not path.exists() or (path.is_dir() and not (path / ".done").exists()):
                raise FileNotFoundError(
                    f"stage {self.number} needs {path}, which stage {stage} makes; run it first:"
                    f" run.sh --stage {stage} --stop-stage {stage} with the same options"
                )

    def identity(self) -> dict[str, Any]:
        """Settings and hashes of the inputs: what must be equal for the output to be valid."""
        inputs = {f"{path.parent.name}/{path.name}": _input_hash(path) for path in self.inputs}
        return {"settings": self.settings, "inputs": inputs}

    def up_to_date(self) -> bool:
        """Whether the output was made from these settings and inputs; logs what changed if not."""
        done = _read_json(self.out / ".done")
        if done is None:
            return False
        changes = _changes(done, self.identity())
        if changes:
            log.info("stage %d: making %s again: %s", self.number, self.out, "; ".join(changes))
        return not changes

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """The folder to write into; renamed and marked done when the block ends without an error."""
        self.check_inputs()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        identity, started = self.identity(), time.monotonic()
        with _lock(self.out.with_name(self.out.name + ".lock")):
            folder = self._open(identity)
            yield folder
            done = {**identity, "hash": _hash(identity), "seconds": round(time.monotonic() - started, 1)}
            write_json(folder / ".done", done)
            if folder != self.out:
                _replace_folder(folder, self.out)

    def _open(self, identity: Mapping[str, Any]) -> Path:
        folder = self.out if self.resumable else self.out.with_name(self.out.name + ".tmp")
        before = _read_json(folder / ".started") if self.resumable else None
        if folder.exists() and (before is None or _changes(before, identity)):
            if before is not None:
                reasons = "; ".join(_changes(before, identity))
                log.info("stage %d: starting %s afresh: %s", self.number, folder, reasons)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".done").unlink(missing_ok=True)
        if self.resumable:
            write_json(folder / ".started", identity)
        return folder


class Group(Protocol):
    """The processes that run a stage together (`distill.train.distributed.Ranks`)."""

    @property
    def first(self) -> bool: ...

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""

    def wait(self) -> None:
        """Return once every process has called it."""


class Alone:
    """The group of a single process."""

    first = True

    def share(self, value: Any) -> Any:
        return value

    def wait(self) -> None:
        return None


def run_stage(stage: Stage, work: Callable[[Path], None], ranks: Group | None = None) -> bool:
    """Do the work unless it is done already; returns whether anything was done.

    With several `ranks` the first one checks, locks, opens and completes the folder; all of them work in it.
    """
    ranks = ranks or Alone()
    stage.check_inputs()
    if ranks.share(ranks.first and stage.up_to_date()):
        log.info("stage %d: up to date (%s)", stage.number, stage.out)
        return False
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(stage.writing()) if ranks.first else None
        work(ranks.share(folder))
        ranks.wait()
    ranks.wait()
    return True


def _input_hash(path: Path) -> str:
    """Hash of the stage that made a path where it lies in a stage's folder, else of size and time."""
    for folder in (path, path.parent):
        done = _read_json(folder / ".done")
        if done is not None:
            return str(done["hash"])
    if not path.exists():
        return "missing"
    status = path.stat()
    return _hash([status.st_size, status.st_mtime_ns])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(before["settings"]), _flat(now["settings"])
    changes = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    old_inputs, new_inputs = before["inputs"], now["inputs"]
    changed = [p for p in sorted(old_inputs | new_inputs) if old_inputs.get(p) != new_inputs.get(p)]
    return changes[:4] + [f"{path} changed" for path in changed]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name in value for k, v in _flat(value[name], f"{key}.{name}" if key else name).items()}
    return {key: value}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def link(source: Path, target: Path) -> None:
    """The same file in another place, or a copy of it where the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or nothing, keys sorted."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _replace_folder(new: Path, old: Path) -> None:
    if old.exists():
        aside = old.with_name(old.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside)
    else:
        new.rename(old)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that is gone is taken over."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        holder = int(path.read_text())
        if holder != os.getpid() and Path(f"/proc/{holder}").exists():
            raise RuntimeError(f"process {holder} is writing {path.with_suffix('')}; wait for it or stop it")
    path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
