"""Stage 12: every experiment as ONNX, fp32 and int8, with what runtimes need beside it; speed, memory and delays."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config.experiment import Experiment
from distill.files import link, write_json
from distill.recipe import word_latency
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import command_line, run_script
from distill.recipe.stage import Stage, run_stage
from distill.runtime.session import LAYOUT

if TYPE_CHECKING:
    from distill.models.recogniser import Recogniser
    from distill.runtime.session import Facts

log = logging.getLogger("export")
AUDIO_SECONDS = 20.0
TOLERANCE = 1e-3  # of log-probabilities, ONNX fp32 against torch


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    for name in recipe.names:
        experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
        folder = recipe.exp(experiment.name)
        needed = {folder: experiment.stage, recipe.lang: 2, recipe.graphs: 4, recipe.cuts: 0}
        needed.setdefault(recipe.exp(word_latency.aligning(experiment)), 6)
        settings = {"decoding": experiment.resolved()["decoding"], "seconds": [AUDIO_SECONDS, word_latency.SECONDS]}
        settings["layout"] = LAYOUT
        run_stage(Stage(12, folder / "export", settings, needed), partial(work, recipe, experiment))


def work(recipe: Recipe, experiment: Experiment, out: Path) -> None:
    """Graphs, tokens, timing: all of an export folder."""
    import numpy as np

    from distill.models.checkpoint import load_recogniser
    from distill.models.pretrained.writing import obstacles, write_folder
    from distill.runtime.torch_runner import facts_of

    model, trained, outputs, _ = load_recogniser(recipe.exp(experiment.name), avg=experiment.decoding.avg)
    facts = facts_of(model, outputs, experiment.name)
    audio = some_audio(recipe)
    copy_symbols(recipe, outputs, out)
    other_frames = {}
    for output in facts.predicts:
        write_graphs(recipe, model, facts, output, out)
        check(model, facts, output, out, audio)
        if facts.input == "waveform":
            other_frames[output] = sherpa_difference(facts, output, out, audio)
    content = {"model": facts.plain(), "experiment": trained.resolved(), "sherpa_other_frames": other_frames}
    write_json(out / "export.json", content)
    if not obstacles(model.settings):
        write_folder(model, outputs, out / "transformers")
    temporary = out / "audio.npy"
    np.save(temporary, audio)
    write_json(out / "timing.json", timing(recipe, experiment, model, facts, out, temporary))
    temporary.unlink()


def some_audio(recipe: Recipe):
    """Some seconds of a test set, utterance after utterance: float32 samples."""
    import numpy as np

    from distill.data.loader import load_cuts

    first = sorted(recipe.cuts.glob("test-*.jsonl.gz"))
    if not first:
        raise FileNotFoundError(f"no test-* cut set in {recipe.cuts}; stage 0 makes them (run.sh --stage 0)")
    waves, samples = [], 0
    for cut in load_cuts(recipe.cuts, [first[0].name.removesuffix(".jsonl.gz")]):
        waves.append(cut.load_audio()[0])
        samples += len(waves[-1])
        if samples >= AUDIO_SECONDS * 16000:
            break
    return np.concatenate(waves)[: int(AUDIO_SECONDS * 16000)].astype(np.float32)


def copy_symbols(recipe: Recipe, outputs: list[str], out: Path) -> None:
    """tokens.txt of the model's outputs; words.txt, HLG.fst and the lang folder, linked where the file system can."""
    from distill.graphs.lexicon import write_symbols

    write_symbols(out / "tokens.txt", outputs)
    (out / "lang").mkdir()
    for source in (recipe.lang / "words.txt", recipe.graphs / "HLG.fst"):
        link(source, out / source.name)
    for source in recipe.lang.iterdir():
        if source.suffix in (".txt", ".json", ".model"):  # what `Lang.load` reads
            link(source, out / "lang" / source.name)


def write_ctc_graph(recipe: Recipe, out: Path) -> None:
    """ctc_graph.fst: the decoding graph whose input labels are the model's outputs, counted from 1."""
    import kaldifst

    from distill.fsa.openfst import save_fst
    from distill.graphs.decoding_graph import over_outputs
    from distill.graphs.lexicon import Lang

    hlg, columns = recipe.graphs / "HLG.fst", Lang.load(recipe.lang).topology.output_columns.tolist()
    target = out / "ctc_graph.fst"
    if target.exists():  # it is the same for all outputs of a model
        return
    if columns == list(range(len(columns))):
        link(hlg, target)
    else:  # units that share an output
        save_fst(target, over_outputs(kaldifst.StdVectorFst.read(str(hlg)), columns))


