"""The four sources: Hugging Face folders, fairseq files, torchaudio state dicts, CTranslate2 folders of Whisper."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.config.model import FBANK_SHIFT, FBANK_WIDTH, SAMPLE_RATE
from distill.extras import needed
from distill.models.pretrained import names
from distill.models.pretrained.ctranslate2 import read_variables
from distill.models.pretrained.files import plain, read_folder, read_object, read_pickle, read_tensors
from distill.models.pretrained.shapes import Shape, Stated, shape_of, stated_by_fairseq, stated_by_hugging_face
from distill.models.pretrained.vocabulary import BLANK, BOUNDARY, DELIMITER, units_of_folder
from distill.models.pretrained.whisper import check_positions, stated_by_whisper, whisper_shape

log = logging.getLogger(__name__)

FAMILIES = ("wav2vec2", "hubert", "wavlm", "whisper")
VOCABULARY = 32  # outputs of a model whose config.json does not state them
WAVEFORM = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": SAMPLE_RATE}
LOG_MEL = {
    "feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": SAMPLE_RATE, "n_fft": FBANK_WIDTH,
    "hop_length": FBANK_SHIFT,
}  # fmt: skip
"""Audio preprocessing that our front-ends do."""
WANTED = "config.json, preprocessor_config.json, model.safetensors or pytorch_model.bin (fine-tuned: vocab.json too)"
FAIRSEQ_SYMBOLS = 4  # <s>, <pad>, </s>, <unk>: in its dictionaries before the first unit
TORCH_EPS = 1e-5  # of torch's layer_norm, by which fairseq and torchaudio normalise a waveform


@dataclass(frozen=True)
class Checkpoint:
    """A model read from elsewhere: tensors by our names, {ours: theirs}, what was left behind, its shape and units.

    heads: what its pre-training needs to go on, by the names of parameters of the objective's terms.
    """

    source: str
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    origin: Mapping[str, str]
    left: Mapping[str, int]  # name -> numbers in it
    shape: Shape
    units: tuple[str, ...] | None

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Units of its prediction layer, the blank first, as our models have them; None where they are not known."""
        if self.units is None or names.HEAD[0] not in self.tensors:
            return None
        return blank_first(self.units)


def read_checkpoint(source: str) -> Checkpoint:
    """Read "hf:NAME", "hf:FOLDER", "fairseq:FILE", "torchaudio:FILE", "whisper:FOLDER"; nothing in them is executed.

    Raises FileNotFoundError, or ValueError naming what is wrong: another family, a variant that is not
    supported, tensors that are missing, unknown or of another shape.
    """
    readers = {"hf": _hugging_face, "fairseq": _fairseq, "torchaudio": _torchaudio, "whisper": _ctranslate2}
    kind, colon, place = source.partition(":")
    if not colon or kind not in readers or not place:
        raise ValueError(
            f"source '{source}' is not one of hf:NAME, hf:FOLDER, fairseq:FILE, torchaudio:FILE, whisper:FOLDER"
        )
    tensors, table, stated = readers[kind](place)
    renamed, origin, left = names.rename(tensors, table, source)
    heads = {name: renamed.pop(name) for name in origin if name.startswith((names.CONTRASTIVE, names.CODE_HEAD))}
    shape = (whisper_shape if table.families == names.WHISPER.families else shape_of)(renamed, stated, source)
    sizes = {name: tensors[name].numel() for name in left}
    return Checkpoint(source, renamed, heads, origin, sizes, shape, stated.units)


def letters_of(source: str) -> tuple[str, ...]:
    """Outputs of a fine-tuned checkpoint, as `Checkpoint.outputs`; of a folder or the hub without reading weights.

    Raises what `read_checkpoint` raises, and ValueError for a checkpoint without a prediction layer of known units.
    """
    kind, _, place = source.partition(":")
    if kind == "hf":
        folder, config = _folder(place, weights=False)
        rows = int(config.get("vocab_size", VOCABULARY))
        units = None if config["model_type"] == "whisper" else units_of_folder(folder, config, rows)
    else:
        units = read_checkpoint(source).outputs
    if units is None:
        raise ValueError(
            f"{source} has no prediction layer with known units; name a fine-tuned model with its vocab.json"
        )
    return blank_first(units)


