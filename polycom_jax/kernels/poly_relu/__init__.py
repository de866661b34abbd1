"""PolyReLU and PolyPReLU: definitions in `polycom_jax.activations`, versions here."""

from polycom_jax.kernels.poly_relu.api import poly_prelu as poly_prelu
from polycom_jax.kernels.poly_relu.api import poly_relu as poly_relu
