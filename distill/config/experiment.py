"""Settings of an experiment: one training, and the decoding of its model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, model_validator

from distill.config.bounds import RANDOM, Count, Flag, Name, Seed, Share, Source, UnitsName, Width
from distill.config.decoding import OF_TRANSDUCER, Decoding
from distill.config.distortions import Distort
from distill.config.loading import Settings
from distill.config.losses import Objective
from distill.config.model import Model
from distill.config.names import VARIANTS, check_name, mark
from distill.config.supernet import Supernet
from distill.config.training import Augment, Compute, Data, Optim, Saving, Teacher
from distill.config.units import Units

TEACHERS = (5, 6)  # stages of teachers: taken over as they are, trained
MARKS = tuple(mark(variant) for variant in VARIANTS[1:])
OF_LM = re.compile(r"lm(?:[._-].*)?", re.IGNORECASE)
# settings that do not change the weights
NOT_OF_TRAINING = ("compute", "decoding", "description", "pretrained", "probe")
LATER: Mapping[str, Any] = {
    "init_epoch": "last", "init_slim": False, "init_sparsity": 0.0, "frozen": {}, "supernet": None,
    "units": None, "distort": None, "data.window": 20_000, "data.share": 1.0, "data.denominator": "text",
    "saving.least_updates": 0,
    "teacher.masked": False,
    "model.front_end.tail": 0, "optim.trunk_scale": 1.0,
    "model.encoder.block": "transformer", "model.encoder.feature_norm": True,
    "model.encoder.positions": "convolution", "model.encoder.feature_grad_mult": 1.0,
    "model.encoder.input_dropout": 0.0, "model.encoder.layer_grad_scale": False, "model.encoder.attention_of": [],
    "model.encoder.time_reduction": 1, "model.encoder.conv_kernel": 31, "model.encoder.conv_dim": None,
    "model.encoder.conv_causal": False, "model.encoder.ffn_after_dim": None, "model.encoder.rank": None,
    "model.transducer": None, "model.pruning": None, "model.pruning.of": "parameters",
}  # fmt: skip
LATER_OF_TERMS = {
    "start": 0, "lower_weight": 1.0, "average": False, "groups": [], "identity": False, "cosine": "log_sigmoid",
}  # fmt: skip
"""Settings that came after the first version, with what that had, where they are left out of an identity."""
FURTHER = ("results.md", "differences.json", "pareto.svg")  # other files in an exp-dir


def check_own_name(name: str, suffix: str = "") -> None:
    """Raise ValueError for the name of another file or folder of an exp-dir."""
    if OF_LM.fullmatch(name):
        raise ValueError("must not be lm, or begin with lm and one of . _ -, as language models' names do")
    if name.endswith("_init") or name.lower() in FURTHER:
        raise ValueError(f"must not end in _init, as folders of stage 5 do, and not be one of {', '.join(FURTHER)}")
    if name.endswith(MARKS):
        raise ValueError(f"must not end as experiments of other units or topologies do: {', '.join(MARKS)}")
    check_name(name + suffix)


class Experiment(Settings):
    """One training and the decoding of its model; its YAML's stem is its name."""

    name: Name = ""
    stage: Literal[5, 6, 8, 9]  # 5: a teacher's pre-training; without an objective, one that is published
    description: str = ""
    seed: Seed = 0
    model: Model = Model()
    pretrained: Source | None = None  # stage 5 of a teacher: see docs/training.md; random: weights drawn from the seed
    init: Name | None = None  # experiment whose parameters of the same name and shape are taken over
    init_epoch: Literal["last", "best"] = "last"  # of `init`; best: the lowest validation loss
    init_units: UnitsName | None = None  # units of `init` where they differ; its prediction layers are then drawn anew
    init_blocks: tuple[Width, ...] = ()  # block of `init`, from 1, that each block starts from; empty: the same one
    init_slim: Flag = False  # with the widths of `init`, without what its gates close (model.pruning)
    init_sparsity: Share = 0.0  # with init_slim: what gates close is cut to this share of the parameters; 0: as it is
    init_slice: tuple[
        Annotated[str, StringConstraints(min_length=1)], ...
    ] = ()  # beginnings of names of larger tensors whose leading part is taken over
    frozen: Mapping[
        str, Count | Literal["all"]
    ] = {}  # beginnings of parameters' names -> updates that leave them alone
    teacher: Teacher | None = None
    probe: Name | None = None  # an experiment whose alignments of data.valid show what is learnt, by a linear probe
    units: Units | None = None  # of frames, for terms that need them
    supernet: Supernet | None = None  # networks within the model, of which each update trains one
    data: Data = Data()
    augment: Augment = Augment()
    distort: Distort | None = None  # what follows the augmentation, in validation too
    objective: Objective = Objective()
    optim: Optim = Optim()
    compute: Compute = Compute()
    saving: Saving = Saving()
    decoding: Decoding = Decoding()

    def identity(self) -> dict[str, Any]:
        """Settings that decide the weights, under the names of the first version, so that its trainings stay valid."""
        values = {key: value for key, value in self.resolved().items() if key not in NOT_OF_TRAINING}
        _leave_out(values, LATER)
        for term in values["objective"].values():
            _leave_out(term, LATER_OF_TERMS)
        if values["teacher"]:
            values["teacher"]["hears"] = values["teacher"].pop("input")
        if self.objective.uses_shorthand:
            values["objective"] |= dict(zip(("alpha", "beta"), self.objective.shares))
        return values

    @property
    def noises(self) -> dict[str, str]:
        """Setting -> folder of recorded noise below the data dir that the training reads."""
        found = {f"distort.noises.{name}": part for name, part in (self.distort.noises if self.distort else {}).items()}
        if self.augment.noise_part and self.augment.noise_probability:
            found["augment.noise_part"] = self.augment.noise_part
        return found

    @property
    def distortions(self) -> tuple[str, ...]:
        """What the labels of an utterance are of; none without `distort`."""
        return self.distort.names if self.distort else ()

    @property
    def trained(self) -> bool:
        """Whether there is something to train: all but teachers that are taken over as they are published."""
        return self.stage != 5 or not self.objective.uses_shorthand

    @property
    def predicts_units(self) -> bool:
        """Whether a term needs units of frames, not codewords alone."""
        return any(term.units for term in self.objective.terms.values())

    @property
    def units_folder(self) -> str:
        """Name of the folder of its units; those that are codewords alone have one without labels."""
        assert self.units is not None
        return self.units.folder(self.data) + ("" if self.predicts_units else "-codewords")

    @property
    def supervised(self) -> bool:
        """Whether it is trained with numerators and the denominator."""
        return self.trained and any(term.supervised for term in self.objective.terms.values())

    @property
    def reads_lattices(self) -> bool:
        """Whether numerators of cuts without transcripts are made from its teacher's lattices (stage 7)."""
        unlabelled = {*self.data.train} != {"labelled"} and self.data.numerator != "transcript"
        return self.supervised and self.teacher is not None and unlabelled

    @property
    def recognises(self) -> bool:
        """Whether its main output is of units of speech: not after pre-training, or distillation of it."""
        if not self.trained:
            return bool(self.decoding.methods)
        terms = self.objective.terms.keys()
        return bool(terms & {"mmi", "outputs"} or (self.model.shared_head_dim and "hidden" in terms))

    @property
    def transduces(self) -> bool:
        """Whether its transducer is trained; its main output need not be."""
        return self.trained and self.model.transducer is not None

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        if not self.trained:
            return self._check_published()
        self.optim.check_length()
        if not self.decoding.methods:
            raise ValueError("decoding.methods: none are of a teacher that is not trained (stage: 5); give one or more")
        if self.stage == 5 and self.pretrained != RANDOM and self.init is None:
            raise ValueError(
                "a pre-training starts from pretrained: random, or from what init names, such as"
                f" {self.name or 'NAME'}_init for the import of pretrained: {self.pretrained or 'FOLDER'}"
            )
        terms, objective = self.objective.terms, self.objective
        if objective.taught and self.teacher is None:
            raise ValueError(
                f"the objective's terms {', '.join(objective.taught)} need a teacher, but 'teacher' is not set; without"
                " one remove these terms (alpha: 1, beta: 1 does)"
            )
        if self.decoding.chunks and not self.model.streaming.chunk_frames:
            raise ValueError(
                f"decoding.chunks {list(self.decoding.chunks)} are for a model with streaming.chunk_frames"
            )
        trained = bool(objective.ctc_scale or objective.ctc or objective.ctc_outputs)
        if trained != self.model.ctc_output:
            raise ValueError(
                f"model.ctc_output is {str(self.model.ctc_output).lower()}, but objective.ctc_scale (or the terms ctc,"
                f" ctc_outputs) {'needs it' if trained else 'is 0'}: a second output needs a weight above 0"
                " to learn, and a weight needs the output"
            )
        if trained and not self.recognises and not self.transduces:
            raise ValueError(
                "objective: the terms ctc and ctc_outputs train the second output, and nothing trains the main one,"
                " which is decoded; add mmi, as alpha: 1, beta: 1 does"
            )
        joint = [name for name in ("transducer", "transducer_kl") if name in terms]
        if bool(joint) != (self.model.transducer is not None):
            raise ValueError(
                f"objective: the terms {', '.join(joint)} need model.transducer, such as model.transducer: {{}}"
                if joint
                else "model.transducer needs a term with a weight above 0: objective.transducer, or transducer_kl"
            )
        if self.decoding.avg > self.saving.keep:
            raise ValueError(f"decoding.avg {self.decoding.avg} must be at most saving.keep {self.saving.keep}")
        layers = self.model.encoder.layers
        if len(self.init_blocks) not in (0, layers):
            raise ValueError(
                f"init_blocks has {len(self.init_blocks)} entries, expected one for each of the {layers} blocks"
                " (model.encoder.layers)"
            )
        for key, teacher_layers in objective.layer_lists.items():
            if len(teacher_layers) not in (0, layers):
                raise ValueError(
                    f"objective.{key} has {len(teacher_layers)} entries, expected one for each of the {layers} blocks"
                    " (model.encoder.layers; 0 for none)"
                )
        return self

    @model_validator(mode="after")
    def _check_pruning(self) -> Experiment:
        if not self.trained:
            return self
        sparsity = self.objective.terms.get("sparsity")
        if (sparsity is not None) != (self.model.pruning is not None):
            raise ValueError(
                "the term sparsity of the objective, with a weight above 0, and the gates of model.pruning need each"
                " other; set both, such as model: {pruning: {}}, objective: {sparsity: {}}, or none"
            )
        if sparsity and self.decoding.epoch == "best":
            raise ValueError(
                "decoding.epoch: best: gates close while the model is trained, and the best validation loss is that of"
                " open ones; give last"
            )
        if self.init_slim and self.init_epoch == "best":
            raise ValueError("init_epoch: best: init_slim takes what gates leave at the end of a training; give last")
        if self.init_sparsity and not self.init_slim:
            raise ValueError("init_sparsity is of what init_slim: true cuts off; set both, or leave it out")
        if self.init_slim and (self.init is None or self.init_blocks or self.init_slice):
            raise ValueError("init_slim: true needs init, and takes over all of its blocks: no init_blocks, init_slice")
        return self

    @model_validator(mode="after")
    def _check_methods(self) -> Experiment:
        methods = self.decoding.methods
        asked = [name for name in methods if name in OF_TRANSDUCER]
        if asked and not self.transduces:
            raise ValueError(f"decoding.methods: {', '.join(asked)} need a transducer; train one (model.transducer)")
        others = [name for name in methods if name not in asked]
        if self.decoding.blank_skip and not others:
            raise ValueError(
                f"decoding.blank_skip: frames of the main output are skipped, and decoding.methods, {', '.join(asked)},"
                " read the transducer alone; set it to 0"
            )
        if others and self.transduces and not self.recognises:
            raise ValueError(
                f"decoding.methods: {', '.join(others)} are of the main output, which no term of the objective trains;"
                f" give {', '.join(OF_TRANSDUCER)} alone"
            )
        return self

    @model_validator(mode="after")
    def _check_inputs(self) -> Experiment:
        for term in self.objective.terms.values():
            term.check_model(self.model)
        masked = [name for name, term in self.objective.terms.items() if term.masked]
        if masked and not self.model.mask.time_probability:
            raise ValueError(
                f"the objective's terms {', '.join(masked)} are of masked frames, but model.mask.time_probability is 0;"
                " published are 0.65 (wav2vec 2.0) and 0.8 (HuBERT)"
            )
        distorted = [name for name, term in self.objective.terms.items() if term.distorted]
        if distorted and self.distort is None:
            raise ValueError(
                f"the objective's terms {', '.join(distorted)} are of distortions, but 'distort' is not set; set it,"
                " such as distort: {}"
            )
        if self.teacher is not None and self.teacher.masked and not self.model.mask.time_probability:
            raise ValueError(
                "teacher.masked: true needs frames that are masked in the student, but model.mask.time_probability is 0"
            )
        needing = [name for name, term in self.objective.terms.items() if term.units]
        if needing and self.units is None:
            raise ValueError(
                f"the objective's terms {', '.join(needing)} need units of frames, but 'units' is not set; set it, such"
                " as units: {of: mfcc}"
            )
        if self.units is not None and not (needing or any(term.codes for term in self.objective.terms.values())):
            raise ValueError("units are set, but no term of the objective needs them; leave 'units' out")
        return self

    @model_validator(mode="after")
    def _check_supernet(self) -> Experiment:
        if self.supernet is None:
            return self
        self.supernet.check_parts(self.model)
        regression = self.objective.regression
        if self.objective.terms.keys() != {"regression"} or (regression and regression.heads != "mean"):
            raise ValueError(
                "supernet: networks differ in blocks and widths, so that the objective must be regression from the last"
                " block to one target alone (heads: mean)"
            )
        if self.compute.checkpoint_activations or self.compute.compile:
            raise ValueError(
                "supernet: compute.checkpoint_activations and compile are of one network, and must be false"
            )
        return self

    def _check_published(self) -> Experiment:
        if self.pretrained in (None, RANDOM):
            raise ValueError(
                f"stage 5 takes a fine-tuned model over, and pretrained does not name it (got {self.pretrained}); for a"
                " pre-training give the terms of its objective"
            )
        model = self.model
        parts = {"init": self.init, "model.ctc_output": model.ctc_output, "model.transducer": model.transducer,
                 "model.pruning": model.pruning, "model.encoder.rank": model.encoder.rank}  # fmt: skip
        if further := [name for name, value in parts.items() if value]:
            raise ValueError(
                f"{', '.join(further)}: a published teacher is taken over as it is and not trained (stage: 5, without"
                " terms of an objective); leave these out, and set them in an experiment that has it as init"
            )
        return self

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = (), suffix: str = "") -> Experiment:
        """Read a YAML file, apply "a.b=value" overrides; raises ValueError naming file and key.

        suffix: added to its name and to those of the experiments it builds on, as of other units; an `init` with
        `init_units` gets the suffix of those.
        """
        experiment = cls.read(Path(path), overrides)
        try:
            check_own_name(experiment.name, suffix)
        except ValueError as error:
            raise ValueError(f"{path}: name: {error} (got {experiment.name!r})") from None
        return experiment._renamed(suffix)

    def maker_of_init(self, conf_dir: Path, suffix: str) -> Experiment | None:
        """The training of the recipe (its YAMLs, its suffix) that makes its `init`; None where stage 5 imports it."""
        return maker_of(conf_dir, self.init or "", suffix if self.init_units is None else mark(self.init_units))

    def _renamed(self, suffix: str) -> Experiment:
        changes: dict[str, Any] = {"name": self.name + suffix}
        if self.init is not None:
            changes["init"] = self.init + (suffix if self.init_units is None else mark(self.init_units))
        if self.probe is not None:
            changes["probe"] = self.probe + suffix
        if self.teacher is not None:
            changes["teacher"] = self.teacher.model_copy(update={"experiment": self.teacher.experiment + suffix})
        if self.units is not None and self.units.experiment is not None:
            changes["units"] = self.units.model_copy(update={"of": self.units.experiment + suffix})
        return self.model_copy(update=changes)


def _leave_out(values: Any, later: Mapping[str, Any]) -> None:
    """Remove settings, by their paths, that have the value which is given for each."""
    for path, first in later.items():
        *parents, key = path.split(".")
        node = values
        for parent in parents:
            node = node.get(parent) if node else None  # it may be left out itself
        if isinstance(node, dict) and key in node and node[key] == first:
            del node[key]


def maker_of(conf_dir: Path, name: str, suffix: str) -> Experiment | None:
    """The experiment of the recipe (its YAMLs, its suffix) whose training makes a folder; None where there is none."""
    yaml = conf_dir / f"{name.removesuffix(suffix)}.yaml"
    return Experiment.load(yaml) if yaml.is_file() else None


def stage_of(maker: Experiment | None) -> int:
    """The stage that makes an experiment's folder: its own, or 5 for what is imported."""
    return maker.stage if maker else 5


def conditions_of(path: Path) -> Mapping[str, Distort]:
    """`decoding.conditions` of an experiment's file; raises ValueError where there are none."""
    conditions = Experiment.load(path).decoding.conditions
    if not conditions:
        raise ValueError(f"{path} has no decoding.conditions; give one that has, such as conf/mini/cdm0_ft.yaml")
    return conditions
