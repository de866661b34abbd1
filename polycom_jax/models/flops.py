"""Floating-point operations of a model, for MFU and for comparisons at equal compute."""

from dataclasses import dataclass
from typing import Literal

from polycom_jax.models.config import ModelConfig

AttentionCount = Literal["full", "causal"]


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs a token by part; a multiplication and an addition count as two.

    Attributes:
        matmul: products with parameters, the unembedding included and the embedding look-up not;
            of a mixture of experts the router's, and those of the experts that a token goes to.
        attention: scores and weighted sum.
        activation: the feed-forward activation, by its own count an element.
    """

    matmul: int
    attention: int
    activation: int

    @property
    def forward(self) -> int:
        """All parts."""
        return self.matmul + self.attention + self.activation

    @property
    def train(self) -> int:
        """Forward and backward (twice the forward), recomputation not counted."""
        return 3 * self.forward


def flops_per_token(cfg: ModelConfig, seq_len: int, *, attention: AttentionCount = "full") -> Flops:
    """Forward FLOPs a token at sequences of `seq_len`:

        matmul     = 2 (L (D C (2 H + 2 K) + ffn) + D V),   ffn = 2 D F, or 3 D F where gated
        attention  = 4 L H C pairs,      pairs = W, or W - W^2 / 2T ("causal": T / 2 at W = T)
        activation = L F x operations on an element

    where a token attends to the last W = min(T, `cfg.attention_window`), T without a window;
    and of a mixture of experts top_k times `ffn` and activation, and the router's D E. Norms, RoPE
    and softmax are left out.

    Args:
        cfg: the model.
        seq_len: T, in tokens.
        attention: "full" counts W pairs for every token, as PaLM's MFU does (Chowdhery et al. 2022,
            appendix B); "causal" only those that are seen, half of them without a window, as
            MaxText does since July 2025.
    """
    d, h, k, c, f = (cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.hidden_width)
    experts = cfg.moe.top_k if cfg.is_moe else 1
    ffn = experts * d * f * (3 if cfg.activation_fn.gated else 2) + d * cfg.moe.num_experts
    block = d * c * (2 * h + 2 * k) + ffn
    seen = seq_len if cfg.attention_window is None else min(seq_len, cfg.attention_window)
    pairs = seen if attention == "full" else seen - seen**2 / (2 * seq_len)
    return Flops(
        matmul=2 * (cfg.num_layers * block + d * cfg.vocab_size),
        attention=int(cfg.num_layers * 4 * h * c * pairs),
        activation=cfg.num_layers * experts * f * cfg.activation_fn.flops,
    )


def mfu(
    cfg: ModelConfig,
    tokens_per_second: float,
    seq_len: int,
    peak_flops: float,
    *,
    attention: AttentionCount = "full",
) -> float:
    """Model FLOPs utilisation: 3 (matmul + attention) x tokens_per_second / peak_flops.

    The parts are those of `flops_per_token`, and 3 stands for forward and backward; recomputation
    does not count. Nor do the activation's own FLOPs, as in both conventions: they do not run on
    the matrix unit whose peak is meant.

    Args:
        cfg: the model.
        tokens_per_second: of training, over all devices.
        seq_len: tokens of a sequence.
        peak_flops: FLOP/s of all devices together.
        attention: as in `flops_per_token`.

    Returns:
        A share, from 0 to 1.
    """
    count = flops_per_token(cfg, seq_len, attention=attention)
    return 3 * (count.matmul + count.attention) * tokens_per_second / peak_flops
