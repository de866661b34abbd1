"""Compile for a TPU slice that is not there, and predict what it would take.

    from polycom_jax import compile_ahead as aot

    aot.without_tpu()  # before anything else: libtpu learns from os.environ that no TPU is here
    device, *_ = aot.devices("v5p")
    x = jax.ShapeDtypeStruct((8192, 2048), jnp.bfloat16)
    print(aot.predict(aot.compile(function, aot.place(x, device))).report())

It needs the libtpu wheel and a CPU. Programs that do not fit raise `DoesNotFit` with the bytes.
"""

from polycom_jax.compile_ahead.chips import CHIPS as CHIPS
from polycom_jax.compile_ahead.chips import Chip as Chip
from polycom_jax.compile_ahead.compiler import DoesNotFit as DoesNotFit
from polycom_jax.compile_ahead.compiler import compile as compile
from polycom_jax.compile_ahead.compiler import devices as devices
from polycom_jax.compile_ahead.compiler import libtpu_version as libtpu_version
from polycom_jax.compile_ahead.compiler import place as place
from polycom_jax.compile_ahead.compiler import without_tpu as without_tpu
from polycom_jax.compile_ahead.predict import Collective as Collective
from polycom_jax.compile_ahead.predict import Prediction as Prediction
from polycom_jax.compile_ahead.predict import Row as Row
from polycom_jax.compile_ahead.predict import predict as predict
from polycom_jax.compile_ahead.predict import predict_text as predict_text
