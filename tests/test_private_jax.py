"""Parts of JAX that no version promises: each is used in one file, and is what that file needs.

A failure here says what a new version of JAX has changed, and where to adapt to it.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Module, the file that uses it, and what it uses: a name with the parameters that are given.
PRIVATE: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    (
        "jax.interpreters.ad",
        "polycom_jax/kernels/primitives.py",
        {
            "Zero": (),
            "instantiate_zeros": ("tangent",),
            "is_undefined_primal": ("x",),
            "deflinear2": ("primitive", "transpose_rule"),
            "primitive_jvps": (),
            "primitive_transposes": (),
        },
    ),
    (
        "jax.interpreters.batching",
        "polycom_jax/kernels/primitives.py",
        {"primitive_batchers": ()},
    ),
    (
        "jax.interpreters.mlir",
        "polycom_jax/kernels/primitives.py",
        {"lower_fun": ("fun", "multiple_results"), "register_lowering": ("prim", "rule")},
    ),
    ("jax.extend.core", "polycom_jax/kernels/primitives.py", {"Primitive": ("name",)}),
    (
        "jax.experimental.pallas.ops.tpu.splash_attention",
        "polycom_jax/kernels/attention/splash.py",
        {
            "make_splash_mha": (
                "mask",
                "block_sizes",
                "head_shards",
                "q_seq_shards",
                "interpret",
                "residual_checkpoint_name",
            ),
            "BlockSizes": (
                "block_q",
                "block_kv",
                "block_q_dkv",
                "block_kv_dkv",
                "block_q_dq",
                "block_kv_dq",
            ),
            "MultiHeadMask": ("masks",),
            "CausalMask": ("shape",),
            "SegmentIds": ("q", "kv"),
        },
    ),
    (
        "jax.experimental.pallas.ops.tpu.megablox.gmm",
        "polycom_jax/kernels/grouped_matmul/megablox.py",
        {
            name: ("lhs", "rhs", "group_sizes", "preferred_element_type", "tiling", "interpret")
            for name in ("gmm", "tgmm")
        },
    ),
    (
        "jax.experimental.pallas.triton",
        "polycom_jax/kernels/triton.py",
        {
            "CompilerParams": ("num_warps", "num_stages"),
            "load": ("ref", "mask", "other"),
            "store": ("ref", "val", "mask"),
        },
    ),
    (
        "jax.experimental.topologies",
        "polycom_jax/compile_ahead/platforms.py",
        {"get_topology_desc": ("topology_name", "platform")},
    ),
    (
        "jax.experimental.mesh_utils",
        "polycom_jax/sharding.py",
        {"create_device_mesh": ("mesh_shape", "devices", "allow_split_physical_axes")},
    ),
    (
        "jax._src.clusters",
        "polycom_jax/hosts/service.py",
        {"ClusterEnv.auto_detect_unset_distributed_params": ("coordinator_address",)},
    ),
    ("jax._src.distributed", "polycom_jax/hosts/service.py", {"global_state.client": ()}),
    (
        "jax._src.lib",
        "polycom_jax/hosts/service.py",
        {
            "_jax.get_distributed_runtime_service": ("cluster_register_timeout",),
            "_jax.DistributedRuntimeClient.blocking_key_value_get": ("key", "timeout_in_ms"),
            "_jax.DistributedRuntimeClient.key_value_set": ("key", "value", "allow_overwrite"),
            "_jax.DistributedRuntimeClient.key_value_dir_get": ("key",),
            "_jax.DistributedRuntimeClient.wait_at_barrier": ("barrier_id", "timeout_in_ms"),
        },
    ),
    (
        "jax._src.compilation_cache",
        "experiments/run/compiled.py",
        {"decompress_executable": ("executable",)},
    ),
)

# Documented parts of these packages; they may stand anywhere.
PUBLIC = {
    "jax.experimental.pallas",
    "jax.experimental.pallas.tpu",
    "jax.experimental.multihost_utils",
    "jax.experimental",
    "jax.extend",
}


def imported(path: Path) -> set[str]:
    """Modules of JAX, not of its documented top, that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {part for part in parts if _is_module(part)}
            found |= modules or {node.module}
    inner = ("jax._src", "jax.experimental", "jax.interpreters", "jax.extend")
    return {name for name in found if name.startswith(inner)} - PUBLIC


def _is_module(name: str) -> bool:
    if not name.startswith("jax."):
        return False
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def test_each_is_used_in_one_file():
    used = {
        (module, str(path.relative_to(ROOT)))
        for folder in ("polycom_jax", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        for module in imported(path)
    }
    assert used == {(module, file) for module, file, _ in PRIVATE}


def version_says(module: str, file: str, what: str) -> str:
    return f"jax {jax.__version__}: {module} {what}; {file} needs it, and has to be adapted."


def parameters_of(f: Any) -> list[str]:
    """Of a function of C++, what the first line of its docstring says."""
    try:
        found = list(inspect.signature(inspect.unwrap(f)).parameters)
    except ValueError:
        found = []
    if found not in ([], ["args", "kwargs"]):  # that is what Python 3.13 knows of those of C++
        return found
    return re.findall(r"(\w+):", (f.__doc__ or "").partition("\n")[0]) or found


@pytest.mark.parametrize(("module", "file", "names"), PRIVATE, ids=lambda value: str(value)[:60])
def test_this_version_has_what_is_used(module: str, file: str, names: dict[str, tuple[str, ...]]):
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        pytest.fail(version_says(module, file, "is gone"))
    for name, parameters in names.items():
        value = found
        for part in name.split("."):
            assert hasattr(value, part), version_says(module, file, f"has no {name}")
            value = getattr(value, part)
        if parameters:
            has = parameters_of(value)
            for parameter in parameters:
                what = f"{name} has no parameter {parameter!r}, only {', '.join(has)}"
                assert parameter in has, version_says(module, file, what)
