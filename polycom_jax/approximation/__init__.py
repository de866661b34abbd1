"""The theory of PolyCom as networks: each lemma and theorem builds one and states its bound.

    >>> import jax
    >>> from polycom_jax import approximation as pa
    >>> net = pa.taylor_network(lambda x: jax.numpy.exp(-x[:, 0]), n=3, d=1, cells=8)
    >>> net.size == pa.size_formula(n=3, d=1, cells=8), net.depth
    (True, 4)

Exact (`exact`, `product_tree`, `bridges`): Lemma 1, Theorem 1, products, shared coefficients, the
two types of PolyCom. Within eps (`sawtooth`, `imitation`, `pieces`): Lemma 2, Theorem 2. For a
target in a Sobolev space (`taylor`, `bounds`, `partitions`): Theorem 3. Beyond the paper, which has
no theorem for PolyNorm: `normed_sobolev`, `normed_imitation` and `favard`. Theorem 3's errors of
derivatives (`derivative_bounds`), the same rate by a single power of ReLU (`splines`), and what no
network can do better (`lower_bounds`). To measure it: norms and errors (`sobolev`), functions of
norm 1 (`targets`). Depth for width at a given size: `rounds`, and `folded_square` of `sawtooth`.

Reference: Zhuo et al., "Polynomial Composition Activations", ICLR 2025, arXiv 2411.03884, sec. 3.
"""

from typing import Any

from polycom_jax._errors import old_name
from polycom_jax.approximation.bounds import bound as bound
from polycom_jax.approximation.bounds import cell_size as cell_size
from polycom_jax.approximation.bounds import cells_for as cells_for
from polycom_jax.approximation.bounds import interior_error as interior_error
from polycom_jax.approximation.bounds import paper_bound as paper_bound
from polycom_jax.approximation.bounds import size_formula as size_formula
from polycom_jax.approximation.bridges import share_coefficients as share_coefficients
from polycom_jax.approximation.bridges import shared_power as shared_power
from polycom_jax.approximation.bridges import type1_by_type2 as type1_by_type2
from polycom_jax.approximation.bridges import type2_limit as type2_limit
from polycom_jax.approximation.bridges import type2_unit as type2_unit
from polycom_jax.approximation.combine import block_diagonal as block_diagonal
from polycom_jax.approximation.combine import compose as compose
from polycom_jax.approximation.combine import deepen as deepen
from polycom_jax.approximation.combine import flatten as flatten
from polycom_jax.approximation.combine import identity as identity
from polycom_jax.approximation.combine import parallel as parallel
from polycom_jax.approximation.dense import apply_dense as apply_dense
from polycom_jax.approximation.dense import dense_wires as dense_wires
from polycom_jax.approximation.dense import to_dense as to_dense
from polycom_jax.approximation.derivative_bounds import derivative_bound as derivative_bound
from polycom_jax.approximation.derivative_bounds import hoelder_bound as hoelder_bound
from polycom_jax.approximation.evaluation import evaluate as evaluate
from polycom_jax.approximation.evaluation import evaluate_copies as evaluate_copies
from polycom_jax.approximation.exact import exact_arithmetic as exact_arithmetic
from polycom_jax.approximation.exact import polynomial as polynomial
from polycom_jax.approximation.exact import power as power
from polycom_jax.approximation.exact import product as product
from polycom_jax.approximation.exact import quadratic_iterate as quadratic_iterate
from polycom_jax.approximation.exact import relu_network as relu_network
from polycom_jax.approximation.exact import square as square
from polycom_jax.approximation.favard import favard_bound as favard_bound
from polycom_jax.approximation.favard import favard_constant as favard_constant
from polycom_jax.approximation.favard import favard_means as favard_means
from polycom_jax.approximation.imitation import imitate as imitate
from polycom_jax.approximation.imitation import imitate_activation as imitate_activation
from polycom_jax.approximation.lower_bounds import bump_height as bump_height
from polycom_jax.approximation.lower_bounds import fewest_parameters as fewest_parameters
from polycom_jax.approximation.lower_bounds import fewest_weights as fewest_weights
from polycom_jax.approximation.lower_bounds import least_error as least_error
from polycom_jax.approximation.network import Network as Network
from polycom_jax.approximation.network import feed_forward as feed_forward
from polycom_jax.approximation.network import linear as linear
from polycom_jax.approximation.normed_imitation import poly_norm_imitation as poly_norm_imitation
from polycom_jax.approximation.normed_network import PolyNormNetwork as PolyNormNetwork
from polycom_jax.approximation.normed_network import evaluate_normed as evaluate_normed
from polycom_jax.approximation.normed_sobolev import PEAK as PEAK
from polycom_jax.approximation.normed_sobolev import SQUARE as SQUARE
from polycom_jax.approximation.normed_sobolev import poly_norm_bound as poly_norm_bound
from polycom_jax.approximation.normed_sobolev import poly_norm_network as poly_norm_network
from polycom_jax.approximation.partitions import partition as partition
from polycom_jax.approximation.pieces import count_pieces as count_pieces
from polycom_jax.approximation.pieces import fewest_pieces as fewest_pieces
from polycom_jax.approximation.pieces import fewest_units as fewest_units
from polycom_jax.approximation.pieces import imitation_lower_bound as imitation_lower_bound
from polycom_jax.approximation.pieces import most_pieces as most_pieces
from polycom_jax.approximation.product_tree import Arithmetic as Arithmetic
from polycom_jax.approximation.product_tree import monomials as monomials
from polycom_jax.approximation.rounds import in_rounds as in_rounds
from polycom_jax.approximation.sawtooth import folded_square as folded_square
from polycom_jax.approximation.sawtooth import sawtooth_arithmetic as sawtooth_arithmetic
from polycom_jax.approximation.sawtooth import sawtooth_error as sawtooth_error
from polycom_jax.approximation.sawtooth import sawtooth_square as sawtooth_square
from polycom_jax.approximation.sobolev import Grid as Grid
from polycom_jax.approximation.sobolev import derivative_norms as derivative_norms
from polycom_jax.approximation.sobolev import sobolev_error as sobolev_error
from polycom_jax.approximation.sobolev import sobolev_norm as sobolev_norm
from polycom_jax.approximation.splines import spline_bound as spline_bound
from polycom_jax.approximation.splines import spline_network as spline_network
from polycom_jax.approximation.targets import TARGETS as TARGETS
from polycom_jax.approximation.targets import get_target as get_target
from polycom_jax.approximation.taylor import active_copies as active_copies
from polycom_jax.approximation.taylor import interpolation_bound as interpolation_bound
from polycom_jax.approximation.taylor import linear_interpolant as linear_interpolant
from polycom_jax.approximation.taylor import relu_taylor_network as relu_taylor_network
from polycom_jax.approximation.taylor import taylor_network as taylor_network


def __getattr__(name: str) -> Any:
    return old_name(__name__, name, {"beside": block_diagonal})
