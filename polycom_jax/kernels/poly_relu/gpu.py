"""PolyReLU and PolyPReLU with all gradients of coefficients by one reduction, for XLA's GPU
backend; formulas in `cpu.py`.
"""

from polycom_jax.kernels.poly_relu import cpu
from polycom_jax.kernels.row_sums import all_sums

poly_relu, poly_prelu = cpu.with_sums(all_sums)
