"""A vision transformer of the library's own blocks, without the causal mask."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.vision.resnet import head_specs
from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax._fields import check_fields, check_range
from polycom_jax.kernels.attention.xla import masked_attention
from polycom_jax.kernels.projection import project
from polycom_jax.kernels.rope import SinCos, sin_cos
from polycom_jax.models import ModelConfig, layers
from polycom_jax.params import Params, ParamSpec, Specs
from polycom_jax.table import Activation


@dataclass(frozen=True)
class VitConfig:
    """Size of the vision transformer.

    Attributes:
        patch_size: pixels along a side of a patch; each patch is a token.
        layers: blocks.
        embed_dim: width of the residual stream. A feed-forward block without a gate has about four
            times as many hidden units, a gated one about 8/3 times as many: as many weights.
        heads: of attention.
    """

    patch_size: int = 2
    layers: int = 2
    embed_dim: int = 32
    heads: int = 2

    def __post_init__(self) -> None:
        check_fields(self, "vit.")
        names = ("patch_size", "layers", "embed_dim", "heads")
        check_range(self, "at least 1", *names, prefix="vit.")
        require(
            self.embed_dim % (2 * self.heads) == 0,
            f"vit.embed_dim={self.embed_dim} must be a multiple of twice vit.heads={self.heads};"
            f" nearest: {max(1, round(self.embed_dim / 2 / self.heads)) * 2 * self.heads}.",
        )


@dataclass(frozen=True)
class Vit:
    """Patches, a linear map, learned positions, blocks, the mean over tokens, a linear map.

    Positions are learned, as in Dosovitskiy et al. (arXiv 2010.11929), and not rotary, which is for
    tokens in a line. The blocks have RMSNorm before attention and before the feed-forward block,
    whose activation is the one in question.

    Attributes:
        activation: of the feed-forward blocks.
        classes: how many.
        shape: of images: height, width, channels.
        size: of the network.
    """

    activation: Activation
    classes: int
    shape: tuple[int, int, int]
    size: VitConfig

    def __post_init__(self) -> None:
        height, width, _ = self.shape
        side = self.size.patch_size
        require(
            height % side == 0 and width % side == 0,
            f"vit.patch_size={side} must divide the images' height {height} and width {width}.",
        )

    @cached_property
    def config(self) -> ModelConfig:
        """Of the blocks; a vocabulary is none of theirs."""
        dim, heads = self.size.embed_dim, self.size.heads
        return ModelConfig(
            vocab_size=self.classes,
            num_layers=self.size.layers,
            embed_dim=dim,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=dim // heads,
            gated_width=8 * max(1, round(dim / 3)),
            activation=self.activation,
            context_length=self.tokens,
        )

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.shape[0] * self.shape[1] // self.size.patch_size**2

    @property
    def specs(self) -> Specs:
        """The declaration of all parameters."""
        dim, pixels = self.size.embed_dim, self.size.patch_size**2 * self.shape[2]
        normal, linear = jax.nn.initializers.normal(0.02), jax.nn.initializers.lecun_normal()
        block = {"attention": layers.attention_specs(self.config)}
        block["ffn"] = layers.ffn_specs(self.config)
        return {
            "embed": ParamSpec((pixels, dim), (None, None), linear, "matrix"),
            "positions": ParamSpec((self.tokens, dim), (None, None), normal, "embedding"),
            "layers": pm.stack(block, self.size.layers),
            "final_norm": layers.norm_spec(dim),
            "head": head_specs(dim, self.classes),
        }

    def logits(self, params: Params, x: Float[Array, "B H W C"]) -> Float[Array, "B k"]:
        """One number a class."""
        y = project(patches(x, self.size.patch_size), params["embed"]) + params["positions"][None]

        def block(y: Array, own: Params) -> tuple[Array, None]:
            y = y + self._attention(own["attention"], y)
            return y + layers.ffn(self.config, own["ffn"], y, None), None

        y, _ = jax.lax.scan(block, y, params["layers"], unroll=min(self.size.layers, 8))
        y = layers.rms_norm(y, params["final_norm"], self.config.norm_eps)
        return jnp.mean(y, axis=1) @ params["head"]["w"] + params["head"]["b"][None]

    def _attention(self, params: Params, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Every patch sees every patch."""
        angles = _no_rotation(self.tokens, self.config.head_dim)
        q, k, v = layers.queries_keys_values(self.config, params, y, angles, None)
        seen = jnp.ones((1, self.tokens, self.tokens), bool)
        return project(masked_attention(q, k, v, seen), params["w_o"])


def _no_rotation(tokens: int, head_dim: int) -> SinCos:
    """The angle 0 for every token: rotary embedding is the identity then."""
    return sin_cos(jnp.zeros((1, tokens), jnp.int32), head_dim, 1.0)


def patches(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B T P"]:
    """The pixels of each patch in a row, patches line by line."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