def blank_first(units: Iterable[str]) -> tuple[str, ...]:
    """Units in the order of our models."""
    return tuple(sorted(units, key=lambda unit: unit != BLANK))


def _folder(place: str, weights: bool = True) -> tuple[Path, dict[str, Any]]:
    """The folder of a model and its config.json; a name on the hub is downloaded, with its weights or without."""
    folder = Path(place)
    if not folder.is_dir():
        folder = _download(place, weights)
    config = read_object(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} has no config.json: not a Hugging Face folder")
    family = config.get("model_type")
    if family is None and list(folder.glob("model.bin*")):
        raise ValueError(f"{folder} is a folder of CTranslate2; give whisper:{folder}")
    if family not in FAMILIES:
        raise ValueError(f"{folder} is a model of family '{family}'; there are: {', '.join(FAMILIES)}")
    return folder, config


def _hugging_face(place: str) -> tuple[dict[str, Tensor], names.Table, Stated]:
    folder, config = _folder(place)
    if config["model_type"] == "whisper":
        _preprocessor(folder, LOG_MEL)
        stated, tensors = stated_by_whisper(config, str(folder)), read_folder(folder)
        check_positions(tensors, str(folder))
        return names.with_zeros(tensors), names.WHISPER, stated
    stated = stated_by_hugging_face(config, _preprocessor(folder, WAVEFORM), str(folder))
    tensors = read_folder(folder)
    if "lm_head.weight" in tensors:
        stated = replace(stated, units=units_of_folder(folder, config, len(tensors["lm_head.weight"])))
    return tensors, names.HUGGING_FACE, stated


