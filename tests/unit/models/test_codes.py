from __future__ import annotations

import torch

from distill.models.codes import CodeHead


def test_logits_are_cosines_over_the_temperature() -> None:
    torch.manual_seed(0)
    head, hidden = CodeHead(12, 6, 5, temperature=0.2), torch.randn(2, 3, 12)
    expected = torch.cosine_similarity(head.projection(hidden)[:, :, None], head.codewords, dim=-1) / 0.2
    torch.testing.assert_close(head(hidden), expected)
