"""The stage contract: inputs, outputs, and when a stage is skipped.

A stage writes into a temporary folder that is renamed when complete, and leaves `.done` with its settings and
hashes of its inputs. With the same settings and inputs it is skipped, else it runs again and logs the difference. What
it then writes as it was before keeps its hash, so that stages that read nothing else are up to date. A folder without
a stage's mark is never removed; a resumable stage that cannot continue puts its folder aside. Only the standard
library is imported, so that skipping is fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distill import files
from distill.config.job import Job
from distill.files import write_json
from distill.recipe import folders, launch
from distill.recipe.contents import Contents
from distill.recipe.folders import DONE, STARTED
from distill.recipe.locks import free, locked
from distill.recipe.options import WHERE_KNOWN, Recipe

if TYPE_CHECKING:
    from distill.train.distributed import Ranks

log = logging.getLogger(__name__)

LEFTOVERS = (".tmp", ".old", ".lock")
SLIMMED = "slimmed"  # a setting in marks of tools/slim.py, none of a training
JOB = ".job-"  # of the name of a job's own lock
Result = TypeVar("Result")


def written_by_slim(folder: Path) -> bool:
    """Whether an experiment was written by tools/slim.py, not by a training."""
    try:
        return SLIMMED in folders.read_mark(folder / DONE)["settings"]
    except (FileNotFoundError, ValueError):
        return False


class Stage:
    """One stage with one output folder.

    inputs: files or folders it reads -> number of the stage that writes them, None for those of the user.
    resumable: the work continues in the folder itself after a kill, as long as settings and inputs are the same.
    narrowed: an earlier version named inputs that are none; what is gone of them is no difference.
    """

    def __init__(
        self,
        number: int,
        out: Path,
        settings: Mapping[str, Any],
        inputs: Mapping[Path, int | None],
        resumable: bool = False,
        narrowed: bool = False,
    ) -> None:
        self.narrowed = narrowed
        self.number, self.out, self.resumable = number, Path(out), resumable
        self.settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        self.inputs = {Path(path): stage for path, stage in inputs.items()}
        self.contents = Contents()

    def check_inputs(self) -> None:
        """Raise FileNotFoundError naming the stage that makes a missing or incomplete input."""
        for path, stage in self.inputs.items():
            if path.is_file():
                continue
            try:
                folders.read_mark(path / DONE)
            except (FileNotFoundError, ValueError) as error:
                why = f" ({error})" if isinstance(error, ValueError) else ""
                raise FileNotFoundError(
                    f"stage {self.number} needs {path}, which is not there{why}"
                    if stage is None
                    else f"stage {self.number} needs {path}, which stage {stage} makes{why}; run it first:"
                    f" run.sh --stage {stage} --stop-stage {stage} with the same options"
                ) from None

    def identity(self) -> dict[str, Any]:
        """Settings and hashes of the inputs; the output is valid as long as they are equal."""
        made = {path: digest for path in self.inputs if (digest := _made_hash(path))}
        hashes = made | self.contents.hashes([path for path in self.inputs if path not in made])
        inputs: dict[str, str] = {}
        for path in self.inputs:
            key = _key(path)
            inputs[key] = _hash([inputs[key], hashes[path]]) if key in inputs else hashes[path]
        return {"settings": self.settings, "inputs": inputs}

    def up_to_date(self, quiet: bool = False) -> bool:
        """True if the output was made from these settings and inputs; logs the changes if not."""
        try:
            done = folders.read_mark(self.out / DONE)
        except FileNotFoundError:
            return False
        except ValueError as error:
            if not quiet:
                log.warning("stage %d: not taken as done: %s", self.number, error)
            return False
        self.contents.remember(done.get("seen"))
        changes = self._changes(done, self.identity())
        if changes and not quiet:
            log.info("stage %d: making %s again: %s", self.number, self.out, "; ".join(changes))
        if not changes and self.contents.seen != done.get("seen", {}) and launch.rank() == 0:
            with contextlib.suppress(OSError):  # only saves reading the same files again
                write_json(self.out / DONE, {**done, "seen": self.contents.seen})
        return not changes

    def _changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The differences, a phrase each; renamed folders of inputs that stages made are no difference."""
        made = [path for path, stage in self.inputs.items() if stage is not None]
        inputs = _renamed(before["inputs"], now["inputs"], made)
        if self.narrowed:
            inputs = {key: digest for key, digest in inputs.items() if key in now["inputs"]}
        return _changes({**before, "inputs": inputs}, now)

    def begin(self, stack: contextlib.ExitStack, job: bool = False, wait: bool = False) -> Path | None:
        """The folder to write into until `stack` is closed; None where the output is up to date.

        job: works beside others in the folder of a resumable stage, which stays unfinished; another stage it makes
        alone, waiting for whoever does, as with `wait`.
        """
        self.check_inputs()
        if self.up_to_date():
            self.tidy()
            return None
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opening:
            (opening if job and self.resumable else stack).enter_context(locked(self.out, wait=job or wait))
            if self.up_to_date(quiet=True):  # another process has made it meanwhile
                return None
            if not (job and self.resumable):
                return stack.enter_context(self._written())
            self._open(self.out, job)
            stack.enter_context(locked(self._beside(f"{JOB}{socket.gethostname()}-{os.getpid()}")))
        return self.out

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """The folder to write into; renamed and marked done when the block ends without an error."""
        self.check_inputs()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.out), self._written() as folder:
            yield folder

    @contextlib.contextmanager
    def _written(self) -> Iterator[Path]:
        started = time.monotonic()
        folder = self.out if self.resumable else self._beside(".tmp")
        identity = self._open(folder)
        try:
            yield folder
            self._complete(folder, identity, time.monotonic() - started)
        except BaseException as error:
            of_disk = files.of_disk(folder, error)
            if not self.resumable and folder.is_dir():
                with contextlib.suppress(OSError):  # a full disk gets its room back
                    folders.remove(folder)
            if of_disk:
                raise of_disk from error
            raise

    def _open(self, folder: Path, job: bool = False) -> dict[str, Any]:
        """Make the folder to write into, free of other work, with the mark of this stage; returns the identity."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"stage {self.number} writes a folder {self.out}, and that is a file; move it away")
        if self.resumable:
            identity = self._continue_or_put_aside(job)
        else:
            identity = self.identity()
            folders.check_own(self.out, DONE, self.number)
            self._remove_leftovers()
        if (folder / DONE).is_dir():
            raise ValueError(f"{folder / DONE} is a folder, where stage {self.number} writes a file; move it away")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STARTED, {**identity, "stage": self.number, "seen": self.contents.seen})
        (folder / DONE).unlink(missing_ok=True)
        return identity

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(self.out.name + ending)

    def _remove_leftovers(self) -> None:
        """Remove leftovers of a killed call beside the output; ValueError for folders that this stage did not make."""
        for leftover, mark in ((self._beside(".tmp"), STARTED), (self._beside(".old"), DONE)):
            folders.check_own(leftover, mark, self.number)
            if os.path.lexists(leftover):
                folders.remove(leftover)

    def tidy(self) -> None:
        """Remove a killed call's leftovers beside a complete output, where possible."""
        if launch.rank() or not any(os.path.lexists(self._beside(end)) for end in LEFTOVERS):
            return
        with contextlib.suppress(OSError, RuntimeError, ValueError), locked(self.out):
            if not self.resumable:
                self._remove_leftovers()
                (self.out / STARTED).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder of a resumable stage whose content is of no more use, unless jobs work there."""
        if not any(os.path.lexists(self._beside(end)) for end in ("", ".lock")):
            return
        with contextlib.suppress(RuntimeError, ValueError, FileNotFoundError), locked(self.out):
            self._check_no_job()
            folders.check_own(self.out, STARTED, self.number)
            folders.remove(self.out)

    def _check_no_job(self) -> None:
        """Raise RuntimeError where a job may work in the folder; the locks of dead ones of this host are removed."""
        for path in self.out.parent.glob(f"{self.out.name}{JOB}*.lock"):
            free(path, self.out)

    def _continue_or_put_aside(self, job: bool) -> dict[str, Any]:
        """Keep a folder in which the work can continue; put another one aside and log the reason.

        Raises RuntimeError while jobs work there, ValueError where a job finds unfinished work, which may be others'.
        """
        started, why = None, ""
        try:
            started = folders.read_mark(self.out / STARTED)
            self.contents.remember(started.get("seen"))
        except (FileNotFoundError, ValueError) as error:
            why = str(error)
        identity = self.identity()
        if not os.path.lexists(self.out) or folders.is_blank(self.out):
            return identity
        if started is not None:
            folders.check_stage(self.out, started, self.number)
            why = "; ".join(self._changes(started, identity))
        if why:
            if job and not (self.out / DONE).is_file():
                raise ValueError(
                    f"stage {self.number}: {self.out} has unfinished work of other settings or inputs ({why}), which a"
                    " job does not put aside; give the same call without --job, or move the folder away"
                )
            self._check_no_job()
            aside = folders.put_aside(self.out)
            log.warning("stage %d: put %s aside as %s, starting afresh: %s", self.number, self.out, aside, why)
        return identity

    def _complete(self, folder: Path, identity: Mapping[str, Any], seconds: float) -> None:
        """Write `.done`, and put the folder in its place."""
        written = [] if self.resumable else folders.files_in(folder)
        contents = folders.contents_of(folder, written)
        kept = folders.unchanged(self.out, contents)
        done = {
            **identity, "stage": self.number, "seen": self.contents.seen, "seconds": round(seconds, 1),
            "files": written, "contents": contents, "hash": kept.pop("", _hash(identity)),
            "kept": {name: digest for name, digest in kept.items() if digest != contents[name]},
        }  # fmt: skip
        write_json(folder / DONE, done)
        if not self.resumable:
            self._replace(folder)
            return
        with contextlib.suppress(RuntimeError):
            self._check_no_job()
            files.remove_own(folder)

    def _replace(self, folder: Path) -> None:
        if added := self._added():
            aside = folders.put_aside(self.out)
            log.warning("put %s aside as %s: files in it are of no stage: %s", self.out, aside, ", ".join(added[:5]))
        if replaced := os.path.lexists(self.out):
            self.out.rename(self._beside(".old"))
        folder.rename(self.out)
        (self.out / STARTED).unlink()
        if replaced:
            folders.remove(self._beside(".old"))

    def _added(self) -> list[str]:
        """Files in the output folder that this stage has not written."""
        if not os.path.lexists(self.out) or folders.is_blank(self.out):
            return []
        written = folders.read_mark(self.out / DONE).get("files")
        return sorted(set(folders.files_in(self.out)) - set(written)) if isinstance(written, list) else []


class Alone:
    """The group of a single process."""

    first = True

    def share(self, value: Any) -> Any:
        return value

    def wait(self) -> None:
        return None


def run_stage(
    stage: Stage, work: Callable[[Path], None], ranks: Alone | Ranks | None = None, job: Job | None = None,
    wait: bool = False,
) -> bool:  # fmt: skip
    """Do the work unless it is done already; returns True if it was done.

    With several `ranks` the first one checks, locks, opens and completes the folder; all of them work in it. A job's
    work is its share, and leaves a resumable stage unfinished. wait: for another call that does the same work, such as
    that of another machine, in place of an error.
    """
    ranks = ranks or Alone()
    with contextlib.ExitStack() as stack:
        folder = by_first(ranks, lambda: stage.begin(stack, job is not None, wait))
        if folder is None:
            log.info("stage %d: up to date (%s)", stage.number, stage.out)
            return False
        work(folder)
        ranks.wait()
    ranks.wait()
    return True


def by_first(ranks: Alone | Ranks, call: Callable[[], Result]) -> Result:
    """The result of the first rank's call, on every rank; its error ends all ranks, and the first one raises it."""
    result, error = None, None
    if ranks.first:
        try:
            result = call()
        except Exception as raised:
            error = raised
    result, failed = ranks.share((result, error is not None))
    if error is not None:
        raise error
    if failed:
        sys.exit(1)
    return result


