"""Stage 7: the teacher's n-best unit sequences over HLG on the unlabelled part, as numerator graphs."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

from distill.config import Experiment
from distill.stages import Recipe, Stage, recipe_from, recipe_parser, run_script, run_stage

log = logging.getLogger("make_numerators")


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--parts", default="unlabelled", help="cut sets, comma-separated")
    args = parser.parse_args()
    recipe = recipe_from(args)
    for name in recipe.names:
        experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
        if experiment.stage != 6:
            continue
        settings = {"decoding": experiment.resolved()["decoding"], "parts": args.parts}
        needed = {recipe.exp(experiment.name): 6, recipe.graphs: 4, recipe.cuts: 0}
        stage = Stage(7, recipe.num / experiment.name, settings, needed)
        run_stage(stage, partial(write, recipe, experiment, args.parts.split(",")))


def write(recipe: Recipe, experiment: Experiment, parts: list[str], folder: Path) -> None:
    """<part>.pt with a prefix tree per utterance; skipped.tsv; summary.json with the pseudo-labels' error rate."""
    import torch
    from tqdm import tqdm

    from distill.data.loader import SpeechDataset, in_order, load_cuts
    from distill.data.numerators import save_graphs
    from distill.decode import lattice, log_probs
    from distill.graphs.lexicon import Lang
    from distill.graphs.numerator import sequences_graph
    from distill.train.checkpoint import load_recogniser

    torch.set_num_threads(max(1, recipe.nj))
    decoding = experiment.decoding
    model, *_ = load_recogniser(recipe.exp(experiment.name), avg=decoding.avg)
    lang = Lang.load(recipe.lang)
    make = partial(
        lattice.GraphDecoder, recipe.graphs / "HLG.fst", sorted(lang.words, key=lang.words.__getitem__),
        decoding.nbest_beam, decoding.max_active, decoding.acoustic_scale,
    )  # fmt: skip
    work = partial(lattice.nbest, count=decoding.nbest, lattice_beam=decoding.lattice_beam)
    summary, skipped = {}, []
    for part in parts:
        cuts = load_cuts(recipe.cuts.parent / "cuts", [part])
        batches = in_order(cuts, SpeechDataset(None, None, 0, False, False), experiment.data.max_duration * 4)
        found = dict(
            tqdm(
                lattice.decode_all(make, work, log_probs.offline(model.to(recipe.device), batches), recipe.nj),
                desc=f"n-best of {part}", total=len(cuts), disable=None,
            )
        )  # fmt: skip
        good = {name: hypotheses for name, hypotheses in found.items() if hypotheses and hypotheses[0].units}
        skipped += [f"{name}\tno complete path within beam {decoding.nbest_beam}" for name in found if name not in good]
        save_graphs(folder / f"{part}.pt", {n: sequences_graph([h.units for h in hs]) for n, hs in good.items()})
        summary[part] = {"utterances": len(found), "without_path": len(found) - len(good), **quality(cuts, good)}
        log.info("%s: %s", part, summary[part])
    (folder / "skipped.tsv").write_text("".join(line + "\n" for line in skipped), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def quality(cuts, found: dict) -> dict:
    """Sequences per utterance, and the error rate of the best one where the corpus knows the true words."""
    from distill.decode.wer import ErrorRate, score

    count = sum(len(hypotheses) for hypotheses in found.values())
    facts: dict = {"sequences_per_utterance": round(count / max(1, len(found)), 2)}
    truth = {cut.id: (cut.supervisions[0].custom or {}).get("reference") for cut in cuts if cut.supervisions}
    scored = [score(n, text.split(), hs[0].words) for n, hs in found.items() if (text := truth.get(n))]
    return facts | ({"wer": ErrorRate.of(scored).wer} if scored else {})


if __name__ == "__main__":
    run_script(main)
