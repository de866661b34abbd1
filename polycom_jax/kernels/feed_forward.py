"""The feed-forward block: the formula, and the forms in which XLA's backends run it well."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.kernels.checkpoint_names import Remat, checkpoint_as, remat_hidden
from polycom_jax.kernels.implementations import FeedForwardImplementation, Kernel, Operation
from polycom_jax.kernels.poly_norm.api import FORMS
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.row_kernel import unsupported_on_gpu
from polycom_jax.kernels.poly_norm.variants import RECASTS
from polycom_jax.kernels.projection import as_operand
from polycom_jax.kernels.sharded import (
    features_are_sharded,
    hidden_axes,
    on_one_device,
    over_mesh,
    rows_are_local,
    unsharded_features,
)
from polycom_jax.kernels.split_cotangent import split_cotangent
from polycom_jax.sharding import Rules, constrain

Params = Mapping[str, Any]
"""`w_up` [D, F], `w_down` [F, D], `w_gate` [D, F] if gated, and the activation's own."""


class Activation(Protocol):
    """What the block asks of an activation of `polycom_jax.table`."""

    apply: Callable[..., Array]

    @property
    def gated(self) -> bool: ...  # noqa: D102
    @property
    def reads(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def over_rows(self) -> bool: ...  # noqa: D102
    @property
    def options(self) -> Any: ...  # noqa: D102
    @property
    def row(self) -> Any: ...  # noqa: D102
    def arguments(self, params: Any, hidden: Array) -> list[Array]: ...  # noqa: D102


def feed_forward(
    activation: Activation,
    params: Params,
    x: Float[Array, "B T D"],
    *,
    rules: Rules | None = None,
    remat: Remat = "none",
    implementation: FeedForwardImplementation | None = None,
) -> Float[Array, "B T D"]:
    """act(x W_up) W_down, or act(x W_gate, x W_up) W_down if the activation is gated.

    Args:
        activation: one of the table, as from `get_activation`.
        params: the matrices, in the dtype of `x`, and `activation`.
        x: the normalised residual stream.
        rules: how arrays are split over the mesh of `jax.set_mesh`; None: not stated.
        remat: of the model. With "none" the backward pass keeps pre-activations and computes the
            hidden layer again; with few-bit backward it keeps the hidden layer and the bits.
            Otherwise a surrounding `jax.checkpoint` decides.
        implementation: None for the backend's best, or
            "reference": the formula, differentiated by JAX;
            "xla": the same products, with names for what is saved;
            "gpu": PolyNorm's kernels, for its variants too; that of the backward pass forms the
                hidden layer, too;
            "tpu": PolyNorm's gradient formed in each of the two products that read it.

    Returns:
        The shape and dtype of `x`. Derivatives of every order exist in every mode, unless the
        activation is a Pallas kernel or has few-bit backward.

    Raises:
        InputError: an implementation that is unknown or cannot take the activation.
    """
    return _FEED_FORWARD(
        x, params, activation=activation, rules=rules, remat=remat, implementation=implementation
    )


def pre_activations(
    activation: Activation, params: Params, x: Float[Array, "B T D"], *, rules: Rules | None = None
) -> list[Float[Array, "*N F"]]:
    """What the activation is applied to: x W_up, or x W_gate and x W_up if gated."""
    y = as_operand(x)
    return [checkpoint_as("product", _product(rules, y, w)) for w in _inward(activation, params)]


def _reference(
    x: Array, params: Params, *, activation: Activation, rules: Rules | None, remat: Remat
) -> Array:
    del rules, remat
    hidden = [jnp.dot(x, w) for w in _inward(activation, params)]
    return jnp.dot(activation.apply(params["activation"], *hidden), params["w_down"])


def _plain(
    x: Array, params: Params, *, activation: Activation, rules: Rules | None, remat: Remat
) -> Array:
    hidden = pre_activations(activation, params, x, rules=rules)
    out = _down(partial(_activate, activation, rules), params, hidden, remat)
    return out.reshape(x.shape)


def _through_kernel(
    x: Array, params: Params, *, activation: Activation, rules: Rules | None, remat: Remat
) -> Array:
    # Pallas is slow to import.
    from polycom_jax.kernels.poly_norm.gpu_product import activated_product

    del remat
    hidden = pre_activations(activation, params, x, rules=rules)
    form, coeffs = _as_form(activation, params["activation"], hidden[0])
    return activated_product(form, rules, params["w_down"], coeffs, *hidden).reshape(x.shape)


def _as_form(activation: Activation, own: Any, hidden: Array) -> tuple[Form, Array]:
    """The operation of PolyNorm's kernels that the activation is, and its coefficients."""
    recast = RECASTS[activation.row.function]
    parameters = activation.arguments(own, hidden)
    coeffs, eps = recast.numbers(parameters, activation.options.eps, hidden.shape[-1])
    return Form(coeffs.size - 1, eps, **FORMS[recast.operation]), coeffs


def _why_not_through_kernel(
    x: Array, params: Params, *, activation: Activation, rules: Rules | None, remat: Remat
) -> str | None:
    if activation.row.function not in RECASTS:
        return "the activation is none of PolyNorm's kernels"
    if activation.options.implementation not in (None, "pallas_gpu"):
        return f"the activation's implementation is {activation.options.implementation!r}"
    if remat == "full":
        return "remat='full' keeps nothing of rows for the backward kernel to start from"
    shape = (*as_operand(x).shape[:-1], params["w_down"].shape[0])
    hidden: Any = jax.ShapeDtypeStruct(shape, x.dtype)
    if not (on_one_device() or rows_are_local(rules, hidden)):
        return "the mesh splits rows of the hidden layer, or gives some to several devices"
    coeffs: Any = jax.eval_shape(lambda: _as_form(activation, params["activation"], hidden)[1])
    with unsharded_features(True):
        return unsupported_on_gpu(hidden, coeffs)


def _split(
    x: Array, params: Params, *, activation: Activation, rules: Rules | None, remat: Remat
) -> Array:
    apply, product = partial(_activate, activation, rules), partial(_product, rules)

    def act(own: Any, y: Array, *ws: Array) -> Array:
        return split_cotangent(apply, product, own, y, ws)

    return _down(act, params, [as_operand(x), *_inward(activation, params)], remat).reshape(x.shape)


def _why_not_split(_x: Array, _params: Params, *, activation: Activation, **_: Any) -> str | None:
    if not _has_learned_means(activation):
        return "the activation's gradient waits for no sum over the row"
    return "the activation is a kernel of its own" if _is_kernel(activation) else None


_FEED_FORWARD = Operation(
    "feed_forward",
    {
        "reference": Kernel(_reference),
        "xla": Kernel(_plain),
        "gpu": Kernel(_through_kernel, _why_not_through_kernel),
        "tpu": Kernel(_split, _why_not_split),
    },
)


def inward_names(activation: Activation) -> tuple[str, ...]:
    """The matrices whose products the activation is applied to, in order."""
    return ("w_gate", "w_up") if activation.gated else ("w_up",)


def _inward(activation: Activation, params: Params) -> list[Array]:
    return [params[name] for name in inward_names(activation)]


def _product(
    rules: Rules | None, y: Float[Array, "*N D"], w: Float[Array, "D F"]
) -> Float[Array, "*N F"]:
    with jax.named_scope("ffn_up"):
        x = jnp.dot(y, w)
        return constrain(x, rules, *hidden_axes(x))


def _activate(
    activation: Activation, rules: Rules | None, own: Any, *hidden: Float[Array, "*N F"]
) -> Float[Array, "*N F"]:
    apply = activation.apply
    # Whether a row must be scaled is for the device that holds it to decide: in GSPMD's program
    # all devices would decide together, over the network, in every layer.
    local = _has_learned_means(activation) and rows_are_local(rules, hidden[0])
    if local or _is_kernel(activation):
        apply = partial(over_mesh, apply, rules)
    with jax.named_scope("activation"), unsharded_features(not features_are_sharded(rules)):
        h = apply(own, *hidden)
        return constrain(h, rules, *hidden_axes(h))


def _down(
    act: Callable[..., Array], params: Params, inputs: list[Array], remat: Remat
) -> Float[Array, "*N D"]:
    def down(own: Any, w_down: Array, *inputs: Array) -> Array:
        h = act(own, *inputs)
        with jax.named_scope("ffn_down"):
            return jnp.dot(h, w_down)

    return remat_hidden(down, remat)(params["activation"], params["w_down"], *inputs)


def _has_learned_means(activation: Activation) -> bool:
    """Whether it is PolyNorm or one of its relatives."""
    return activation.over_rows and "implementation" in activation.reads


def _is_kernel(activation: Activation) -> bool:
    return activation.options.implementation in ("pallas_gpu", "pallas_tpu")
