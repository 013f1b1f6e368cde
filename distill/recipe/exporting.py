"""Stage 12: an experiment as ONNX, fp32 and int8, with the files that runtimes need; speed, memory and latency."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment, maker_of, stage_of
from distill.config.model import SAMPLE_RATE
from distill.files import link, write_json
from distill.recipe import ngram_rescoring, word_latency
from distill.recipe.emissions import test_sets
from distill.recipe.options import Recipe
from distill.recipe.provenance import command_line, commit, hardware
from distill.recipe.stage import Stage
from distill.report.results import TimingResult
from distill.runtime.info import LAYOUT

if TYPE_CHECKING:
    import numpy as np

    from distill.models.recogniser import Recogniser
    from distill.runtime.info import ModelInfo
    from distill.runtime.session import Session

log = logging.getLogger("export")
AUDIO_SECONDS = 20.0  # that speed is measured on
CHECKED_SECONDS = 5  # that outputs are compared on
TOLERANCE = 1e-3  # of log-probabilities, ONNX fp32 against torch


def export_stage(recipe: Recipe, experiment: Experiment) -> Stage:
    """The stage that exports an experiment."""
    folder = recipe.exp(experiment.name)
    inputs = {folder: experiment.stage, recipe.lang: 2, recipe.decoding_graphs: 4}
    inputs[recipe.cut_set(test_sets(recipe)[0])] = 0
    if experiment.transduces:
        inputs[recipe.lm] = 3
    if aligner := word_latency.aligner(recipe, experiment):
        inputs.setdefault(recipe.exp(aligner), stage_of(maker_of(recipe.conf_dir, aligner, recipe.suffix)))
    settings = {
        "decoding": ngram_rescoring.search_settings(experiment),
        "seconds": [AUDIO_SECONDS, word_latency.SECONDS],
    }
    return Stage(12, folder / "export", {**settings, "layout": LAYOUT}, inputs)


def export(recipe: Recipe, experiment: Experiment, folder: Path) -> None:
    """Graphs, tokens, timing: all files of an export folder."""
    import numpy as np

    from distill.models.checkpoint import load_recogniser
    from distill.models.pretrained.writing import obstacles, write_folder
    from distill.runtime.torch_runner import info_of

    chosen = experiment.decoding
    model, trained, outputs, _ = load_recogniser(recipe.exp(experiment.name), chosen.epoch, chosen.avg)
    info, audio = info_of(model, outputs, experiment.name, experiment), test_audio(recipe)
    copy_symbols(recipe, info, folder)
    other_frames = {}
    for output in info.selectable:
        write_graphs(recipe, model, info, output, folder)
        check_graphs(model, info, output, folder, audio[: CHECKED_SECONDS * SAMPLE_RATE])
        if info.model.front_end.input == "waveform" and output != "transducer":
            other_frames[output] = sherpa_difference(info, output, folder, audio)
    content = {"model": info.resolved(), "experiment": trained.resolved(), "sherpa_other_frames": other_frames}
    write_json(folder / "export.json", content)
    if "main" in info.selectable and not obstacles(model.settings):
        write_folder(model, outputs, folder / "transformers")
    audio_file = folder / "audio.npy"
    np.save(audio_file, audio)
    timing(recipe, experiment, model, info, folder, audio_file).write(folder / "timing.json")
    audio_file.unlink()


def test_audio(recipe: Recipe) -> np.ndarray:
    """AUDIO_SECONDS of the first test set, utterance after utterance: (n,) float32."""
    import numpy as np

    from distill.corpora.cut_sets import load_cuts
    from distill.data.audio import read_audio

    waves, samples, enough = [], 0, int(AUDIO_SECONDS * SAMPLE_RATE)
    for cut in load_cuts(recipe.cuts, test_sets(recipe)[:1]):
        waves.append(read_audio(cut))
        samples += len(waves[-1])
        if samples >= enough:
            break
    return np.concatenate(waves)[:enough]


def copy_symbols(recipe: Recipe, info: ModelInfo, folder: Path) -> None:
    """tokens.txt of the model's outputs; what else decoding takes, linked where the file system can.

    That is words.txt, the lang folder, and HLG.fst, of a transducer the n-gram.
    """
    from distill.graphs.lexicon import write_symbols

    write_symbols(folder / "tokens.txt", info.outputs)
    (folder / "lang").mkdir()
    sources = [recipe.lang / "words.txt"]
    if {"main", "ctc"} & {*info.selectable}:
        sources.append(recipe.decoding_graphs / "HLG.fst")
    if "transducer" in info.selectable:
        sources.append(ngram_rescoring.path_of(recipe, ngram_rescoring.SMALLER))
    for source in sources:
        link(source, folder / source.name)
    for source in recipe.lang.iterdir():
        if source.suffix in (".txt", ".json", ".model"):  # read by `Lang.load`
            link(source, folder / "lang" / source.name)


# Graphs


def write_graphs(recipe: Recipe, model: Recogniser, info: ModelInfo, output: str, folder: Path) -> None:
    """All graphs of one output, fp32 and int8."""
    from distill.export import onnx
    from distill.export.quantise import quantise
    from distill.runtime.onnx_runner import file_name

    kinds = ("whole", "stream", "sherpa", "decoder", "joiner")
    path = {kind: folder / file_name(kind, output, False) for kind in kinds}
    onnx.export_whole(model, path["whole"], output)
    if info.chunk_frames:
        onnx.export_stream(model, path["stream"], output)
    if output == "transducer":
        onnx.export_joiner(model, path["decoder"], path["joiner"])
    if taken_by_sherpa(model, info, output):
        onnx.export_zipformer(model, path["sherpa"], output)
        if output != "transducer":
            write_ctc_graph(recipe, folder / "ctc_graph.fst")
    for kind, source in path.items():
        if source.exists():
            quantise(source, folder / file_name(kind, output, True))


def taken_by_sherpa(model: Recogniser, info: ModelInfo, output: str) -> bool:
    """Whether sherpa-onnx can stream an output; what is in its way is logged for models on Fbank and transducers."""
    from distill.export import onnx

    if output == "transducer" and (problem := onnx.transducer_obstacle(model)):
        log.warning("%s: its transducer is exported for our own sessions alone: %s", info.name, problem)
        return False
    if not info.chunk_frames or info.model.front_end.input != "fbank":
        return False
    if problem := onnx.zipformer_obstacle(model):
        log.warning("%s: not exported for sherpa-onnx's streams: %s", info.name, problem)
    return not problem


def write_ctc_graph(recipe: Recipe, path: Path) -> None:
    """The decoding graph whose input labels are the model's outputs, counted from 1; the same for all outputs."""
    import kaldifst

    from distill.fsa.openfst import save_fst
    from distill.graphs.decoding_graph import over_outputs
    from distill.graphs.lexicon import Lang

    hlg, columns = recipe.decoding_graphs / "HLG.fst", Lang.load(recipe.lang).topology.output_columns.tolist()
    if path.exists():
        return
    if columns == list(range(len(columns))):
        link(hlg, path)
    else:  # units that share an output
        save_fst(path, over_outputs(kaldifst.StdVectorFst.read(str(hlg)), columns))


