"""The networks that classify images: shapes, what they depend on, equal starts, what is refused."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vision import resnet
from experiments.vision.resnet import ResNet, ResNetConfig
from experiments.vision.train import Network
from experiments.vision.vit import Vit, VitConfig, patches
from polycom_jax import InputError
from polycom_jax import params as pm
from polycom_jax.params import Params, Specs
from polycom_jax.table import get_activation

SMALL = VitConfig(patch_size=2, layers=1, embed_dim=12, heads=2)


def vit(name: str) -> Vit:
    return Vit(get_activation(name), 3, (4, 6, 1), SMALL)


def residual(name: str, *, pre: bool = False, blocks: int = 1) -> ResNet:
    return ResNet(get_activation(name), 3, 1, ResNetConfig(blocks, 8), pre=pre)


def start(specs: Specs) -> Params:
    """Any numbers: to compile the real start takes longer than all else here."""
    rng = np.random.default_rng(0)
    return pm.map_specs(lambda spec: jnp.asarray(0.3 * rng.normal(size=spec.shape), "f"), specs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 3, 2)])
def test_patches_give_the_convolution(shape: tuple[int, ...], stride: int):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], 4))
    expected = resnet._by_xla(x, kernel, stride)
    np.testing.assert_allclose(resnet._by_patches(x, kernel, stride), expected, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("pre", [False, True])
def test_a_residual_network_has_6n_plus_2_layers_of_weights(blocks: int, pre: bool):
    leaves = jax.tree.leaves(residual("relu", pre=pre, blocks=blocks).specs, is_leaf=pm.is_spec)
    assert sum(spec.role == "matrix" for spec in leaves) == 6 * blocks + 2


def test_an_image_s_result_does_not_depend_on_those_beside_it():
    net = residual("poly_norm")
    params = start(net.specs)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    logits = jax.jit(net.logits)
    changed = logits(params, x.at[1].multiply(5.0))
    np.testing.assert_array_equal(logits(params, x)[0], changed[0])
    assert logits(params, x).shape == (2, 3)
    assert (logits(params, x)[1] != changed[1]).any()


@pytest.mark.parametrize("net", [residual, vit])
def test_activations_have_equal_weights_but_for_their_own(net: Callable[[str], Network]):
    """Values follow from name, shape and initialiser: see `polycom_jax.params.init`."""
    one, other = (
        {
            pm.path_name(path): (spec.shape, spec.role)
            for path, spec in jax.tree_util.tree_flatten_with_path(
                net(name).specs, is_leaf=pm.is_spec
            )[0]
        }
        for name in ("relu", "poly_norm")
    )
    own = other.keys() - one.keys()
    assert own
    assert {role for _, role in (other[name] for name in own)} == {"coefficient"}
    assert {name: other[name] for name in one} == one


def test_every_patch_sees_every_patch_wherever_it_stands():
    net = vit("relu")
    own = jax.tree.map(lambda leaf: leaf[0], start(net.specs)["layers"]["attention"])
    y = jax.random.normal(jax.random.key(1), (1, net.tokens, 12))
    attend = jax.jit(net._attention)
    out, turned = attend(own, y), attend(own, y[:, ::-1])
    np.testing.assert_allclose(out[:, ::-1], turned, atol=1e-6)
    assert (attend(own, y.at[0, -1].add(1.0))[0, 0] != out[0, 0]).any()


def test_patches_hold_neighbouring_pixels():
    x = jnp.arange(24.0).reshape(1, 4, 6, 1)
    found = patches(x, 2)
    assert found.shape == (1, 6, 4)
    np.testing.assert_array_equal(found[0, 1], [2, 3, 8, 9])


def test_gated_and_other_feed_forward_blocks_have_as_many_weights():
    def weights(name: str) -> int:
        ffn = vit(name).specs["layers"]["ffn"]
        return sum(spec.size for name, spec in ffn.items() if name.startswith("w_"))

    assert weights("swiglu") == weights("relu")


def test_gated_activations_are_refused_where_there_is_one_projection():
    with pytest.raises(InputError, match="swiglu is gated"):
        residual("swiglu")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ResNetConfig(width=12), r"resnet\.width=12 must be a multiple of 8"),
        (lambda: ResNetConfig(blocks=0), r"resnet\.blocks=0 must be at least 1"),
        (lambda: VitConfig(embed_dim=50, heads=3), r"vit\.embed_dim=50.*nearest: 48"),
        (lambda: Vit(get_activation("relu"), 3, (5, 4, 1), SMALL), r"patch_size=2 must divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: object, said: str):
    with pytest.raises(InputError, match=said):
        make()  # pyright: ignore[reportCallIssue]