def relaunched(recipe: Recipe, stages: Iterable[Stage], more: Sequence[str] = ()) -> bool:
    """Run this script in several processes if one of its stages has work to do; returns True if it did.

    They come from the recipe's launcher, or on a CPU there are `nj`, each of one thread; they are given `more` options.
    False: this process does the work, or is one of them, or there is nothing to do. Ends the script with their exit
    status if they fail.
    """
    if "RANK" in os.environ or not (recipe.launcher or (recipe.device == "cpu" and recipe.nj > 1)):
        return False
    if launch.LAUNCHED in os.environ:
        raise ValueError(f"--launcher {recipe.launcher}: expected it to set RANK and WORLD_SIZE, as torchrun does")
    pending = next((stage for stage in stages if not stage.up_to_date(quiet=True)), None)
    if pending is None:
        return False
    pending.check_inputs()
    if status := launch.by_launcher(recipe.launcher, more) if recipe.launcher else launch.by_count(recipe.nj, more):
        sys.exit(status)
    return True


def _made_hash(path: Path) -> str | None:
    """Hash of a stage's folder, or of a file in one."""
    for folder, name in ((path, ""), (path.parent, path.name)):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return folders.hash_of(folders.read_mark(folder / DONE), name)
    return None


def _key(path: Path) -> str:
    """The name of an input in marks."""
    return f"{path.parent.name}/{path.name}"


