"""Part of stages 10 and 11: the search over HLG that an experiment asks for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.recipe.options import Recipe


def graph_decoder(recipe: Recipe, experiment: Experiment, lattice_beam: float | None = None) -> Any:
    """The decoder with the beams of the experiment; the graph is read once."""
    decoding = experiment.decoding
    beam = decoding.lattice_beam if lattice_beam is None else lattice_beam
    return _decoder(
        recipe.engine, recipe.graphs, recipe.lang, (decoding.beam, beam, decoding.max_active), decoding.acoustic_scale
    )


@cache
def _decoder(engine: str, graphs: Path, lang: Path, beams: tuple, acoustic_scale: float) -> Any:
    from distill.decode.graph_decoder import GraphDecoder
    from distill.fsa.lattice import Search
    from distill.graphs.lexicon import Lang
    from distill.lfmmi import build_engine

    return GraphDecoder(build_engine(engine), graphs / "HLG.fst", Lang.load(lang), Search(*beams), acoustic_scale)


def check_outputs(recipe: Recipe, experiment: Experiment, lang: Any, units: Sequence[str]) -> None:
    """Raise ValueError for a model whose outputs are not those of the lang folder."""
    if lang.outputs != units:
        raise ValueError(
            f"{experiment.name} was trained with other outputs than {recipe.lang}; run stages 2 to 9 again"
        )