def check_graphs(model: Recogniser, info: ModelInfo, output: str, folder: Path, audio: np.ndarray) -> None:
    """Raise ValueError if a graph's log-probabilities differ from those of torch.

    Of a transducer those behind the units that torch finds.
    """
    import numpy as np

    from distill.decode.transducer import Greedy
    from distill.runtime.onnx_runner import file_name, onnx_runner
    from distill.runtime.session import Session
    from distill.runtime.torch_runner import torch_runner

    torch_session, found = Session(torch_runner(model.select_output(output), info, False)), dict[int, int]()
    if torch_session.runner.network is not None:
        greedy = Greedy(torch_session.runner.network)
        greedy.feed(torch_session.whole(audio))
        found = dict(zip(greedy.frames, greedy.units))
    expected = log_probs_behind(torch_session, audio, found)
    for kind in ("whole", "stream"):
        path = folder / file_name(kind, output, False)
        if not path.exists():
            continue
        session = Session(onnx_runner(path, info, kind == "stream", output=output))
        difference = float(np.abs(log_probs_behind(session, audio, found) - expected).max())
        if not difference < TOLERANCE:
            raise ValueError(f"{path.name} differs from torch by {difference:.2g}, expected at most {TOLERANCE}")
        log.info("%s %s: within %.1g of torch", info.name, path.name, difference)


