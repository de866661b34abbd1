"""Compile for a TPU slice or GPUs that are not there, and predict what a program would take.

    from polycom_jax import compile_ahead as aot

    aot.without_tpu()  # before anything else: libtpu learns from os.environ that no TPU is here
    device, *_ = aot.devices("v5p")
    x = jax.ShapeDtypeStruct((8192, 2048), jnp.bfloat16)
    print(aot.predict(aot.compile(function, aot.place(x, device))).report())

It needs a CPU and the libtpu wheel, or for `aot.without_gpu()` and `aot.devices("h100")` JAX's CUDA
plugin (extra `plan-gpu`). Programs that do not fit raise `DoesNotFit` with the bytes.
"""

from polycom_jax.compile_ahead.chips import CHIPS as CHIPS
from polycom_jax.compile_ahead.chips import GPUS as GPUS
from polycom_jax.compile_ahead.chips import PRODUCT_BACKENDS as PRODUCT_BACKENDS
from polycom_jax.compile_ahead.chips import TPUS as TPUS
from polycom_jax.compile_ahead.chips import Chip as Chip
from polycom_jax.compile_ahead.chips import Gpu as Gpu
from polycom_jax.compile_ahead.chips import Tpu as Tpu
from polycom_jax.compile_ahead.compiler import DoesNotFit as DoesNotFit
from polycom_jax.compile_ahead.compiler import compile as compile
from polycom_jax.compile_ahead.compiler import place as place
from polycom_jax.compile_ahead.platforms import devices as devices
from polycom_jax.compile_ahead.platforms import libtpu_version as libtpu_version
from polycom_jax.compile_ahead.platforms import without_gpu as without_gpu
from polycom_jax.compile_ahead.platforms import without_tpu as without_tpu
from polycom_jax.compile_ahead.predict import Collective as Collective
from polycom_jax.compile_ahead.predict import Prediction as Prediction
from polycom_jax.compile_ahead.predict import Row as Row
from polycom_jax.compile_ahead.predict import predict as predict
from polycom_jax.compile_ahead.predict import predict_text as predict_text
