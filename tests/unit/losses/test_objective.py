"""Eq. 1-5 of papers/001 written out by hand against the objective's terms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distill.batch import Batch, Output, Targets
from distill.config.losses import Hidden, Mmi
from distill.config.losses import Objective as Settings
from distill.config.model import FrontEnd, Model, frame_ratio
from distill.fsa.graph import Fsa
from distill.graphs import topology
from distill.lfmmi import NativeEngine, build_engine
from distill.losses.ctc import Ctc
from distill.losses.hidden import HiddenMse
from distill.losses.objective import Objective, fit_frames, needs_of
from distill.losses.term import LossTerm, TermContext
from distill.models.heads import SharedHead

UNITS, DIM, TEACHER_DIM, BLOCKS = 4, 6, 10, 3
LENGTHS = torch.tensor([9, 5])


def loop_graph() -> Fsa:
    """All sequences of three units, each unit and the end at 1/4."""
    weight = float(torch.tensor(0.25).log())
    return Fsa.from_arcs([(0, 0, unit, weight) for unit in (1, 2, 3)], {0: weight}, 1)


def linear_graph(units: list[int]) -> Fsa:
    weight = float(torch.tensor(0.25).log())
    arcs = [(i, i + 1, unit, weight) for i, unit in enumerate(units)]
    return Fsa.from_arcs(arcs, {len(units): weight}, len(units) + 1)


def model_settings(dim: int, layers: int, shared: int | None = None) -> Model:
    encoder = {"dim": dim, "layers": layers, "heads": 2, "position_groups": 2}
    return Model.model_validate({"encoder": encoder, "shared_head_dim": shared})


def make(seed: int = 0, **settings):
    torch.manual_seed(seed)
    options = Settings(teacher_layers=(2, 0, 4), **settings)
    student, teacher = model_settings(DIM, BLOCKS, TEACHER_DIM), model_settings(TEACHER_DIM, 4)
    objective = Objective(options, TermContext(student, teacher, "native", topology.ctc(loop_graph())))
    head = SharedHead(DIM, UNITS, TEACHER_DIM)
    hidden = tuple(torch.randn(2, 9, DIM) for _ in range(BLOCKS))
    hidden = (torch.zeros(2, 9, DIM), *hidden)
    blocks = {block: torch.randn(2, 9, TEACHER_DIM) for block in (2, 4)}
    targets = Targets(torch.randn(2, 9, UNITS), blocks, LENGTHS)
    numerators = [topology.ctc(linear_graph([1, 2])), topology.ctc(linear_graph([3]))]
    return objective, head, hidden, targets, numerators


def losses_of(objective: Objective, head: SharedHead, hidden, targets, numerators):
    output = Output(head(hidden[-1]), LENGTHS, hidden, None, head.shared_projection(hidden[-1]))
    return objective(output, targets, Batch(("a", "b"), torch.empty(0), LENGTHS, numerators))


def total(objective: Objective, head: SharedHead, hidden, targets, numerators) -> torch.Tensor:
    losses = losses_of(objective, head, hidden, targets, numerators)
    return sum(term.weight * term.total / term.count for term in losses.terms.values())


def test_the_whole_objective_is_equation_one_to_five() -> None:
    objective, head, hidden, targets, numerators = make(alpha=0.7, beta=0.6, mmi_scale=5.0)
    logits = head(hidden[-1])
    inside = torch.arange(9)[None] < LENGTHS[:, None]
    first = F.mse_loss(objective["hidden"].projections["1"](hidden[1])[inside], targets.hidden[2][inside])
    last = F.mse_loss(head.shared_projection(hidden[3])[inside], targets.hidden[4][inside])
    outputs = F.mse_loss(logits[inside], targets.logits[inside])
    log_probs = logits.log_softmax(-1)
    ctc = F.ctc_loss(
        log_probs.transpose(0, 1), torch.tensor([1, 2, 3]), LENGTHS, torch.tensor([2, 1]), reduction="none"
    )
    num = -ctc + torch.tensor([3.0, 2.0]) * torch.tensor(0.25).log()  # CTC plus the LM's constant
    den = NativeEngine().score(log_probs, LENGTHS, topology.ctc(loop_graph())).total
    mmi = -(num - den).sum() / LENGTHS.sum()
    assert mmi > 0
    expected = 0.3 * (first + last) + 0.7 * (0.6 * 5.0 * mmi + 0.4 * outputs)
    torch.testing.assert_close(total(objective, head, hidden, targets, numerators), expected)


@pytest.mark.parametrize(
    ("alpha", "beta", "terms"),
    [
        (1, 0, {"outputs"}),  # M1
        (1, 1, {"mmi"}),  # M2, and every teacher
        (0.8, 1, {"mmi", "hidden1", "hidden3"}),  # M3
        (0.8, 0.8, {"mmi", "outputs", "hidden1", "hidden3"}),  # M4
    ],
)
def test_ablations_are_values_of_alpha_and_beta(alpha: float, beta: float, terms: set[str]) -> None:
    objective, head, hidden, targets, numerators = make(alpha=alpha, beta=beta)
    losses = losses_of(objective, head, hidden, targets, numerators)
    assert set(losses.terms) == terms
    assert sum(term.weight for term in losses.terms.values()) > 0


def test_shared_head_learns_from_hidden_and_prediction_terms_alike() -> None:
    objective, head, hidden, targets, numerators = make()
    assert set(objective["hidden"].projections) == {"1"}, "the last W belongs to the head"
    for name in ("mmi", "hidden3"):
        head.zero_grad()
        losses = losses_of(objective, head, hidden, targets, numerators)
        losses.terms[name].total.backward()
        assert head.shared_projection.weight.grad.abs().sum() > 0


def test_layer_norm_of_targets_spares_the_last() -> None:
    objective, head, hidden, targets, numerators = make(hidden_norm="layer")
    scaled = targets._replace(hidden={2: 7 * targets.hidden[2] + 3, 4: targets.hidden[4]})
    one = total(objective, head, hidden, targets, numerators)
    torch.testing.assert_close(one, total(objective, head, hidden, scaled, numerators))
    other = targets._replace(hidden={2: targets.hidden[2], 4: 7 * targets.hidden[4]})
    assert total(objective, head, hidden, other, numerators) > one


def test_the_norm_is_spared_where_the_target_is_the_last_block() -> None:
    """Of a map that ends before the teacher's last block, all targets are normed."""
    term = HiddenMse({3: 2}, DIM, TEACHER_DIM, last=4, shared=False, norm="layer")
    _, head, hidden, targets, _ = make()
    output, batch = Output(head(hidden[-1]), LENGTHS, hidden), Batch(("a", "b"), torch.empty(0), LENGTHS)
    scaled = targets._replace(hidden={2: 7 * targets.hidden[2] + 3})
    losses = [term(output, each, batch).terms["hidden3"].total for each in (targets, scaled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


def test_ctc_names_utterances_without_a_path() -> None:
    term = Ctc(build_engine("native", 0.0, "float32"))
    logits = torch.randn(2, 9, UNITS)
    numerators = [topology.ctc(linear_graph([1] * 9)), topology.ctc(linear_graph([3]))]
    output = Output(logits, LENGTHS, (), logits)
    losses = term(output, None, Batch(("a", "b"), torch.empty(0), LENGTHS, numerators))
    assert losses.dropped.tolist() == [True, False] and float(losses.terms["ctc"].count) == 5


def test_utterances_without_a_path_are_counted_and_give_no_gradient() -> None:
    objective, *_ = make(alpha=1, beta=1)
    logits = torch.randn(2, 9, UNITS, requires_grad=True)
    impossible = topology.ctc(linear_graph([1] * 9))
    result = objective["mmi"].loss(logits, LENGTHS, [impossible, topology.ctc(linear_graph([3]))])
    term = result.terms["mmi"]
    assert int(result.dropped.sum()) == 1 and float(term.count) == 5
    term.total.backward()
    assert logits.grad[0].abs().max() == 0 and logits.grad[1].abs().max() > 0


def test_frames_of_the_teacher_are_counted_by_the_front_ends() -> None:
    base, half, odd = (Model(front_end=FrontEnd(layers=((8, hop, hop),))) for hop in (320, 640, 480))
    assert (frame_ratio(base, base), frame_ratio(half, base)) == (1, 2)
    for student in (odd, Model(front_end=FrontEnd(layers=((8, 160, 160),)))):
        with pytest.raises(ValueError, match="the teacher has one each 320 samples, the student each"):
            Settings(alpha=0.5, beta=0.5).check_models(student, base)
    Settings(alpha=1, beta=1).check_models(odd, base)  # a teacher of lattices alone


def test_targets_of_twice_the_rate_are_averaged_in_pairs() -> None:
    logits = torch.arange(16.0).view(1, 8, 2)
    targets = Targets(logits, {1: logits}, torch.tensor([8]))
    fitted = fit_frames(targets, 2, torch.tensor([4]), 4)
    assert fitted.lengths.tolist() == [4]
    torch.testing.assert_close(fitted.logits[0, :, 0], torch.tensor([1.0, 5.0, 9.0, 13.0]))
    with pytest.raises(ValueError, match="frames do not fit"):
        fit_frames(targets, 2, torch.tensor([13]), 13)


def test_blocks_beyond_the_teacher_are_refused() -> None:
    context = TermContext(model_settings(DIM, 1), model_settings(TEACHER_DIM, 4))
    with pytest.raises(ValueError, match=r"term hidden names teacher blocks \[24\], but the teacher has 1 to 4"):
        Objective(Settings(hidden=Hidden(layers=(24,))), context)


def test_a_new_term_names_what_it_needs_from_the_known_inputs() -> None:
    with pytest.raises(ValueError, match=r"Prosody\.needs: unknown pitch; there are: graphs, hidden, outputs"):
        type("Prosody", (LossTerm,), {"needs": frozenset({"pitch"})})


def test_terms_by_name_are_the_shorthand_resolved() -> None:
    shorthand = Settings(alpha=0.75, beta=0.5, mmi_scale=4.0, leaky=0.1, teacher_layers=(2, 0, 4), hidden_norm="layer")
    named = Settings.model_validate(
        {
            "mmi": {"weight": 1.5, "leaky": 0.1}, "outputs": {"weight": 0.375},
            "hidden": {"weight": 0.25, "layers": [2, 0, 4], "norm": "layer"},
        }
    )  # fmt: skip
    assert named.terms == shorthand.terms and list(named.terms) == ["mmi", "outputs", "hidden"]
    assert needs_of(named) == {"graphs", "outputs", "hidden"}
    assert needs_of(Settings.model_validate({"hidden": {}})) == {"hidden"}
    assert Settings().terms == Settings(alpha=0.8, beta=0.8).terms
    assert isinstance(Settings(alpha=1, beta=0, mmi=Mmi(weight=2)).terms["mmi"], Mmi)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.8, "hidden": {"weight": 1}}, "hidden: given as a term and by the shorthand"),
        ({"hidden": {"weight": 1}, "hidden_norm": "layer"}, "hidden_norm: of the shorthand, which needs alpha or beta"),
        ({"mmi": {"weight": 1, "updates": 5}}, "no term is on after update 5"),
        ({"mmi": {"start": 5}, "outputs": {"start": 7}}, "no term is on after update 0"),
        ({"mmi": {"updates": 5}, "outputs": {"start": 6}}, "no term is on after update 5"),
        ({"outputs": {"weight": 0}}, "no term is on after update 0"),
    ],
)
def test_a_term_given_twice_or_never_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.model_validate(values)