def _preprocessor(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Audio preprocessing: preprocessor_config.json, or its part of processor_config.json, as in newer folders.

    Empty where there is neither. Raises ValueError where they differ, and for unsupported preprocessing.
    """
    merged: dict[str, Any] = {}
    inner = (read_object(folder / "processor_config.json") or {}).get("feature_extractor")
    for part in (read_object(folder / "preprocessor_config.json"), inner):
        if not isinstance(part, dict):
            continue
        stated = {"do_normalize": True, **expected, **part}
        if merged and stated["do_normalize"] != merged["do_normalize"]:
            raise ValueError(
                f"{folder}: do_normalize is {merged['do_normalize']} in its preprocessor_config.json, but"
                f" {stated['do_normalize']} in its processor_config.json"
            )
        merged = stated
    for key, value in expected.items():
        if merged and merged[key] != value:
            raise ValueError(f"{folder}: {key} {merged[key]} of its preprocessor; only {value} is supported")
    if merged and not isinstance(merged["do_normalize"], bool):
        raise ValueError(f"{folder}: do_normalize {merged['do_normalize']!r} of its preprocessor is not true or false")
    return merged


def _download(name: str, weights: bool) -> Path:
    """A model of the Hugging Face hub by its name: from its cache (HF_HOME), or where there is a network from there.

    Weights as safetensors where the repository has them, else as pytorch_model.bin. Raises FileNotFoundError naming
    the repository, its files and where to put them.
    """
    way_out = (
        f"there is no folder {name}. Put {WANTED} of https://huggingface.co/{name} into a folder and give"
        " pretrained: FOLDER (run.sh: --set pretrained=FOLDER), or bring the cache of a machine that has downloaded it"
        " (HF_HOME)"
    )
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise FileNotFoundError(
            f"hf:{name}: there is no such folder, and no repository has such a name; its files: {WANTED}"
        )
    with needed(f"hf:{name}: there is no such folder, and to download it"):
        from huggingface_hub import snapshot_download
    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", *(["*.safetensors"] if weights else [])]))
        if weights and not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:  # no network, no such name, no room: many kinds
        raise FileNotFoundError(
            f"hf:{name}: cannot be downloaded ({str(error).splitlines()[0]}), and {way_out}"
        ) from None
    log.info("hf:%s: %s, revision %s", name, folder, folder.name)
    return folder


def _fairseq(place: str) -> tuple[dict[str, Tensor], names.Table, Stated]:
    path = Path(place)
    content = read_pickle(path, stubs=True)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: no 'model' inside, as fairseq checkpoints have")
    settings = plain(content.get("cfg")) or plain(content.get("args")) or {}
    stated = replace(stated_by_fairseq(settings if isinstance(settings, dict) else {}, str(path)), eps=TORCH_EPS)
    if any(".2.1." in name for name in tensors):  # a layer norm, between two transposes
        stated = replace(stated, layer_norms=True)
    lists = sorted(path.parent.glob("dict.*.txt"))
    if lists:
        symbols = _by_our_names(line.split()[0] for line in _lines(lists[0]) if line.strip())
        stated = replace(stated, units=(BLANK, "<pad>", "</s>", "<unk>", *symbols))  # its blank is <s>
    if wrong := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: not tensors: {names.listed(wrong)}")
    heads = _last_codewords(tensors, stated.labels, path)
    return {**tensors, **heads}, names.FAIRSEQ_HUBERT if heads else names.FAIRSEQ, stated


def _last_codewords(tensors: Mapping[str, Tensor], labels: Sequence[str], path: Path) -> dict[str, Tensor]:
    """HuBERT's codewords without those of special symbols, and their projection; of several label sets the last one's.

    Their embeddings lie one after the other, and so do their projections where they share none. Empty for a model
    without codewords. Raises ValueError where their numbers are not known.
    """
    found = next((name for name in tensors if name.endswith("label_embs_concat")), None)
    if found is None:
        return {}
    embeddings, lists = tensors[found], [path.with_name(f"dict.{label}.txt") for label in labels]
    rows, sets = len(embeddings), max(1, len(labels))
    sizes = [FAIRSEQ_SYMBOLS + len(_lines(each)) for each in lists if each.is_file()]
    if len(sizes) != sets or sum(sizes) != rows:
        sizes = [rows // sets] * sets
    if sum(sizes) != rows:
        raise ValueError(
            f"{path}: {rows} codewords of {sets} label sets ({', '.join(labels)}); put dict.LABELS.txt of each beside"
            " it"
        )
    if sets > 1:
        log.info("%s: codewords of its last label set %s, not of %s", path, labels[-1], ", ".join(labels[:-1]))
    prefix = found.removesuffix("label_embs_concat") + "final_proj."
    projection = {name: x for name, x in tensors.items() if name.startswith(prefix)}
    return {
        found: embeddings[rows - sizes[-1] + FAIRSEQ_SYMBOLS :],
        **{name: x[-embeddings.shape[1] :] for name, x in projection.items()},
    }


def _torchaudio(place: str) -> tuple[dict[str, Tensor], names.Table, Stated]:
    path = Path(place)
    labels = path.with_name("labels.txt")
    stated = Stated(eps=TORCH_EPS)
    if labels.is_file():  # the labels of a torchaudio bundle, one a line; its blank is "-"
        units = _by_our_names(" ".join(_lines(labels)).split())
        stated = replace(stated, units=tuple(BLANK if unit == "-" else unit for unit in units))
    joined = r"(.*\.attention\.)attention\.in_proj_(weight|bias)"  # of WavLM
    return names.split_joined(read_tensors(path), joined), names.TORCHAUDIO, stated


def _ctranslate2(place: str) -> tuple[dict[str, Tensor], names.Table, Stated]:
    folder = Path(place)
    if (read_object(folder / "config.json") or {}).get("model_type"):
        raise ValueError(f"{folder} is a folder of transformers; give hf:{folder}")
    variables = read_variables(folder, "encoder/")
    check_positions(variables, place)
    heads = variables.get("encoder/num_heads")
    stated = Stated(heads=int(heads) if heads is not None and heads.numel() == 1 and heads > 0 else None)
    joined = r"(encoder/.*/self_attention/linear_0/)(weight|bias)"
    return names.split_joined(variables, joined), names.CTRANSLATE2, stated


def _lines(path: Path) -> list[str]:
    """Lines of a text file; ValueError naming one that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _by_our_names(symbols: Iterable[str]) -> list[str]:
    return [BOUNDARY if symbol == DELIMITER else symbol for symbol in symbols]
