"""The teacher's side of distillation: its hidden states, logits, frames and codewords as targets."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill.batch import Batch, Targets
from distill.config.experiment import Experiment
from distill.config.model import Mask
from distill.config.training import Teacher as TeacherSettings
from distill.data.units import INVENTORY, Inventory, Origin
from distill.files import replacing
from distill.models import checkpoint
from distill.models.codes import CentroidCodes, CodeHead
from distill.models.encoder import spans
from distill.models.recogniser import Recogniser
from distill.precision import without_autocast

log = logging.getLogger(__name__)
FURTHER = ("ctc_logits", "normed", "codes")  # fields of `Targets` that may be None


def load_codes(experiment: Experiment, teacher: Recogniser, exp: Path, units: Path) -> CodeHead | CentroidCodes:
    """Codewords of an experiment's teacher: centroids of the experiment's units, without units its pre-training's.

    exp, units: folders of experiments and of units. Raises ValueError where there are neither, or centroids of others.
    """
    assert experiment.teacher is not None
    name, settings = experiment.teacher.experiment, experiment.units
    if settings is not None:
        if settings.experiment != name:
            raise ValueError(f"{experiment.name}: units.of is {settings.of}, but codewords are of its teacher, {name}")
        origin = Origin.of_settings(settings, experiment.data.train, checkpoint.weights_of(teacher))
        centroids = Inventory.load(units / experiment.units_folder / INVENTORY, origin).centroids
        log.info("codewords of %s: centroids of its block %d", name, settings.layer)
        return CentroidCodes(torch.from_numpy(centroids), settings.layer or 0)
    head = checkpoint.load_code_head(exp / name)
    if head is None:
        raise ValueError(
            f"{experiment.name}: its teacher {name} has no codewords, as those have that are pre-trained with the term"
            f" hubert; give units: {{of: {name}, layer: …}}, and centroids of its hidden states are its codewords"
        )
    log.info("codewords of %s: the %d of its pre-training", name, head.clusters)
    return head


class TeacherTargets:
    """Runs a teacher in evaluation mode over the waveform that the settings choose.

    With `keep_targets` the targets of each cut are computed once and stored in half precision below `store`, for all
    epochs, ranks and students of this teacher; the settings ensure that the waveform never changes. They are computed
    from the cut alone, so that they do not depend on its batch, which differs after a resume or on other ranks.
    """

    def __init__(
        self, settings: TeacherSettings, model: Recogniser, blocks: Iterable[int], store: Path, normed: bool = False,
        codes: CodeHead | CentroidCodes | None = None, attention: Iterable[int] = (),
        mask: Mask | None = None, joint: bool = False,
    ) -> None:  # fmt: skip
        """blocks: whose hidden states are targets. normed: whether the front-end's frames are. codes: its codewords.
        attention: blocks whose queries and keys are. mask: the student's, where the settings have `masked`. joint:
        whether its transducer is.

        store: folder, one subfolder is made for each teacher and targets.
        """
        self.settings, self.blocks, self.normed = settings, sorted(set(blocks)), normed
        self.attention, self.mask = sorted(set(attention)), mask if settings.masked else None
        self.transducer = model.transducer if joint else None
        self.model = model.eval().requires_grad_(False)
        self.codes = codes.eval().requires_grad_(False) if codes else None
        self._folder = store / self._digest() if settings.keep_targets else None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, padded as the batch is. Raises OSError where they cannot be stored."""
        if self._folder is None or not batch.counted:
            return self._run(batch)
        rows = [self._stored(self._folder, batch.row(number)) for number in range(len(batch.ids))]
        device = batch.wave.device
        columns = {
            name: pad_sequence([row[name].to(device) for row in rows], batch_first=True).float() for name in rows[0]
        }
        lengths = torch.tensor([len(row["logits"]) for row in rows], device=device)
        hidden = {block: columns[f"hidden{block}"] for block in self.blocks}
        attention = {block: columns[f"attention{block}"] for block in self.attention} or None
        ctc_logits, normed, codes = (columns.get(name) for name in FURTHER)
        joint = None
        if self.transducer is not None:  # its predictor depends on the units, which the wave does not tell
            joint = self.transducer.joint(columns["frames"], batch.tokens)
        return Targets(columns["logits"], hidden, lengths, ctc_logits, normed, codes, attention, joint=joint)

    def _run(self, batch: Batch) -> Targets:
        output = self.model(self._input(batch), batch.samples, attention=self.attention, tokens=batch.tokens)
        hidden, hit = {block: output.hidden[block] for block in self.blocks}, None
        if self.mask is not None:
            hit = spans(output.lengths, output.logits.shape[1], self.mask.time_probability, self.mask.time_length)
            others = self.model.encoder(output.features, output.lengths, hit).hidden
            hidden = {block: torch.where(hit[..., None], x, others[block]) for block, x in hidden.items()}
        normed = output.normed if self.normed else None
        codes = self.codes(output.hidden[self.codes.block]) if self.codes else None
        joint = output.joint if self.transducer else None
        return Targets(
            output.logits, hidden, output.lengths, output.ctc_logits, normed, codes, output.attention, hit, joint
        )

    def _input(self, batch: Batch) -> Tensor:
        wave = {"augmented": batch.wave, "clean": batch.clean, "second": batch.second}[self.settings.input]
        if wave is None:
            raise ValueError(f"teacher.input: {self.settings.input} needs waveforms that the batch is without")
        return wave

    def _stored(self, folder: Path, row: Batch) -> dict[str, Tensor]:
        """The tensors (T, …) of one utterance, from the file that its waveform names, or computed and stored there."""
        name = hashlib.sha256(self._input(row).cpu().numpy().tobytes()).hexdigest()
        path = folder / name[:2] / f"{name}.safetensors"
        try:
            return safetensors.torch.load_file(path)
        except (FileNotFoundError, SafetensorError):  # not stored yet, or cut short as the system went down
            with without_autocast(row.wave):  # other trainings, of any precision, read it too
                targets = self._run(row)
        tensors = {"logits": targets.logits, **{f"hidden{i}": x for i, x in targets.hidden.items()}}
        tensors |= {f"attention{i}": x for i, x in (targets.attention or {}).items()}
        tensors |= {name: x for name in FURTHER if (x := getattr(targets, name)) is not None}
        tensors |= {"frames": targets.joint.frames} if targets.joint else {}
        kept = {key: x[0, : int(targets.lengths[0])].half().cpu().contiguous() for key, x in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(safetensors.torch.save(kept))
        except OSError as error:
            if error.errno != errno.ENOENT:  # another training stored the same bytes at the same time
                raise
        return kept

    def _digest(self) -> str:
        """Names the teacher's weights and its targets."""
        what: tuple = (self.model.settings.changed(), self.blocks, *(["normed"] if self.normed else []))
        what += ("attention", self.attention) if self.attention else ()
        what += ("joint",) if self.transducer else ()
        states = list(self.model.state_dict().items())
        if self.codes:
            what += (self.codes.block, self.codes.temperature)
            states += [(f"codes.{name}", value) for name, value in self.codes.state_dict().items()]
        return checkpoint.digest(what, states)
