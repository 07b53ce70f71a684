"""Dense networks by name; `satrap.models` builds them. Widths are of hidden layers; the logit layer is added."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from satrap.schema.base import Spec


class MLP(Spec, frozen=True, kw_only=True, tag_field="kind", tag="mlp"):
    """All embeddings and numbers concatenated, then a multi-layer perceptron."""

    hidden: tuple[int, ...] = (256, 64)
    numeric_hidden: tuple[int, ...] = ()
    """Layers the numbers pass before they are concatenated. (): none."""
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = 0.0


class DLRM(Spec, frozen=True, kw_only=True, tag_field="kind", tag="dlrm"):
    """DLRM (Naumov et al. 2019, arXiv 1906.00091): pairwise dot products of embeddings. All tables of one dim."""

    bottom: tuple[int, ...] = (64,)
    """Hidden layers of the numeric arm; a last one of width D is added."""
    top: tuple[int, ...] = (256, 64)
    dropout: float = 0.0


class DCNv2(Spec, frozen=True, kw_only=True, tag_field="kind", tag="dcnv2"):
    """DCN-v2 (Wang et al., WWW 2021, arXiv 2008.13535): cross layers and a deep tower, parallel or stacked."""

    cross_layers: int = 3
    low_rank: int | None = None
    """Rank of the cross weights. None: full."""
    hidden: tuple[int, ...] = (256, 64)
    structure: Literal["parallel", "stacked"] = "parallel"
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = 0.0


class DeepFM(Spec, frozen=True, kw_only=True, tag_field="kind", tag="deepfm"):
    """DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247): factorisation machine and deep tower on the same rows.

    The first value of each row is its linear weight, the others its factors. All tables of one dim, at least 2.
    """

    hidden: tuple[int, ...] = (256, 64)
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = 0.0


class WideDeep(Spec, frozen=True, kw_only=True, tag_field="kind", tag="wide_deep"):
    """Wide & Deep (Cheng et al. 2016, arXiv 1606.07792). The first value of each row is its wide weight."""

    hidden: tuple[int, ...] = (256, 64)
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = 0.0


class Custom(Spec, frozen=True, kw_only=True, tag_field="kind", tag="custom"):
    """The user's own torch module, imported from where the command runs; never from a checkpoint."""

    path: str
    """`package.module:Class`; called as `Class(**args)`."""
    args: dict[str, Any] = msgspec.field(default_factory=dict)


ModelSpec = MLP | DLRM | DCNv2 | DeepFM | WideDeep | Custom
