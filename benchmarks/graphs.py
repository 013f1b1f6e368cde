"""Graphs and log-probabilities of LF-MMI benchmarks, from synthetic text; the same at every call."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import torch

from distill.fsa.graph import Fsa, Hmm
from distill.graphs import topology
from distill.graphs.unit_chain_ngram import train_chain_ngram
from distill.graphs.unit_ngram import train_unit_ngram

PHONES = 42
OUTPUTS = PHONES + 1  # blank
WORDS, SENTENCES = 2500, 10_000


def phone_text(seed: int = 0) -> Iterator[list[int]]:
    """Sentences of 18 words on average, out of a lexicon of words that obey phonotactics, by Zipf's law."""
    rng = np.random.default_rng(seed)
    follows = rng.dirichlet(np.full(PHONES, 0.3), PHONES + 1)
    lexicon = []
    for length in np.clip(rng.poisson(4.2, WORDS), 1, 12):
        word = [PHONES]
        for _ in range(length):
            word.append(int(rng.choice(PHONES, p=follows[word[-1]])))
        lexicon.append([phone + 1 for phone in word[1:]])
    share = 1 / np.arange(1, WORDS + 1)
    lengths = np.maximum(rng.poisson(18, SENTENCES), 2)
    words = iter(rng.choice(WORDS, lengths.sum(), p=share / share.sum()).tolist())
    for length in lengths:
        yield [phone for word in islice(words, length) for phone in lexicon[word]]


def denominator(name: str) -> Hmm:
    """bigram: every unit can follow, 85 states; trigram: as Kaldi's chain recipes prune it, 2,145 states."""
    if name == "bigram":
        return topology.ctc(train_unit_ngram(phone_text(), 2, OUTPUTS))
    if name == "trigram":
        return topology.ctc(train_chain_ngram(phone_text(), 3, OUTPUTS, no_prune_order=2, num_extra_states=1030))
    raise ValueError(f"no denominator '{name}'; expected bigram or trigram")


def numerators(batch: int, units: int) -> list[Hmm]:
    """Transcripts of so many phones each, one after another out of the text."""
    phones = chain.from_iterable(phone_text())
    graphs = []
    for _ in range(batch):
        arcs = [(i, i + 1, phone, 0.0) for i, phone in enumerate(islice(phones, units))]
        graphs.append(topology.ctc(Fsa.from_arcs(arcs, {units: 0.0}, units + 1)))
    return graphs


def peaky_log_probs(batch: int, frames: int) -> torch.Tensor:
    """Peaky synthetic log-probabilities (B, T, V), like a trained CTC model's."""
    logits = 3 * torch.randn(batch, frames, OUTPUTS, generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 3
    return logits.log_softmax(-1)
