"""Activations in files: what a reference names, when its file is imported, and what is refused."""

import importlib
import os
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import InputError, get_activation, models
from polycom_jax.reference import Reference, is_reference

TEXT = textwrap.dedent("""
    import jax
    import polycom_jax as pc

    def own_swish(x, beta):
        return x * jax.nn.sigmoid(beta * x)

    act = pc.activation(own_swish, {"beta": 1.5})
    number = 3
""")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mine.py"
    # Each test's own content, so that none has been imported by another.
    path.write_text(f"# {tmp_path}\n{TEXT}")
    monkeypatch.chdir(tmp_path)
    return path


def test_a_reference_is_pinned_to_the_file_s_bytes(file: Path):
    assert is_reference("mine.py:act")
    assert not is_reference("poly_norm")
    pinned = Reference.parse("mine.py:act").pinned()
    assert Reference.parse(str(pinned)) == pinned
    assert pinned.sha256 is not None
    assert len(pinned.sha256) == 64
    elsewhere = file.parent / "elsewhere.py"
    elsewhere.write_bytes(file.read_bytes())
    assert Reference.parse("elsewhere.py:act").pinned().identity == pinned.identity


def test_a_model_has_the_activation_of_a_file_and_its_hash_in_its_config(file: Path):
    cfg = models.preset("tiny", num_layers=1, activation="mine.py:act")
    assert str(cfg.activation).startswith("mine.py:act#sha256=")
    assert cfg.activation_name == "own_swish"
    assert models.preset("tiny", num_layers=1, activation=cfg.activation) == cfg
    assert cfg.activation_fn is not get_activation("silu")
    beta = models.init(cfg, jax.random.key(0))["layers"][0]["ffn"]["activation"]["beta"]
    assert beta.tolist() == [1.5]


def test_a_module_is_named_by_its_dotted_name(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(file.parent)
    (file.parent / "of_this_test.py").write_text(TEXT)
    act = get_activation("of_this_test:act")
    assert act.name == "own_swish"
    assert Reference.parse("of_this_test:act").pinned().sha256 is not None


def test_a_module_that_changed_since_it_was_imported_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(file.parent)
    module = file.parent / "edited_in_between.py"
    module.write_text(TEXT)
    act = get_activation("edited_in_between:act")
    # Longer, too: Python takes its bytecode for that of a file of the same second and length.
    module.write_text(TEXT.replace("1.5", "2.50"))
    with pytest.raises(InputError, match=r"edited_in_between\.py has changed since") as told:
        get_activation("edited_in_between:act")
    assert "\n" not in str(told.value)
    importlib.reload(sys.modules["edited_in_between"])
    again = get_activation("edited_in_between:act")
    assert again.init(jax.random.key(0))["beta"] == 2.5
    assert act.init(jax.random.key(0))["beta"] == 1.5


def test_a_module_that_another_imported_is_known_by_its_functions(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(file.parent)
    module = file.parent / "imported_before_by_another.py"
    module.write_text(TEXT)
    importlib.import_module("imported_before_by_another")
    module.write_text(TEXT.replace("beta * x", "beta - x"))
    with pytest.raises(InputError, match="has changed since this process imported"):
        get_activation("imported_before_by_another:act")
    module.write_text(TEXT)
    assert get_activation("imported_before_by_another:act").name == "own_swish"


def test_a_module_is_refused_where_python_runs_bytecode_of_another_text(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    module = file.parent / "of_the_same_second.py"
    module.write_text(TEXT)
    kept = module.stat().st_mtime_ns
    importlib.import_module("of_the_same_second")
    module.write_text(TEXT.replace("1.5", "2.5"))
    os.utime(module, ns=(kept, kept))
    del sys.modules["of_the_same_second"]
    with pytest.raises(InputError, match="since Python kept bytecode of it"):
        get_activation("of_the_same_second:act")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence .__init__.py, line 1"),
        ("import no_such_module", "No module named 'no_such_module' .__init__.py, line 1"),
        ("import sys; sys.exit(3)", "SystemExit: 3 .__init__.py, line 1"),
        ("raise ValueError('two')", "ValueError: two .__init__.py, line 1"),
    ],
)
def test_what_a_package_raises_is_told_in_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
):
    monkeypatch.syspath_prepend(file.parent)
    package = file.parent / "package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text(text)
    (package / "own.py").write_text(TEXT)
    with pytest.raises(InputError, match=f"cannot be imported: .*{message}") as told:
        get_activation("package_of_this_test.own:act")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="finds no module"):
        get_activation("no_such_package_of_this_test.own:act")


def test_what_was_imported_stays_while_the_file_changes(file: Path):
    cfg = models.preset("tiny", activation="mine.py:act")
    file.write_text("changed")
    again = models.preset("tiny", activation=cfg.activation, num_layers=2)
    assert again.activation_fn == cfg.activation_fn


def test_another_file_is_refused_with_the_way_out(file: Path):
    pinned = str(Reference.parse("mine.py:act").pinned())
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(
        InputError, match=r"mine\.py is another file than the model was made"
    ) as told:
        models.preset("tiny", activation=pinned)
    assert "Bring back the file of SHA-256" in str(told.value)
    assert "\n" not in str(told.value)
    file.unlink()
    with pytest.raises(InputError, match=r"mine\.py is not there .*Bring back"):
        get_activation(pinned)


def test_a_file_that_differs_is_not_imported(file: Path):
    pinned = str(Reference.parse("mine.py:act").pinned())
    file.write_text("raise SystemExit('imported')")
    with pytest.raises(InputError, match="another file"):
        get_activation(pinned)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.py:", "", "must be FILE.py:NAME or MODULE:NAME"),
        ("gs://bucket/mine.py:act", "", "of a file on this machine"),
        ("absent.py:act", "", "absent.py is not there"),
        ("no_such_module:act", "", "finds no module 'no_such_module'"),
        ("math:sin", "", "finds no module 'math' with a file"),
        ("mine.py:other", "act = 1", "has no 'other' .it has act."),
        ("mine.py:act", "act = 1", "it is a int, and an activation is wanted"),
        ("mine.py:act", "def act(x): return x", "make one of a function by polycom_jax.activation"),
        ("mine.py:act", "a = 1\nb = = 2", "cannot be imported: invalid syntax in line"),
        ("mine.py:act", "import sys\nsys.exit(3)", "SystemExit: 3 .*mine.py, line"),
        ("mine.py:act", "def __getattr__(name): 1 / 0", "ZeroDivisionError: division by zero"),
        ("mine.py:act", "\n1 / 0", "ZeroDivisionError: division by zero .mine.py, line"),
    ],
)
def test_what_is_no_activation_is_told_in_one_line(file: Path, name: str, text: str, message: str):
    file.write_text(f"# {file}\n{text}")
    with pytest.raises(InputError, match=message) as told:
        models.preset("tiny", activation=name)
    assert "\n" not in str(told.value)


def test_an_activation_may_stand_in_a_config_itself():
    act = get_activation("poly_relu", order=2)
    cfg = models.preset("tiny", activation=act)
    assert (cfg.activation, cfg.activation_options.order) == ("poly_relu", 2)
    x = jnp.ones(3)
    assert cfg.activation_fn.apply(act.init(jax.random.key(0)), x).shape == (3,)
