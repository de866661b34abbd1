"""What imports what, and what `import polycom_jax` costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import polycom_jax as pc

ROOT = Path(__file__).resolve().parent.parent

# Each part may import those on lower levels.
LEVELS = {
    "_concrete": 0,
    "_errors": 0,
    "_files": 0,
    "_fields": 1,
    "_bucket_errors": 0,
    "_buckets": 1,
    "_lease": 2,
    "storage": 3,
    "staging": 4,
    "sharding": 2,
    "hosts": 2,
    "params": 3,
    "activations": 4,
    "approximation": 6,
    "kernels": 5,
    "_operations": 1,
    "_reads": 0,
    "_dependence": 2,
    "reference": 1,
    "row": 6,
    "custom": 7,
    "rows_elementwise": 8,
    "rows_polynomial": 8,
    "rows_trainable": 8,
    "rows": 9,
    "table": 10,
    "modules": 11,
    "models": 11,
    "testing": 11,
    "training": 12,
    "data": 12,
    "compile_ahead": 13,
    "analysis": 13,
    "interop": 13,
    "experiments": 14,
}


def part_of(module: str) -> str | None:
    names = module.split(".")
    if names[0] == "experiments":
        return "experiments"
    return names[1] if names[0] == "polycom_jax" and len(names) > 1 else None


def imports(path: Path) -> set[str]:
    """Parts of the project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {part for part in map(part_of, found) if part in LEVELS}


FILES = [
    path
    for folder in ("polycom_jax", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
    # Files for PyTorch are data: they are copied beside weights, and import each other there.
    if path != ROOT / "polycom_jax" / "__init__.py" and path.parent.name != "torch_models"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    relative = path.relative_to(ROOT).with_suffix("")
    own = part_of(".".join(relative.parts))
    assert own in LEVELS, f"{own} has no place in the order of imports"
    for other in imports(path) - {own}:
        assert LEVELS[other] < LEVELS[own], f"{own} must not import {other}"


def rooms(path: Path) -> set[str]:
    """Programs and rooms of `experiments` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "experiments":
            found |= {alias.name for alias in node.names if alias.name.islower()}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments."):
            found.add(str(node.module).split(".")[1])
    return found


SHARED = {"terminal": set[str](), "run": {"terminal"}}
"""What programs share, and what that may import; a program imports these and itself alone."""


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.is_relative_to(ROOT / "experiments")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_programs_share_two_rooms(path: Path):
    room = path.relative_to(ROOT / "experiments").with_suffix("").parts[0]
    allowed = SHARED.get(room, SHARED.keys()) | {room}
    if room == "results":  # what draws a stored study reads it as its program does
        allowed |= {"compare"}
    assert rooms(path) <= allowed


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path):
    assert len(path.read_text().splitlines()) <= 350


REPORTS = ("torch", "matplotlib", "scipy.stats", "scipy.optimize", "scipy.interpolate")
HEAVY = {
    "polycom_jax": (
        *("tensorflow", "tensorflow_datasets", "grain", "orbax", "tokenizers", "transformers"),
        *("safetensors", "rich", "tyro", "yaml", "flax", "jax.experimental.pallas", *REPORTS),
    ),
    "experiments.compare.comparing": REPORTS,
}
"""What must not be imported with a module: it is slow, and needed later or by few."""


@pytest.mark.parametrize("module", HEAVY)
def test_an_import_pulls_in_nothing_heavy(module: str):
    code = f"import sys, {module}; print(sorted({{*{HEAVY[module]}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these():
    assert dir(pc) == [
        "ACTIVATIONS",
        "ActivationOptions",
        "InputError",
        "Parameter",
        "activation",
        "analysis",
        "approximation",
        "data",
        "get_activation",
        "init_coeffs",
        "interop",
        "models",
        "modules",
        "params",
        "poly_norm",
        "poly_relu",
        "polycom",
        "sharding",
        "testing",
        "training",
    ]
    for name in dir(pc):
        assert getattr(pc, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pc.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [("training", "token_nats", "cross_entropy"), ("approximation", "beside", "block_diagonal")],
)
def test_an_old_name_is_taken_with_a_warning(module: str, old: str, new: str):
    found = importlib.import_module(f"polycom_jax.{module}")
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} is now {new}"):
        assert getattr(found, old) is getattr(found, new)
    with pytest.raises(AttributeError, match="no attribute 'none_such'"):
        _ = found.none_such
