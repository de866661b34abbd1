"""Compile for a TPU slice that is not there, and predict what it would take.

    aot.without_tpu()  # first of all: tells libtpu, through os.environ, that there is no TPU here
    device, *_ = aot.devices("v5p")
    x = jax.ShapeDtypeStruct((8192, 2048), jnp.bfloat16)
    print(aot.predict(aot.compile(function, aot.place(x, device))).report())

It needs the libtpu wheel and a CPU. Programs that do not fit raise `DoesNotFit` with the bytes.
"""

from polycom_jax.aot.chips import CHIPS as CHIPS
from polycom_jax.aot.chips import Chip as Chip
from polycom_jax.aot.compiler import DoesNotFit as DoesNotFit
from polycom_jax.aot.compiler import compile as compile
from polycom_jax.aot.compiler import devices as devices
from polycom_jax.aot.compiler import libtpu_version as libtpu_version
from polycom_jax.aot.compiler import place as place
from polycom_jax.aot.compiler import without_tpu as without_tpu
from polycom_jax.aot.predict import Collective as Collective
from polycom_jax.aot.predict import Prediction as Prediction
from polycom_jax.aot.predict import Row as Row
from polycom_jax.aot.predict import predict as predict
from polycom_jax.aot.predict import predict_text as predict_text
