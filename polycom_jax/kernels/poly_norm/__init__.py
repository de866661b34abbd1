"""PolyNorm and its relatives: definitions in `polycom_jax.activations`, versions here."""

from polycom_jax.kernels.poly_norm.api import poly_norm as poly_norm
from polycom_jax.kernels.poly_norm.api import poly_norm_glu as poly_norm_glu
from polycom_jax.kernels.poly_norm.api import poly_relu_norm as poly_relu_norm
