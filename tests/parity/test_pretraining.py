"""Losses of pre-training against transformers and torchaudio: random twins, the same draws; values and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.batch import Batch
from distill.config.experiment import Experiment
from distill.config.losses import Contrastive as ContrastiveSettings
from distill.config.losses import Hubert as HubertSettings
from distill.config.model import Mask, Model
from distill.corpora.cut_sets import write_cuts
from distill.losses.contrastive import Contrastive, draw_negatives
from distill.losses.hubert import Hubert
from distill.losses.term import Losses, LossTerm
from distill.models import checkpoint
from distill.models.pretrained import Checkpoint, build_imported, names, read_checkpoint
from distill.models.pretrained.writing import write_folder
from distill.models.recogniser import Recogniser
from distill.train.import_teacher import import_folder
from distill.train.setup import Folders, build_trainer
from tests.parity.test_foreign_models import BASE, LARGE, SMALL, UNITS, fairseq_name, torchaudio_twin, twin
from tests.support.training import ALONE, write_letters, write_speech

transformers = pytest.importorskip("transformers")

QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layer_drop": 0.0}
THEIR_QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
CONTRASTIVE = ContrastiveSettings(
    groups=2, codewords=SMALL["num_codevectors_per_group"], final_dim=16, negatives=5, feature_penalty=0.0
)


def quiet(settings: Model) -> Model:
    """Without dropout, with masks."""
    encoder = settings.encoder.model_copy(update=QUIET)
    return settings.model_copy(update={"encoder": encoder, "mask": Mask(time_probability=0.5)})


def imported(source: Checkpoint, term: LossTerm, name: str) -> Recogniser:
    """The checkpoint's model, and its heads in the term, strictly."""
    found = build_imported(source, quiet(source.shape.settings), UNITS)
    term.load_state_dict({key.removeprefix(f"{name}."): x for key, x in found.heads.items()})
    return found.model.train()


def losses_of(model: Recogniser, term: LossTerm, batch: Batch) -> Losses:
    return term.train()(model(batch.wave, batch.samples, True), None, batch)