def log_probs_behind(session: Session, audio: np.ndarray, found: Mapping[int, int]) -> np.ndarray:
    """Log-probabilities (T, V) of a session, of a transducer behind units; found: of these, by frame."""
    import numpy as np

    from distill.decode.transducer import Search

    frames, network = session.whole(audio), session.runner.network
    if network is None:
        return frames
    search, rows = Search(network), []
    for number, frame in enumerate(frames):
        rows.append(search.log_probs(frame)[0])
        if number in found:
            search.advance([0], [found[number]])
    return np.array(rows)


def sherpa_difference(info: ModelInfo, output: str, folder: Path, audio: np.ndarray) -> float:
    """Share of frames with another best output in sherpa-onnx, which normalises each utterance."""
    import numpy as np

    from distill.export.onnx import SHERPA_EPS
    from distill.runtime.onnx_runner import file_name, load_graph, onnx_runner
    from distill.runtime.session import Session

    path = folder / file_name("whole", output, False)
    ours = Session(onnx_runner(path, info, False)).whole(audio)
    normal = (audio - audio.mean()) / np.sqrt(audio.var() + np.float32(SHERPA_EPS))
    (theirs,) = load_graph(path).run(None, {"x": normal[None].astype(np.float32)})[0]
    share = float((ours.argmax(1) != theirs.argmax(1)).mean())
    log.info("%s %s: %.1f %% of frames have another best output in sherpa-onnx", info.name, path.name, 100 * share)
    return share


# Speed


def timing(
    recipe: Recipe, experiment: Experiment, model: Recogniser, info: ModelInfo, folder: Path, audio: Path
) -> TimingResult:
    """timing.json: speed and memory of every way to run the model, its size, cost and look-ahead."""
    import torch

    from distill.models.latency import latency
    from distill.models.macs import macs
    from distill.models.recogniser import count_parameters
    from distill.runtime.timing import gemm_peak

    settings = model.settings
    delay, other = latency(settings), "head" if info.chosen("") == "transducer" else "transducer"
    parts = macs(settings, model.outputs)
    values = {
        "experiment": experiment.name, "corpus": recipe.corpus, "threads": 1,
        "params": count_parameters(model), "macs_per_second": sum(parts.values()) - parts.get(other, 0.0),
        "chunk_ms": delay.chunk_ms, "lookahead_mean_ms": delay.mean, "lookahead_max_ms": delay.max,
        "lookahead_parts": [asdict(part) for part in delay.parts], "gemm_gflops": gemm_peak(),
        "rows": list(timing_rows(recipe.exp(experiment.name), info, folder, audio)),
        "delays": word_latency.rows(recipe, experiment, folder),
        "hardware": hardware(torch.device("cpu")), "commit": commit(), "command": command_line(),
    }  # fmt: skip
    return TimingResult.model_validate(values)


def timing_rows(trained: Path, info: ModelInfo, exported: Path, audio: Path) -> Iterator[dict[str, Any]]:
    """One row per runtime and mode."""
    from distill.runtime.onnx_runner import file_name
    from distill.runtime.timing import Work, measure

    for mode in ("streaming", "offline") if info.chunk_frames else ("offline",):
        for runtime in ("torch", "onnx", "int8"):
            result = measure(Work(trained if runtime == "torch" else exported, runtime, mode, audio))
            output, kind = info.chosen(""), "stream" if mode == "streaming" else "whole"
            kinds = (kind, "decoder", "joiner") if output == "transducer" else (kind,)
            files = [exported / file_name(each, output, runtime == "int8") for each in kinds]
            size = None if runtime == "torch" else sum(path.stat().st_size for path in files) / 2**20
            log.info("%s %s %s: RTF %.4f, %.0f MB", info.name, mode, runtime, result.rtf, result.peak_mb)
            yield {"mode": mode, "runtime": runtime, "file_mb": size, **asdict(result)}