def write_graphs(recipe: Recipe, model: Recogniser, facts: Facts, output: str, out: Path) -> None:
    """All graphs of one output, fp32 and int8."""
    from distill.export import onnx
    from distill.runtime.onnx_runner import file_name

    writers = {"whole": onnx.export_whole}
    if facts.chunk:
        writers["stream"] = onnx.export_stream
    if facts.chunk and facts.input == "fbank":
        if problem := onnx.zipformer_obstacle(model):
            log.warning("%s: not exported for sherpa-onnx's streams: %s", facts.name, problem)
        else:
            writers["sherpa"] = onnx.export_zipformer
            write_ctc_graph(recipe, out)
    for kind, write in writers.items():
        path = out / file_name(kind, output, False)
        write(model, path, output)
        onnx.quantise(path, out / file_name(kind, output, True))


def check(model: Recogniser, facts: Facts, output: str, out: Path, audio) -> None:
    """Raise ValueError if a graph does not give what torch gives."""
    import numpy as np

    from distill.runtime.onnx_runner import StreamRunner, WholeRunner, file_name
    from distill.runtime.session import Session
    from distill.runtime.torch_runner import TorchRunner

    heard = audio[: 5 * 16000]
    expected = Session(TorchRunner(model.read(output), facts, False)).whole(heard)
    for kind, runner in (("whole", WholeRunner), ("stream", StreamRunner)):
        path = out / file_name(kind, output, False)
        if not path.exists():
            continue
        difference = float(np.abs(Session(runner(path, facts)).whole(heard) - expected).max())
        if not difference < TOLERANCE:
            raise ValueError(f"{path.name} differs from torch by {difference:.2g}, expected at most {TOLERANCE}")
        log.info("%s %s: within %.1g of torch", facts.name, path.name, difference)


def sherpa_difference(facts: Facts, output: str, out: Path, audio) -> float:
    """Share of frames whose best output is another one in sherpa-onnx, which normalises each utterance."""
    import numpy as np

    from distill.export.onnx import SHERPA_EPS
    from distill.runtime.onnx_runner import WholeRunner, file_name, load_graph
    from distill.runtime.session import Session

    path = out / file_name("whole", output, False)
    ours = Session(WholeRunner(path, facts)).whole(audio)
    normal = (audio - audio.mean()) / np.sqrt(audio.var() + np.float32(SHERPA_EPS))
    (theirs,) = load_graph(path).run(None, {"x": normal[None].astype(np.float32)})[0]
    share = float((ours.argmax(1) != theirs.argmax(1)).mean())
    log.info("%s %s: %.1f %% of frames have another best output in sherpa-onnx", facts.name, path.name, 100 * share)
    return share


def timing(recipe: Recipe, experiment: Experiment, model: Recogniser, facts: Facts, out: Path, audio: Path) -> dict:
    """timing.json: speed and memory of every way to run the model, its size, cost and look-ahead."""
    import torch

    from distill.models.cost import macs
    from distill.models.latency import latency
    from distill.models.recogniser import count_parameters
    from distill.recipe.provenance import commit, hardware
    from distill.runtime.timing import gemm_peak

    settings = model.settings
    delay = latency(settings)
    return {
        "experiment": experiment.name, "corpus": recipe.corpus, "threads": 1,
        "params": count_parameters(model), "macs_per_second": sum(macs(settings, model.outputs).values()),
        "chunk_ms": delay.chunk, "lookahead_mean_ms": delay.mean, "lookahead_max_ms": delay.max,
        "lookahead_parts": [asdict(part) for part in delay.parts], "gemm_gflops": gemm_peak(),
        "rows": list(timing_rows(recipe.exp(experiment.name), facts, out, audio)),
        "delays": word_latency.rows(recipe, experiment, out),
        "hardware": hardware(torch.device("cpu")), "commit": commit(),
        "command": command_line(),
    }  # fmt: skip


def timing_rows(folder: Path, facts: Facts, out: Path, audio: Path) -> Iterator[dict]:
    """One row per runtime and mode."""
    from distill.runtime.onnx_runner import file_name
    from distill.runtime.timing import Work, measure

    for mode in ("streaming", "offline") if facts.chunk else ("offline",):
        for runtime in ("torch", "onnx", "int8"):
            found = measure(Work(folder if runtime == "torch" else out, runtime, mode, audio))
            graph = out / file_name("stream" if mode == "streaming" else "whole", "main", runtime == "int8")
            size = None if runtime == "torch" else graph.stat().st_size / 2**20
            log.info("%s %s %s: RTF %.4f, %.0f MB", facts.name, mode, runtime, found.rtf, found.peak_mb)
            yield {"mode": mode, "runtime": runtime, "file_mb": size, **asdict(found)}


if __name__ == "__main__":
    run_script(main)
