"""A training update at its true shape with random weights: hours of audio per hour, MFU, and the share of each part.

    python -m benchmarks.step [--experiment egs/librispeech/conf/s5.yaml] [--device cuda] [--set KEY=VALUE]

The update is the trainer's own, of one process, with the experiment's teacher, audio per batch and precision; graphs
are synthetic. MFU is against the measured speed of a product of matrices, as a teacher's forward pass counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import torch

from benchmarks.device import matmul_speed, measure
from benchmarks.graphs import OUTPUTS, denominator, numerators
from benchmarks.table import Row, above_zero, finish, parser
from distill.batch import SAMPLE_RATE, Batch, Output, Place
from distill.config.experiment import Experiment
from distill.losses.objective import Objective
from distill.losses.term import TermContext
from distill.models.cost import training_flops
from distill.models.recogniser import build_model, count_parameters
from distill.models.transfer import frozen_parameters
from distill.recipe.provenance import hardware
from distill.recipe.script import run_script
from distill.train.compute import computing_in
from distill.train.distributed import Ranks
from distill.train.loop import Trainer, TrainingPlan, TrainingStep
from distill.train.teacher import TeacherTargets

CONF = Path(__file__).resolve().parents[1] / "egs" / "librispeech" / "conf"
PHONE = 0.12  # seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--experiment", type=Path, default=CONF / "s5.yaml")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--seconds", type=above_zero(float), default=10.0, help="of each utterance")
    options.add_argument("--repeats", type=above_zero(int), default=10)
    options.add_argument("--denominator", default="trigram", help="or bigram")
    args = options.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch finds no GPU here; use --device cpu")
    device, experiment = torch.device(args.device), Experiment.load(args.experiment, args.set)
    rows = all_rows(experiment, args.experiment.parent, device, args.seconds, args.repeats, args.denominator)
    finish(rows, args.json, each=True, hardware=hardware(device))


def all_rows(
    experiment: Experiment, conf: Path, device: torch.device, seconds: float, repeats: int, graph: str
) -> Iterator[Row]:
    """The peak of the device, the whole update with its speed, then its parts; the student's is what remains."""
    precision = getattr(torch, experiment.optim.precision)
    peak = matmul_speed(device, precision)
    yield {"case": f"product of matrices, {experiment.optim.precision}", "engine": "torch", "flops_per_second": peak}
    batch = random_batch(max(1, round(experiment.data.max_duration / seconds)), round(seconds * SAMPLE_RATE))
    trainer = random_trainer(experiment, conf, device, graph)
    whole, memory = measure(lambda: trainer._update([batch], 1e-6), repeats, device)
    shape = f"{len(batch.ids)} x {seconds:g} s, {experiment.optim.precision}"
    teacher = trainer.plan.teacher
    case = f"update of {experiment.name}{' from its teacher' if teacher else ''}, {shape}"
    flops = training_flops(experiment, teacher.model.settings if teacher else None, OUTPUTS) * batch.seconds
    yield {
        "case": case, "engine": "whole", "seconds": whole, "share": 1.0, "peak_mb": memory,
        "audio_hours_per_hour": batch.seconds / whole, "mfu_share": flops / whole / peak,
    }  # fmt: skip
    rest = whole
    for name, part in parts(trainer, batch.to(device)):
        alone, _ = measure(part, repeats, device)
        rest -= alone
        yield {"case": case, "engine": name, "seconds": alone, "share": alone / whole}
    yield {"case": case, "engine": "student, forward and backward", "seconds": rest, "share": rest / whole}


def random_batch(rows: int, samples: int) -> Batch:
    """Noise with transcripts of random phones."""
    ids, wave = tuple(f"cut-{row}" for row in range(rows)), 0.1 * torch.randn(rows, samples)
    graphs = numerators(rows, max(1, int(samples / SAMPLE_RATE / PHONE)))
    return Batch(ids, wave, torch.full((rows,), samples), graphs, wave)


def random_trainer(experiment: Experiment, conf: Path, device: torch.device, graph: str) -> Trainer:
    """The trainer of an experiment and its teacher (a YAML in `conf`) with random weights; nothing is written."""
    model, targets, teacher = build_model(experiment.model, OUTPUTS), None, None
    if experiment.teacher is not None:
        shape = Experiment.load(conf / f"{experiment.teacher.experiment}.yaml").model
        teacher = build_model(shape, OUTPUTS).to(device)
    context = TermContext(
        experiment.model, teacher.settings if teacher else None, "native", denominator(graph).to(device)
    )
    objective = Objective(experiment.objective, context)
    if teacher is not None and experiment.teacher is not None:
        online = experiment.teacher.model_copy(update={"keep_targets": False})
        targets = TeacherTargets(
            online, teacher, objective.teacher_blocks, Path(), attention=objective.attention_map.values()
        )
    frozen_parameters(experiment, model)

    def nothing(epoch: int, place: Place) -> Generator[Batch, None, None]:
        yield from ()

    plan = TrainingPlan(
        experiment, nothing, tuple, 1, (), count_parameters(model), Path(), Ranks(), device, targets
    )  # fmt: skip
    return Trainer(plan, TrainingStep(model, objective))


def parts(trainer: Trainer, batch: Batch) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that do what an update does beside the student's own passes."""
    step, teacher = trainer.step, trainer.plan.teacher

    def targets() -> None:
        with computing_in(trainer.precision, trainer.device):
            assert teacher is not None
            teacher(batch)

    def optimise() -> None:
        trainer.clip()
        trainer.optimiser.step()

    if teacher is not None:
        yield "teacher, forward", targets
    assert isinstance(step, TrainingStep)
    if "mmi" in step.objective:
        with torch.no_grad():
            output = step.model(batch.wave, batch.samples)

        def mmi() -> None:
            student = Output(output.logits.detach().requires_grad_(), output.lengths, ())
            step.objective["mmi"](student, None, batch).terms["mmi"].total.backward()

        yield "LF-MMI", mmi
    yield "clipping and optimiser", optimise


if __name__ == "__main__":
    run_script(main)
