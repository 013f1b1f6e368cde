"""Codewords against torchaudio's HuBERT and against sums written out."""

from __future__ import annotations

import torch
from torchaudio.models.wav2vec2.components import LogitGenerator

from distill.models.codes import CentroidCodes, CodeHead


def test_logits_are_cosines_over_the_temperature() -> None:
    torch.manual_seed(0)
    head, hidden = CodeHead(12, 6, 5, temperature=0.2), torch.randn(2, 3, 12)
    expected = torch.cosine_similarity(head.projection(hidden)[:, :, None], head.codewords, dim=-1) / 0.2
    torch.testing.assert_close(head(hidden), expected)


def test_code_logits_are_those_of_hubert() -> None:
    torch.manual_seed(0)
    ours, theirs = CodeHead(6, 5, 7), LogitGenerator(6, 7, 5, skip_masked=False, skip_nomask=True)
    theirs.label_embeddings.data.copy_(ours.codewords.data)
    theirs.final_proj.load_state_dict(ours.projection.state_dict())
    hidden, labels, every = torch.randn(2, 9, 6), torch.randint(7, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    logits, _ = theirs(hidden, labels, every, ~every)  # its first column is the label's, which it leaves out further on
    expected = logits[:, 1:].scatter(1, labels.flatten()[:, None], logits[:, :1])
    torch.testing.assert_close(ours(hidden).flatten(0, 1), expected)


def test_centroids_give_scaled_distances() -> None:
    torch.manual_seed(0)
    centroids, hidden = torch.randn(4, 3), torch.randn(2, 5, 3)
    pairs = [(a - b).square().sum() for a in centroids for b in centroids]
    spread = sum(pairs) / len(pairs)
    expected = [[[-(h - c).square().sum() / (0.1 * spread) for c in centroids] for h in row] for row in hidden]
    codes = CentroidCodes(centroids, 2)
    torch.testing.assert_close(codes(hidden), torch.tensor(expected))
    torch.testing.assert_close(CentroidCodes(7 * centroids, 2)(7 * hidden), codes(hidden))


def test_unit_centroids_around_zero_are_a_code_head() -> None:
    head = CodeHead(2, 2, 4)
    angles = torch.arange(4) * torch.pi / 2
    head.codewords.data = torch.stack([angles.cos(), angles.sin()], 1)
    torch.nn.init.eye_(head.projection.weight)
    torch.nn.init.zeros_(head.projection.bias)
    hidden = torch.nn.functional.normalize(torch.randn(3, 5, 2), dim=2)
    ours, theirs = CentroidCodes(head.codewords.data, 1)(hidden), head(hidden)
    torch.testing.assert_close(ours.softmax(2), theirs.softmax(2))
