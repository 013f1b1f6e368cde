"""C++ kernels: compiled at first use, kept in a cache, called through ctypes.

A kernel is one .cpp file beside this module with a plain C interface; the headers there are shared. The cache
is `DISTILL_CACHE`, else `distill-asr` in XDG_CACHE_HOME or ~/.cache; libraries are named by a hash of source and
headers, the compiler, its options and the processor, so nothing stale is ever loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SOURCES = Path(__file__).parent
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")


NO_COMPILER = (
    "no C++ compiler (c++, g++ or clang++): decoding and LF-MMI on CPUs are compiled at their first use; install one"
    " (apt-get install g++, xcode-select --install, conda install cxx-compiler), or set CXX to its path"
)


@functools.cache
def load_kernel(name: str, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The compiled `<name>.cpp`; options: of the compiler, beside the usual ones. CXX names another compiler.

    Raises ValueError without a compiler, or with its message where it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise ValueError(NO_COMPILER)
    try:
        return ctypes.CDLL(str(_compiled(SOURCES / f"{name}.cpp", compiler, (*OPTIONS, *options))))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr[-2000:] if isinstance(error, subprocess.CalledProcessError) else error
        raise ValueError(f"{compiler} cannot compile {name}.cpp; set CXX to another compiler: {reason}") from None


def pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
    """An array's address for a kernel, null for None; the caller keeps the array alive."""
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def find_compiler() -> str | None:
    """Path of the C++ compiler, None without one."""
    if "CXX" in os.environ:
        return shutil.which(os.environ["CXX"]) if os.environ["CXX"] else None
    return next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)


def _compiled(source: Path, compiler: str, options: tuple[str, ...]) -> Path:
    """The shared library, compiled if it is not in the cache; two processes may compile the same one at once."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = [path.read_text(encoding="utf-8") for path in [source, *sorted(SOURCES.glob("*.h"))]]
    key = "\n".join([version, *options, _processor(), *sources])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill-asr"
    path = (
        Path(os.environ.get("DISTILL_CACHE", home))
        / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    )
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        subprocess.run([compiler, *options, str(source), "-o", str(out)], capture_output=True, text=True, check=True)
        os.replace(out, path)
    return path


def _processor() -> str:
    """The processor's features, on which -march=native depends, where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
