"""Settings of a supernet: smaller networks whose weights are parts of one model's, trained together."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from distill.config.bounds import EachOnce, Number, Width
from distill.config.loading import Settings
from distill.config.model import Model

Widths = Annotated[tuple[Width, ...], EachOnce, Field(min_length=1)]
Ratio = Annotated[Number, Field(gt=0, le=64)]


class Supernet(Settings):
    """What each update draws one network from, whose weights lead the model's (LightHuBERT, Wang et al. 2022).

    Width and depth are drawn for a network, heads and feed-forward for each of its blocks. Heads keep their channels.
    """

    dim: Widths
    layers: Widths
    heads: Widths
    ffn_ratio: Annotated[tuple[Ratio, ...], EachOnce, Field(min_length=1)]  # ffn_dim / dim

    def check_parts(self, model: Model) -> None:
        """Raise ValueError where a network is no part of the model."""
        encoder = model.encoder
        ffn_dim = round(max(self.ffn_ratio) * max(self.dim))
        pairs: dict[str, tuple[int, Any]] = {
            "dim": (max(self.dim), encoder.dim), "layers": (max(self.layers), encoder.layers),
            "heads": (max(self.heads), encoder.heads), "ffn_ratio": (ffn_dim, encoder.ffn_dim),
        }  # fmt: skip
        for name, (largest, whole) in pairs.items():
            if not isinstance(whole, int) or largest > whole:
                raise ValueError(
                    f"supernet.{name}: its networks have up to {largest}, and the model, whose weights they take,"
                    f" {whole}; give model.encoder.{'ffn_dim' if name == 'ffn_ratio' else name} one number as large"
                )
        if encoder.positions == "convolution" and any(dim % encoder.position_groups for dim in self.dim):
            raise ValueError(f"supernet.dim: all must be multiples of position_groups {encoder.position_groups}")
        features = model.front_end.layers[-1][0]
        if not encoder.always_project and features in (encoder.dim, *self.dim):
            raise ValueError(
                f"supernet.dim: the front-end has {features} channels, and a network of that width no projection; set"
                " model.encoder.always_project: true"
            )
        if encoder.relative_buckets or encoder.attention_of:
            raise ValueError("supernet: relative_buckets and attention_of need the same heads in all blocks")
        if encoder.rank:
            raise ValueError("supernet: parts of two factors (encoder.rank) are no factors of a part; leave rank out")
