"""What a transformer is: one frozen, validated dataclass."""

import warnings
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from polycom_jax._errors import InputError, require
from polycom_jax._fields import check_fields, check_range
from polycom_jax.kernels.checkpoint_names import Remat
from polycom_jax.kernels.implementations import AttentionImplementation
from polycom_jax.kernels.rope import UNSCALED, RopeScaling
from polycom_jax.reference import Reference, is_reference
from polycom_jax.table import ACTIVATIONS, Activation, ActivationOptions, get_activation

QkNorm = Literal["none", "head", "full"]
Init = Literal["megatron", "olmo"]
Dtype = Literal["float32", "bfloat16", "float16"]
Parametrization = Literal["standard", "mup"]
Coefficients = Literal["layer", "expert"]

MUP_BASE_WIDTH = 64

_COUNTS = (
    *("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim"),
    *("gated_width", "context_length", "mup_base_width"),
)


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of each feed-forward block; without experts, none.

    Attributes:
        num_experts: experts E in a layer; 0: the model is dense.
        top_k: experts that each token goes to, those of the greatest router probability.
        normalize_top_k: divide a token's k probabilities by their sum; OLMoE does not.
        coefficients: PolyCom coefficients that a "layer"'s experts share, or one set an "expert".
        capacity_factor: rows that a device of the expert axis accepts, relative to even routing;
            the rest is dropped and counted. Default: no limit, and buffers for the worst case.
        load_balance_weight: weight of the load-balance loss.
        router_z_weight: weight of the router z-loss.
    """

    num_experts: int = 0
    top_k: int = 8
    normalize_top_k: bool = False
    coefficients: Coefficients = "layer"
    capacity_factor: float | None = None
    load_balance_weight: float = 0.01
    router_z_weight: float = 0.001

    def __post_init__(self) -> None:
        check_fields(self, "moe.")
        check_range(self, "at least 0", "num_experts", prefix="moe.")
        check_range(self, "at least 1", "top_k", prefix="moe.")
        weights = ("load_balance_weight", "router_z_weight")
        check_range(self, "at least 0 and finite", *weights, prefix="moe.")
        require(
            self.num_experts == 0 or self.top_k <= self.num_experts,
            f"moe.top_k={self.top_k} is more than moe.num_experts={self.num_experts}: a token goes"
            " to an expert once.",
        )
        capacity = self.capacity_factor
        require(
            capacity is None or 0 < capacity < float("inf"),
            f"moe.capacity_factor={capacity} must be positive and finite; none drops nothing.",
        )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, RoPE, causal attention, PolyCom or another activation.

    Attributes:
        vocab_size: number of token ids, without the padding inside the model.
        num_layers: number of blocks.
        embed_dim: width D of the residual stream.
        num_heads: query heads H.
        num_kv_heads: key and value heads K; H is a multiple of it (K = H: multi-head attention).
        head_dim: width C of a head; even, because RoPE rotates pairs, channels c and c + C/2.
        gated_width: hidden width F of a gated feed-forward block. A block without a gate gets 3/2
            of it, so that its two matrices have as many parameters as the three of a gated one
            (paper section 4.1: SwiGLU 5504, others 8256).
        ffn_width: hidden width F, whatever the activation; None: from `gated_width`.
        activation: one of `polycom_jax.ACTIVATIONS`; `FILE.py:NAME` or `MODULE:NAME` for what
            `polycom_jax.activation` has made in a file, which is imported, and its SHA-256 put
            behind the name; in code, what `polycom_jax.activation` returns.
        activation_options: options of the activation (order, eps, bits, ...).
        moe: mixture of experts in place of each feed-forward block; widths are then those of one
            expert.
        context_length: longest sequence that the model is trained on, in tokens.
        qk_norm: RMSNorm of queries and keys: "none", per "head", or over the "full" width.
        tie_embeddings: one matrix for embedding and unembedding.
        rope_theta: base of the rotary frequencies.
        rope_scaling: what slows down some of them, for a longer context, as in Llama 3.1; default:
            nothing does.
        norm_eps: epsilon of every RMSNorm, inside the root.
        logit_softcap: logits are softcap x tanh(logits / softcap); Gemma 2 takes 30. None: they are
            not bounded.
        document_mask: in training and in held-out losses, attention and positions restart at each
            document.
        attention_window: tokens that one attends to at most in each layer, itself and those just
            before it, as in Mistral. Default: all.
        init: "megatron": normal with standard deviation sqrt(2 / 5D), output projections divided by
            sqrt(2 num_layers); "olmo": normal with standard deviation 0.02, truncated at three of
            them.
        parametrization: how initial values, updates and logits follow the width. "mup": maximal
            update, under which the learning rate of a narrow model is that of a wide one; rules in
            `models.parametrization`. Heads and hidden width are to grow with embed_dim, head_dim to
            stay.
        mup_base_width: embed_dim at which "mup" is "standard".
        attention: implementation of attention, see `kernels.attention.attention`. Default: the best
            one of the backend. Decoding with a cache always takes "xla".
        dtype: dtype of activations and matrix products; parameters are stored in float32. float16
            is for GPUs that have no bfloat16, and trains with `OptimConfig.loss_scaling` alone.
        loss_chunk: tokens on a device whose logits are in memory at once; the gradient does not
            depend on it. Default: all.
        remat: what the backward pass recomputes. "none"; "full": whole blocks; "dots": all but
            attention and matrix products (those of experts are recomputed); "attention": all but
            the inputs and the result of attention. All but "full" save the statistics of each row
            for PolyNorm; "none" and "dots" save the hidden layer and its bits, experts' too, where
            `activation_options.bits` is set.
        unroll: layers in one iteration of the scan over layers; more take longer to compile.
            Default: all, if they are few and run on a CPU; else one.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated_width: int
    ffn_width: int | None = None
    activation: str | Activation = "poly_norm"
    activation_options: ActivationOptions = ActivationOptions()
    moe: MoEConfig = MoEConfig()
    context_length: int = 4096
    qk_norm: QkNorm = "none"
    tie_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = UNSCALED
    norm_eps: float = 1e-5
    logit_softcap: float | None = None
    document_mask: bool = True
    attention_window: int | None = None
    init: Init = "megatron"
    parametrization: Parametrization = "standard"
    mup_base_width: int = MUP_BASE_WIDTH
    attention: AttentionImplementation | None = None
    dtype: Dtype = "float32"
    remat: Remat = "none"
    unroll: int | None = None
    loss_chunk: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        self._settle_activation()
        check_range(self, "at least 1", *_COUNTS)
        check_range(self, "positive and finite", "rope_theta", "norm_eps", "logit_softcap")
        for name in ("ffn_width", "attention_window", "loss_chunk", "unroll"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value} must be at least 1, or none.")
        require(
            self.parametrization == "mup" or self.mup_base_width == MUP_BASE_WIDTH,
            f"mup_base_width={self.mup_base_width} with parametrization=standard, which has no"
            " base; add parametrization=mup.",
        )
        self._check_heads()
        require(
            self.head_dim % 2 == 0,
            f"head_dim={self.head_dim} must be even, because RoPE turns pairs; "
            f"nearest: {self.head_dim + 1}.",
        )
        _ = self.hidden_width  # an unknown activation or option, or a fractional width, fails here

    def _settle_activation(self) -> None:
        """A row of the table by its name, one in a file with the hash of that."""
        act = self.activation
        if isinstance(act, str):
            if is_reference(act):
                object.__setattr__(self, "activation", str(Reference.parse(act).pinned()))
        elif act.name in ACTIVATIONS:
            object.__setattr__(self, "activation", act.name)
            if self.activation_options == ActivationOptions():
                object.__setattr__(self, "activation_options", act.options)

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            small = [k for k in range(1, isqrt(self.num_heads) + 1) if self.num_heads % k == 0]
            divisors = {*small, *(self.num_heads // k for k in small)}
            near = sorted(divisors, key=lambda k: (abs(k - self.num_kv_heads), k))[:2]
            raise InputError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads="
                f"{self.num_kv_heads}; nearest: num_kv_heads={' or '.join(map(str, sorted(near)))}."
            )

    @property
    def activation_fn(self) -> Activation:
        """The activation: its function, parameter specs, width rule and FLOPs."""
        return get_activation(self.activation, self.activation_options)

    @property
    def activation_name(self) -> str:
        """What tables, titles and folders call it."""
        return self.activation_fn.name

    @property
    def row(self) -> Activation:
        """`activation_fn` under its name of 0.1.0, for one more release."""
        text = "ModelConfig.row is now activation_fn; the old name goes with the next release."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.activation_fn

    @property
    def hidden_width(self) -> int:
        """Width F of the feed-forward block's hidden layer, or of one expert's."""
        width = self.ffn_width
        return self.activation_fn.width(self.gated_width) if width is None else width

    @property
    def width_multiple(self) -> float:
        """m = D / `mup_base_width` under "mup", else 1: how much wider than the base it is."""
        return self.embed_dim / self.mup_base_width if self.parametrization == "mup" else 1.0

    @property
    def is_moe(self) -> bool:
        """Whether its feed-forward blocks are mixtures of experts."""
        return self.moe.num_experts > 0