def test_a_window_of_updates_ends() -> None:
    _, head, hidden, targets, numerators = make()
    options = Settings.model_validate({"outputs": {}, "hidden": {"layers": [2, 0, 4], "updates": 3}})
    student, teacher = model_settings(DIM, BLOCKS, TEACHER_DIM), model_settings(TEACHER_DIM, 4)
    objective = Objective(options, TermContext(student, teacher))
    for update, terms in (
        (0, {"outputs", "hidden1", "hidden3"}),
        (2, {"outputs", "hidden1", "hidden3"}),
        (3, {"outputs"}),
    ):
        objective.update_number = update
        assert set(losses_of(objective, head, hidden, targets, numerators).terms) == terms


@pytest.mark.parametrize(
    ("values", "skips"),
    [
        ({"mmi": {}, "hidden": {}}, False),
        ({"hidden": {}}, True),
        ({"outputs": {}, "ctc_outputs": {}}, True),
        ({"outputs": {}, "ctc": {}, "ctc_outputs": {}}, False),
        ({"outputs": {}, "hidden": {"updates": 3}}, True),
    ],
)
def test_parameters_that_an_update_may_leave_out_are_announced(values: dict, skips: bool) -> None:
    """DistributedDataParallel waits for ever for gradients of parameters that it was not warned of."""
    terms = Settings.model_validate(values).terms
    objective = Objective.__new__(Objective)
    torch.nn.ModuleDict.__init__(objective)
    objective.settings = terms
    assert objective.may_skip_parts is skips
