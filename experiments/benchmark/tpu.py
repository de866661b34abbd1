"""Suite tpu: what libtpu's compiler makes of our operations and blocks for TPUs that are not here.

It needs the libtpu wheel.
"""

from functools import partial

from experiments.benchmark.arg_specs import ARG_SPECS
from experiments.benchmark.options import Options
from experiments.benchmark.predicted import MIB, SHAPE, Suite, blocks, compiled_for, operations
from experiments.benchmark.results import Case
from polycom_jax import compile_ahead as aot
from polycom_jax._errors import require
from polycom_jax.kernels.implementations import IMPLEMENTATIONS

SUITE = Suite(
    name="tpu",
    activations=("poly_norm", "poly_relu"),
    # Those of other backends compile too: `cpu` takes the block minutes, and they tell nothing.
    implementations=tuple(
        i for i in IMPLEMENTATIONS if i not in ("reference", "cpu", "gpu", "pallas_gpu")
    ),
    numbers=lambda prediction: {
        "Mcycles": prediction.cycles / 1e6,
        "kernels ms": prediction.kernel_seconds * 1e3,
        "MiB moved": prediction.bytes_accessed / MIB,
        "MiB temporaries": prediction.temporary_bytes / MIB,
    },
)


def cases(options: Options) -> list[Case]:
    """One for each chip and pass, of the operations at each shape and of the whole block.

    Raises:
        InputError: neither of the two is asked for.
    """
    require(
        not {"ops", "ffn"}.isdisjoint(options.parts),
        f"parts={options.parts}: the suite tpu compiles ops and ffn; leave parts out for both.",
    )
    aot.without_tpu()
    chosen = options.shapes or (SHAPE,)
    specs = [spec for spec in ARG_SPECS if spec.name in chosen]
    return [
        Case(
            SUITE.name,
            f"{what} {which} on {chip}",
            partial(
                compiled_for,
                *(SUITE, options, find, chip, which, aot.CHIPS[chip].compiler_options),
            ),
        )
        for chip in options.chips
        for which in options.passes
        for what, find in (
            *((f"ops {spec.name}", partial(operations, spec)) for spec in specs),
            ("ffn", blocks),
        )
        if what.partition(" ")[0] in options.parts
    ]
