"""Residual networks for small images, with any activation that takes one array."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax._errors import require
from polycom_jax._fields import check_fields, check_range
from polycom_jax.kernels.implementations import backend
from polycom_jax.params import Params, ParamSpec, Specs
from polycom_jax.table import Activation

STAGES = 3
GROUP_CHANNELS = 8
"""Channels that are normalised together."""
EPS = 1e-5


@dataclass(frozen=True)
class ResNetConfig:
    """Size of the residual networks.

    Attributes:
        blocks: n, blocks in each of the three stages: the depth is 6n + 2.
        width: channels of the first stage; the others have two and four times as many. A multiple
            of 8.
    """

    blocks: int = 1
    width: int = 8

    def __post_init__(self) -> None:
        check_fields(self, "resnet.")
        check_range(self, "at least 1", "blocks", "width", prefix="resnet.")
        require(
            self.width % GROUP_CHANNELS == 0,
            f"resnet.width={self.width} must be a multiple of {GROUP_CHANNELS}, the channels that"
            f" are normalised together; nearest: {max(1, round(self.width / 8)) * 8}.",
        )


@dataclass(frozen=True)
class ResNet:
    """The CIFAR form of He et al.: a convolution, three stages of n blocks, the mean over pixels.

        x <- act(N(C(act(N(C x)))) + S x)       after the addition: arXiv 1512.03385
        x <- C(act(N(C(act(N x))))) + S x       before it: arXiv 1603.05027

    C are convolutions of 3 x 3 pixels, S is the identity; where the stage changes, it leaves out
    every other pixel and fills new channels with zeros, so that it has no parameters.

    N is GroupNorm (arXiv 1803.08494) and not BatchNorm: an image's result does not depend on those
    beside it, and the network is a pure function without running means.

    An activation is applied to the channels, the last axis, at each pixel. For one that reads whole
    rows, as PolyNorm does, the mean is thus over the channels of a pixel, as in a transformer over
    the hidden units of a token: independent of the batch and of the image's size. Each place of the
    network has its own parameters.

    Attributes:
        activation: not a gated one.
        classes: how many.
        channels: of images.
        size: of the network.
        pre: activations stand before the convolutions.
    """

    activation: Activation
    classes: int
    channels: int
    size: ResNetConfig
    pre: bool

    def __post_init__(self) -> None:
        require(
            not self.activation.gated,
            f"{self.activation.name} is gated: it takes two projections of its input, and the"
            " convolutions of a residual block are one; take it with --models vit.",
        )

    @property
    def specs(self) -> Specs:
        """The declaration of all parameters."""
        width = self.size.width
        last = 2 ** (STAGES - 1) * width
        ends = {"final": self._site(last)} if self.pre else {"first": self._site(width)}
        return {
            "stem": _kernel(self.channels, width),
            **ends,
            **{name: self._block(*widths) for name, widths in self._blocks()},
            "head": head_specs(last, self.classes),
        }

    def _blocks(self) -> list[tuple[str, tuple[int, int]]]:
        """Name -> channels that come in and go out."""
        found, before = [], self.size.width
        for stage in range(STAGES):
            width = 2**stage * self.size.width
            for block in range(self.size.blocks):
                found.append((f"stage{stage}_block{block}", (before, width)))
                before = width
        return found

    def _block(self, before: int, width: int) -> Specs:
        return {
            "conv1": _kernel(before, width),
            "conv2": _kernel(width, width),
            "site1": self._site(before if self.pre else width),
            "site2": self._site(width),
        }

    def _site(self, width: int) -> Specs:
        """A norm and an activation."""
        ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros
        return {
            "scale": ParamSpec((width,), (None,), ones, "norm"),
            "shift": ParamSpec((width,), (None,), zeros, "norm"),
            "activation": self.activation.specs_at(width),
        }

    def logits(self, params: Params, x: Float[Array, "B H W C"]) -> Float[Array, "B k"]:
        """One number a class."""
        x = convolution(x, params["stem"])
        if not self.pre:
            x = self._act(params["first"], _norm(params["first"], x))
        for name, (before, width) in self._blocks():
            x = self._run(params[name], x, 1 if before == width else 2)
        if self.pre:
            x = self._act(params["final"], _norm(params["final"], x))
        return jnp.mean(x, axis=(1, 2)) @ params["head"]["w"] + params["head"]["b"][None]

    def _run(self, p: Params, x: Float[Array, "B H W C"], stride: int) -> Float[Array, "B I J K"]:
        one, two = p["site1"], p["site2"]
        kept = _shortcut(x, stride)
        if self.pre:
            y = convolution(self._act(one, _norm(one, x)), p["conv1"], stride)
            return kept + convolution(self._act(two, _norm(two, y)), p["conv2"])
        y = self._act(one, _norm(one, convolution(x, p["conv1"], stride)))
        return self._act(two, kept + _norm(two, convolution(y, p["conv2"])))

    def _act(self, site: Params, x: Array) -> Array:
        return self.activation.apply(site["activation"], x)


def head_specs(width: int, classes: int) -> Specs:
    """A linear map to the classes."""
    start = jax.nn.initializers.lecun_normal()
    return {
        "w": ParamSpec((width, classes), (None, None), start, "matrix"),
        "b": ParamSpec((classes,), (None,), jax.nn.initializers.zeros, "norm"),
    }


def _kernel(before: int, after: int) -> ParamSpec:
    start = jax.nn.initializers.he_normal(in_axis=(0, 1, 2), out_axis=3)
    return ParamSpec((3, 3, before, after), (None,) * 4, start, "matrix")


def _norm(site: Params, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """GroupNorm: of each image, over all pixels and `GROUP_CHANNELS` neighbouring channels."""
    grouped = x.reshape(*x.shape[:3], -1, GROUP_CHANNELS)
    axes = (1, 2, 4)
    mean = jnp.mean(grouped, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(grouped - mean), axis=axes, keepdims=True)
    y = ((grouped - mean) * jax.lax.rsqrt(variance + EPS)).reshape(x.shape)
    return y * site["scale"].reshape(1, 1, 1, -1) + site["shift"].reshape(1, 1, 1, -1)


def _shortcut(x: Float[Array, "B H W C"], stride: int) -> Float[Array, "B I J K"]:
    """The identity; with a stride, every other pixel, and as many channels of zeros again."""
    if stride == 1:
        return x
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, x.shape[-1])))


def convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C K"], stride: int = 1
) -> Float[Array, "B I J K"]:
    """3 x 3 pixels, zeros around the image.

    XLA's CPU backend runs convolutions inside loops without its fast library, many times slower
    than the product with a matrix of patches.
    """
    return (_by_patches if backend() == "cpu" else _by_xla)(x, kernel, stride)


def _by_xla(x: Array, kernel: Array, stride: int) -> Any:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _by_patches(x: Array, kernel: Array, stride: int) -> Any:
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    patches = jnp.concatenate(parts, axis=-1)
    flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*patches.shape[:3], -1)
