"""Stage 5: the weights the teacher starts from, as epoch 0 of an experiment; a fine-tuned model is the teacher."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from pathlib import Path

from distill import extras
from distill.config.bounds import RANDOM, SOURCE_RULE
from distill.config.experiment import TEACHERS, Experiment
from distill.recipe import folders
from distill.recipe.options import Recipe
from distill.recipe.stage import Stage
from distill.recipe.training import write_result

log = logging.getLogger("first_weights")


def first_weights_stage(recipe: Recipe, experiment: Experiment) -> Stage | None:
    """The stage that writes epoch 0; None for a student, and for an experiment that starts from a trained one.

    The folder is that of the experiment itself where nothing is trained, else that of its `init`; what
    `import_checkpoint` left there stays, and None is returned too. Raises ValueError where that is of another source
    than `pretrained`.
    """
    if not experiment.trained:
        name = experiment.name
    else:
        name = experiment.init or ("" if experiment.stage == 5 else f"{experiment.name}_init")
        if not name or experiment.stage not in TEACHERS or experiment.maker_of_init(recipe.conf_dir, recipe.suffix):
            return None
        if source := imported_from(recipe.exp(name)):
            if experiment.pretrained not in (None, RANDOM, source):
                raise ValueError(
                    f"{experiment.name}: pretrained is {experiment.pretrained}, but {recipe.exp(name)} is an import of"
                    f" {source} by init_teacher.py; move the folder away, or give pretrained: {source}"
                )
            log.info("stage 5: %s starts from %s, an import of %s", experiment.name, recipe.exp(name), source)
            return None
    settings = {"model": experiment.identity()["model"], "seed": experiment.seed}
    if experiment.pretrained not in (None, RANDOM):
        settings["pretrained"] = experiment.pretrained
    inputs: dict[Path, int | None] = {recipe.lang: 2, **dict.fromkeys(source_files(experiment.pretrained))}
    return Stage(5, recipe.exp(name), settings, inputs)


def source_files(source: str | None) -> list[Path]:
    """The files of the checkpoint to import, where they lie on the disk."""
    place = Path((source or "").partition(":")[2])
    files = sorted(place.glob("*")) if place.is_dir() and place.name else [place]
    return [path for path in files if path.is_file() and path.name not in folders.MARKS]


def source_problem(source: str | None) -> str:
    """What is wrong with a teacher's `pretrained`, as far as it shows without a network; empty where nothing is."""
    if source is None:
        return f"pretrained: is not given; expected {SOURCE_RULE}"
    kind, _, place = source.partition(":")
    if kind in ("fairseq", "torchaudio") and not Path(place).is_file():
        return f"pretrained: no file at {place}"
    if kind == "whisper" and not Path(place).is_dir():
        return f"pretrained: no folder {place}"
    if kind == "hf" and not Path(place).is_dir():
        if place.count("/") != 1 or place.startswith((".", "/", "~")):
            return f"pretrained: no folder {place}"
        if importlib.util.find_spec("huggingface_hub") is None:
            way_out = extras.way_out("huggingface_hub")
            return f"pretrained: {source} is downloaded by huggingface_hub; {way_out}, or give a folder"
    return ""


def write_first_weights(recipe: Recipe, experiment: Experiment, folder: Path) -> None:
    """Random weights from the seed, or those of the checkpoint that `pretrained` names; result.json of a teacher."""
    import torch

    from distill.graphs.lexicon import Lang
    from distill.train.distributed import Ranks
    from distill.train.import_teacher import write_pretrained, write_random

    if problem := source_problem(experiment.pretrained):
        raise ValueError(f"{experiment.name}: {problem}")
    write = write_random if experiment.pretrained == RANDOM else write_pretrained
    parameters = write(experiment, Lang.load(recipe.lang).outputs, folder)
    if not experiment.trained:
        untrained = dict.fromkeys(("updates", "audio_hours", "wall_s", "without_path", "recomputed"), 0)
        losses = dict.fromkeys(("train_loss", "valid_loss"))
        training = {**untrained, **losses, "params": {**parameters, "training_only": 0}}
        write_result(recipe, experiment, training, Ranks(), torch.device(recipe.device), folder)


def import_checkpoint(source: str, lang: Path | None, out: Path) -> None:
    """A checkpoint as an experiment folder of its own; replaces an earlier import, but no other folder.

    Trainings from an earlier import are out of date where the files of the checkpoint have changed.
    """
    from distill.graphs.lexicon import Lang
    from distill.train.import_teacher import import_folder

    outputs = Lang.load(lang).outputs if lang else None
    settings, inputs = {"from": source, "outputs": outputs}, dict.fromkeys(source_files(source))
    with Stage(5, out, settings, inputs).writing() as folder:
        import_folder(source, outputs, folder, out.name)


def imported_from(folder: Path) -> str | None:
    """The source of a folder that `import_checkpoint` made; None for any other folder."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return folders.read_mark(folder / folders.DONE)["settings"].get("from")
    return None


def fine_tuned(recipe: Recipe) -> str:
    """The source of the letters of --units letters: of the one fine-tuned teacher of this call's experiments.

    Raises ValueError where there is none, or several.
    """
    experiments = recipe.experiments()
    teachers = {each.teacher.experiment for each in experiments if each.teacher}
    experiments += [recipe.experiment(name.removesuffix(recipe.suffix)) for name in sorted(teachers)]
    sources = {each.pretrained for each in experiments if each.pretrained and each.recognises and not each.trained}
    if len(sources) != 1:
        raise ValueError(
            "--units letters are those of one fine-tuned teacher (stage: 5, not trained); --experiment leads to"
            f" {', '.join(sorted(sources)) or 'none'}; name one, such as teacher_960h, or students of one"
        )
    return sources.pop()
