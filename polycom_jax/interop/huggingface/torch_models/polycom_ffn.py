"""PolyCom activations (arXiv 2411.03884) and feed-forward blocks with them, in PyTorch.

Written by polycom_jax beside the weights of a model that uses them. `coeffs[i]` belongs to the i-th
power; `coeffs[0]` is the constant. What `config.polycom` may say is what polycom_jax's
`ActivationOptions` says.
"""
# pyright: reportMissingImports=false

import torch
from torch import nn

INITIAL_SLOPE = 0.25


def polynomial(x, coeffs):
    """sum_i coeffs[i] x^i; a coefficient is a number, or one number a row."""
    y = torch.zeros_like(x)
    for coeff in reversed(coeffs):
        y = y * x + coeff
    return y


def scale_row(x):
    """(x * scale, scale): a power of two a row, so that no power of it overflows."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    scale = torch.exp2(-(torch.frexp(largest).exponent - 1).clamp(0, 120).to(x.dtype))
    return x * scale, scale


def unit_rms(y, eps):
    """y / sqrt(mean(y^2) + eps), the mean over the last axis."""
    z, scale = scale_row(y)
    return z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + eps * scale.square())


def poly_norm(x, coeffs, eps):
    """coeffs[0] + sum_{i>=1} coeffs[i] x^i / sqrt(mean(x^2i) + eps), means over the last axis."""
    z, scale = scale_row(x)
    terms, square, shrink = [coeffs[0]], torch.ones_like(z), eps
    for coeff in coeffs[1:]:
        square, shrink = square * z * z, shrink * scale * scale
        terms.append(coeff * torch.rsqrt(square.mean(dim=-1, keepdim=True) + shrink))
    return polynomial(z, terms)


POLYCOM = {
    "poly_norm": lambda x, c, slope, eps: poly_norm(x, c, eps),
    "poly_norm_glu": lambda x, c, slope, eps: poly_norm(x, c, eps),
    "poly_relu": lambda x, c, slope, eps: polynomial(x.relu(), c),
    "poly_prelu": lambda x, c, slope, eps: polynomial(torch.where(x > 0, x, slope * x), c),
    "poly_relu_norm": lambda x, c, slope, eps: poly_norm(x.relu(), c, eps),
}
FIXED = {
    "relu": torch.relu,
    "relu2": lambda x: x.relu().square(),
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "gelu_norm": nn.functional.gelu,
    "relu2_norm": lambda x: x.relu().square(),
    "swiglu_norm": nn.functional.silu,
}
NORMED = ("gelu_norm", "relu2_norm", "swiglu_norm")  # behind the product with `up`, if there is one
GATED = ("poly_norm_glu", "swiglu_norm")


def is_gated(config):
    """Does the block have a gate projection beside the one up."""
    return config.polycom["activation"] in GATED


class PolyComActivation(nn.Module):
    """The activation of one block, computed in float32; its parameters stay float32."""

    def __init__(self, config):
        super().__init__()
        self.options = config.polycom
        self.name = self.options["activation"]
        if self.name in POLYCOM:
            self.coeffs = nn.Parameter(torch.empty(self.options["order"] + 1, dtype=torch.float32))
        if self.name == "poly_prelu":
            self.slope = nn.Parameter(torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Effective coefficients 0, 1/order, ..., 1/order: their logits with the sigmoid."""
        for name, parameter in self.named_parameters():
            nn.init.constant_(parameter, INITIAL_SLOPE)
            if name == "coeffs":
                nn.init.constant_(parameter, 1 / self.options["order"])
                if self.options["sigmoid"]:
                    parameter.logit_()
                parameter[0] = 0

    def _apply(self, fn, recurse=True):
        """Goes to other devices as all modules do, but not to other dtypes: 1/3 would be 0.334."""
        exact = {name: parameter.detach() for name, parameter in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype != torch.float32:
                parameter.data = exact[name].to(parameter.device)
        return self

    def effective(self):
        """The coefficients as the options hold them in bounds."""
        coeffs = self.coeffs.float()
        if self.options["sigmoid"]:
            coeffs = torch.cat([coeffs[:1], coeffs[1:].sigmoid()])
        if self.options["bound"] is not None:
            coeffs = coeffs.clamp(-self.options["bound"], self.options["bound"])
        return coeffs * self.options["output_scale"]

    def forward(self, x, up=None):
        """The activation of x, times `up` if that is given."""
        y = x.float()
        if self.name in FIXED:
            y = FIXED[self.name](y)
        else:
            slope = getattr(self, "slope", None)
            y = POLYCOM[self.name](y, list(self.effective()), slope, self.options["eps"])
        y = y if up is None else y * up.float()
        return (unit_rms(y, self.options["eps"]) if self.name in NORMED else y).to(x.dtype)


class PolyComFeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)); `own`: the activation is its own."""

    def __init__(self, config, own=True):
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        if is_gated(config):
            self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        if own:
            self.activation = PolyComActivation(config)

    def forward(self, x, activation=None):
        """The block's output; `activation` in place of its own."""
        act = self.activation if activation is None else activation
        if hasattr(self, "gate_proj"):
            return self.down_proj(act(self.gate_proj(x), self.up_proj(x)))
        return self.down_proj(act(self.up_proj(x)))