def assert_same_gradients(model: Recogniser, term: LossTerm, name: str, theirs: Mapping, table: names.Table) -> None:
    expected, _, _ = names.rename(theirs, table, "gradients")
    ours = dict(model.named_parameters()) | {f"{name}.{key}": x for key, x in term.named_parameters()}
    unread = {key for key, value in ours.items() if value.grad is None}
    assert unread == set(names.HEAD) and expected.keys() == ours.keys() - unread
    for key, gradient in expected.items():
        assert float(gradient.abs().max()) > 0 or key.endswith("key.bias"), key
        torch.testing.assert_close(ours[key].grad, gradient, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize(("kind", "samples"), [(BASE, (6000, 6000)), (LARGE, (6000, 4531))], ids=["base", "large"])
def test_the_contrastive_loss_is_that_of_transformers(
    kind: dict, samples: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = twin("Wav2Vec2ForPreTraining", {**kind, **THEIR_QUIET}, tmp_path).train()
    source = read_checkpoint(f"hf:{tmp_path}")
    term = Contrastive(CONTRASTIVE, SMALL["conv_dim"][-1], SMALL["hidden_size"])
    model = imported(source, term, "contrastive")
    torch.manual_seed(1)
    lengths = model.front_end.lengths(torch.tensor(samples))
    frames = int(lengths.max())
    hit = (torch.rand(2, frames) < 0.5) & (torch.arange(frames) < lengths[:, None])
    negatives, noise = draw_negatives(hit, 5), torch.randn(2, frames, 2, CONTRASTIVE.codewords)
    place = hit.flatten().nonzero()[:, 0]  # of masked frames among all: transformers quantises them all
    everywhere = torch.zeros(2 * frames, 5, dtype=torch.int64)
    everywhere[place] = place[negatives]

    def gumbel(logits: Tensor, tau: float, hard: bool) -> Tensor:
        drawn = noise[hit] if logits.ndim == 3 else noise.view(-1, logits.shape[1])
        soft = ((logits + drawn) / tau).softmax(-1)
        return torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]) - soft.detach() + soft

    monkeypatch.setattr("torch.nn.functional.gumbel_softmax", gumbel)
    monkeypatch.setattr("distill.models.encoder.spans", lambda *_: hit)
    monkeypatch.setattr("distill.losses.contrastive.draw_negatives", lambda *_: negatives)
    rows = [torch.randn(n) for n in samples]
    waves = torch.nn.utils.rnn.pad_sequence([(x - x.mean()) / x.std(correction=0) for x in rows], batch_first=True)
    attention = torch.arange(6000) < torch.tensor(samples)[:, None]
    theirs = reference(
        waves, attention if kind is LARGE else None, mask_time_indices=hit,
        sampled_negative_indices=everywhere.view(2, frames, 5),
    )  # fmt: skip
    batch = Batch(("a", "b"), torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(samples))
    terms = losses_of(model, term, batch).terms
    ours, diversity = terms["contrastive"].total, terms["contrastive_diversity"]
    torch.testing.assert_close(ours, theirs.contrastive_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(diversity.total, theirs.diversity_loss, rtol=1e-5, atol=1e-5)
    assert int(terms["contrastive"].count) == int(diversity.count) == int(hit.sum())
    theirs.loss.backward()
    (ours + diversity.weight * diversity.total).backward()
    gradients = {name: x.grad for name, x in reference.named_parameters()}
    assert_same_gradients(model, term, "contrastive", gradients, names.HUGGING_FACE)


def test_fairseqs_quantiser_is_that_of_hugging_face(tmp_path: Path) -> None:
    state = twin("Wav2Vec2ForPreTraining", BASE, tmp_path).state_dict()
    renamed = {
        fairseq_name(name, False).replace("codevectors", "vars").replace("project_hid", "final_proj"): x
        for name, x in state.items()
    }
    settings = {"conv_feature_layers": "[(16, 10, 5), (16, 3, 2), (24, 2, 2)]", "encoder_attention_heads": 4}
    torch.save({"cfg": {"model": settings}, "model": renamed}, tmp_path / "model.pt")
    expected, found = (
        read_checkpoint(f"{kind}:{tmp_path / name}") for kind, name in (("hf", ""), ("fairseq", "model.pt"))
    )
    assert len(expected.heads) == 7 and expected.heads.keys() == found.heads.keys()
    assert all(torch.equal(x, found.heads[name]) for name, x in expected.heads.items())


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_hubert_is_torchaudios_with_the_loss_of_its_recipe(
    large: bool, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = torchaudio_twin("hubert_pretrain", large).train()
    reference.feature_grad_mult = scale
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    source = read_checkpoint(f"torchaudio:{tmp_path / 'model.pt'}")
    settings = HubertSettings(final_dim=16, unmasked_weight=0.3)
    term = Hubert(settings, 128, 9)
    model = imported(source, term, "hubert")
    model.encoder.settings = model.encoder.settings.model_copy(update={"feature_grad_mult": scale})
    torch.manual_seed(1)
    wave, samples = torch.randn(2, 6000), torch.tensor([6000, 6000])
    frames = int(model.front_end.lengths(samples).max())
    hit, units = torch.rand(2, frames) < 0.5, torch.randint(9, (2, frames))
    embedding = reference.mask_generator.mask_embedding
    monkeypatch.setattr(reference.mask_generator, "forward", lambda x, _: (x.where(~hit[..., None], embedding), hit))
    monkeypatch.setattr("distill.models.encoder.spans", lambda *_: hit)
    reference.logit_generator.skip_masked = reference.logit_generator.skip_nomask = False
    normed = torch.nn.functional.layer_norm(wave, (6000,)) if large else wave
    masked, unmasked, penalty = reference(normed, units)
    first = [torch.zeros(len(x), dtype=torch.int64) for x in (masked, unmasked)]
    entropies = [torch.nn.functional.cross_entropy(x, y, reduction="sum") for x, y in zip((masked, unmasked), first)]
    theirs = entropies[0] + 0.3 * entropies[1] + 10 * penalty * len(masked)
    terms = losses_of(model, term, Batch(("a", "b"), wave, samples, units=units)).terms
    features = terms["hubert_features"]
    ours = terms["hubert"].total + len(masked) * features.weight * features.total / features.count
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for part, logits in (("masked", masked), ("unmasked", unmasked)):
        right = (logits[:, :1] >= logits[:, 1:]).all(1).sum()
        assert int(terms[f"hubert_{part}_accuracy"].total) == int(right)
    theirs.backward()
    ours.backward()
    gradients = {name: x.grad for name, x in reference.named_parameters()}
    assert_same_gradients(model, term, "hubert", gradients, names.TORCHAUDIO)


def test_fairseqs_codewords_are_those_behind_its_special_symbols(tmp_path: Path) -> None:
    reference = torchaudio_twin("hubert_pretrain", False)
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    state = twin("HubertModel", BASE, tmp_path).state_dict()
    heads = reference.logit_generator
    renamed = {fairseq_name(name, False): x for name, x in state.items()}
    renamed |= {f"final_proj.{name}": x for name, x in heads.final_proj.state_dict().items()}
    renamed["label_embs_concat"] = torch.cat([torch.full((4, 16), 7.0), heads.label_embeddings.detach()])
    settings = {"conv_feature_layers": "[(16, 10, 5), (16, 3, 2), (24, 2, 2)]", "encoder_attention_heads": 4}
    torch.save({"cfg": {"model": settings}, "model": renamed}, tmp_path / "hubert.pt")
    expected = read_checkpoint(f"torchaudio:{tmp_path / 'model.pt'}").heads
    found = read_checkpoint(f"fairseq:{tmp_path / 'hubert.pt'}").heads
    assert len(expected) == 3 and expected.keys() == found.keys()
    assert all(torch.equal(x, found[name]) for name, x in expected.items())


@pytest.mark.parametrize(("untied", "listed"), [(False, False), (True, False), (True, True)])
def test_of_several_label_sets_the_last_is_taken(untied: bool, listed: bool, tmp_path: Path) -> None:
    """As fairseq splits them: 9 rows of a first set (13 where both are listed), then those of the last one."""
    state = twin("HubertModel", BASE, tmp_path).state_dict()
    renamed = {fairseq_name(name, False): x for name, x in state.items()}
    sizes = [13, 9] if listed else [9, 9]
    sets = [torch.randn(size, 16) for size in sizes]
    projection = torch.nn.Linear(SMALL["hidden_size"], 16 * (1 + untied))
    renamed |= {f"final_proj.{name}": x.detach() for name, x in projection.named_parameters()}
    renamed["label_embs_concat"] = torch.cat(sets)
    settings = {"conv_feature_layers": "[(16, 10, 5), (16, 3, 2), (24, 2, 2)]", "encoder_attention_heads": 4}
    torch.save(
        {"cfg": {"model": settings, "task": {"labels": ["mfcc", "km"]}}, "model": renamed}, tmp_path / "hubert.pt"
    )
    for label, size in zip(["mfcc", "km"], sizes if listed else []):
        (tmp_path / f"dict.{label}.txt").write_text("".join(f"{number} 1\n" for number in range(size - 4)))
    found = read_checkpoint(f"fairseq:{tmp_path / 'hubert.pt'}").heads
    assert torch.equal(found["hubert.head.codewords"], sets[1][4:])
    assert torch.equal(found["hubert.head.projection.weight"], projection.weight[-16:])
    assert torch.equal(found["hubert.head.projection.bias"], projection.bias[-16:])


def test_label_sets_of_unknown_sizes_are_refused(tmp_path: Path) -> None:
    state = twin("HubertModel", BASE, tmp_path).state_dict()
    renamed = {fairseq_name(name, False): x for name, x in state.items()} | {"label_embs_concat": torch.randn(19, 16)}
    torch.save({"cfg": {"task": {"labels": ["mfcc", "km"]}}, "model": renamed}, tmp_path / "hubert.pt")
    with pytest.raises(ValueError, match=r"19 codewords of 2 label sets \(mfcc, km\); put dict\.LABELS\.txt of each"):
        read_checkpoint(f"fairseq:{tmp_path / 'hubert.pt'}")


ADAPTED = {
    "name": "adapted", "stage": 5, "init": "imported", "objective": {"contrastive": CONTRASTIVE.resolved()},
    "optim": {"updates": 1, "lr": 0.01}, "data": {"max_duration": 2.0, "workers": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
def test_an_imported_model_is_adapted_to_a_domain_and_written_back(kind: dict, tmp_path: Path) -> None:
    """Import, one update, a folder for transformers: what is trained changes, the rest stays, and outputs are equal."""
    twin("Wav2Vec2ForPreTraining", kind, tmp_path / "hf")
    (tmp_path / "imported").mkdir()
    lang, folders = write_letters(tmp_path), Folders(tmp_path, tmp_path, tmp_path, tmp_path)
    import_folder(f"hf:{tmp_path / 'hf'}", lang.outputs, tmp_path / "imported", "imported")
    (tmp_path / "cuts").mkdir()
    for part in ("labelled", "dev"):
        write_cuts(write_speech(tmp_path / "speech", 6), tmp_path / f"cuts/{part}.jsonl.gz")
    model = quiet(read_checkpoint(f"hf:{tmp_path / 'hf'}").shape.settings).model_dump()
    experiment = Experiment.parse({**ADAPTED, "model": model}, "test")
    (tmp_path / "adapted").mkdir()
    trainer = build_trainer(experiment, folders, tmp_path / "adapted", "", ALONE, torch.device("cpu"))
    copies = (tmp_path / "adapted/init.tsv").read_text().splitlines()
    assert {line for line in copies if "objective" in line} == {
        f"copied\tobjective.contrastive.{name}" for name in trainer.step.objective["contrastive"].state_dict()
    }
    before = checkpoint.load_epoch(tmp_path / "imported")
    trainer.run()
    after = checkpoint.load_epoch(tmp_path / "adapted")
    same = {
        name for part in ("model", "objective") for name, x in before[part].items() if torch.equal(x, after[part][name])
    }
    assert before["objective"].keys() == after["objective"].keys() and len(after["objective"]) == 7
    assert same == {*names.HEAD, "front_end.gain"}
    ours = checkpoint.load_recogniser(tmp_path / "adapted")[0]
    write_folder(ours, lang.outputs, tmp_path / "written", heads=after["objective"])
    theirs, loading = transformers.AutoModelForPreTraining.from_pretrained(
        tmp_path / "written", output_loading_info=True
    )
    assert not any(loading[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    assert isinstance(theirs, transformers.Wav2Vec2ForPreTraining) and theirs.config.mask_time_prob == 0.5
    wave = torch.randn(1, 4000)
    term = trainer.step.objective["contrastive"].eval()
    with torch.no_grad():
        output = ours(wave, torch.tensor([4000]))
        expected = theirs.eval()((wave - wave.mean()) / wave.std(correction=0))
        torch.testing.assert_close(term.project_hidden(output.hidden[-1]), expected.projected_states)
        vectors = term.quantiser(output.normed[0], 1.0).vectors
        torch.testing.assert_close(term.project_codes(vectors), expected.projected_quantized_states[0])
    again = read_checkpoint(f"hf:{tmp_path / 'written'}")
    assert all(torch.equal(x, again.heads[name]) for name, x in after["objective"].items())
