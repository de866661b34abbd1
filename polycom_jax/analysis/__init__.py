"""What a trained model is like inside: spectra, similarity of layers, activations, gradients.

Definitions and thresholds stand at the functions; all numbers are float64 on the host.
"""

from polycom_jax.analysis.activity import distribution as distribution
from polycom_jax.analysis.activity import lazy_neurons as lazy_neurons
from polycom_jax.analysis.activity import massive as massive
from polycom_jax.analysis.attention import largest_logits as largest_logits
from polycom_jax.analysis.attention import share_before as share_before
from polycom_jax.analysis.curves import Curve as Curve
from polycom_jax.analysis.curves import response as response
from polycom_jax.analysis.decoding import LinearClassifier as LinearClassifier
from polycom_jax.analysis.decoding import cross_condition as cross_condition
from polycom_jax.analysis.decoding import linear_svm as linear_svm
from polycom_jax.analysis.features import alpha_req as alpha_req
from polycom_jax.analysis.features import covariance_eigenvalues as covariance_eigenvalues
from polycom_jax.analysis.features import feature_ranks as feature_ranks
from polycom_jax.analysis.features import mean_norm as mean_norm
from polycom_jax.analysis.features import rankme_of_eigenvalues as rankme_of_eigenvalues
from polycom_jax.analysis.features import rankme_of_singular_values as rankme_of_singular_values
from polycom_jax.analysis.geometry import centred_kernel as centred_kernel
from polycom_jax.analysis.geometry import kernel_alignment as kernel_alignment
from polycom_jax.analysis.geometry import largest_alignment as largest_alignment
from polycom_jax.analysis.geometry import orthogonal_alignments as orthogonal_alignments
from polycom_jax.analysis.geometry import pairings as pairings
from polycom_jax.analysis.geometry import parallelism as parallelism
from polycom_jax.analysis.geometry import participation_ratio as participation_ratio
from polycom_jax.analysis.gradients import gradient_norms as gradient_norms
from polycom_jax.analysis.similarity import cosine_similarity as cosine_similarity
from polycom_jax.analysis.similarity import linear_cka as linear_cka
from polycom_jax.analysis.sparsity import Sparsity as Sparsity
from polycom_jax.analysis.sparsity import perplexity_sparsity as perplexity_sparsity
from polycom_jax.analysis.spectra import effective_rank as effective_rank
from polycom_jax.analysis.spectra import energy_rank as energy_rank
from polycom_jax.analysis.spectra import singular_values as singular_values
from polycom_jax.analysis.spectra import stable_rank as stable_rank
from polycom_jax.analysis.spectra import threshold_rank as threshold_rank
from polycom_jax.analysis.spectra import weight_matrices as weight_matrices
from polycom_jax.analysis.walk import LayerView as LayerView
from polycom_jax.analysis.walk import walk as walk