def _renamed(old: Mapping[str, str], new: Mapping[str, str], made: Iterable[Path]) -> dict[str, str]:
    """Old inputs under the names that they have now: what has the same hash and another folder above it, and files of
    what was an input as a whole."""
    inputs, gone = dict(old), {key: key.rpartition("/")[2] for key in old if key not in new}
    for path in made:
        key, names = _key(path), (path.name, path.parent.name)
        before = next((k for k, name in gone.items() if name in names and old[k] == new[key]), None)
        if key not in old and before is not None:
            inputs[key] = old[before]
            inputs.pop(before, None)
    return inputs


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = _flat(before["settings"]), _flat(now["settings"])
    for key in [key for key in old.keys() ^ new.keys() if key.startswith(f"{WHERE_KNOWN}.")]:
        (old if key in old else new).pop(key)
    changes = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    old_inputs, new_inputs = before["inputs"], now["inputs"]
    changed = [p for p in sorted(old_inputs | new_inputs) if old_inputs.get(p) != new_inputs.get(p)]
    more = [f"and {len(changed) - 8} more"] if len(changed) > 8 else []
    how = {path: "changed" if path in new_inputs else "is gone" for path in old_inputs}
    return changes[:4] + [f"{path} {how.get(path, 'is new')}" for path in changed[:8]] + more


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name in value for k, v in _flat(value[name], f"{key}.{name}" if key else name).items()}
    return {key: value}
