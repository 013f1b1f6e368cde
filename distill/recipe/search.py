"""The search over HLG with an experiment's settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config.experiment import Experiment
from distill.recipe.options import Recipe

if TYPE_CHECKING:
    from distill.decode.graph_decoder import GraphDecoder
    from distill.graphs.lexicon import Lang


def graph_decoder(
    recipe: Recipe, experiment: Experiment, units: Sequence[str], lattice_beam: float | None = None
) -> GraphDecoder:
    """The decoder with the experiment's beams; the graph is read once per process.

    units: the model's outputs. Raises ValueError if they are not those of the lang folder.
    """
    decoding = experiment.decoding
    beam = decoding.lattice_beam if lattice_beam is None else lattice_beam
    beams = decoding.beam, beam, decoding.max_active
    decoder = _decoder(recipe.engine, recipe.decoding_graphs, recipe.lang, beams, decoding.acoustic_scale)
    check_outputs(recipe, experiment, decoder.lang, units)
    return decoder


def check_outputs(recipe: Recipe, experiment: Experiment, lang: Lang, units: Sequence[str]) -> None:
    """Raise ValueError if the model's outputs `units` are not those of the lang folder."""
    if lang.outputs != list(units):
        raise ValueError(
            f"{experiment.name} was trained with other outputs than {recipe.lang}; run stages 2 to 9 again"
        )


@cache
def _decoder(
    engine: str, graphs: Path, lang: Path, beams: tuple[float, float, int], acoustic_scale: float
) -> GraphDecoder:
    from distill.decode.graph_decoder import GraphDecoder
    from distill.fsa.lattice import Search
    from distill.graphs.lexicon import Lang
    from distill.lfmmi import build_engine

    return GraphDecoder(build_engine(engine), graphs / "HLG.fst", Lang.load(lang), Search(*beams), acoustic_scale)
