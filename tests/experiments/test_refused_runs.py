"""Settings that only the data, the devices or the machine refuse: one line, and nothing is left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from etils import epath

from experiments import generate
from experiments.pretrain import __main__ as pretrain
from polycom_jax import InputError
from polycom_jax.data import DataConfig, builders, prepare

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mesh.data", "3"], "mesh data=3"),
        (["--mesh.tensor", "5"], "mesh data=-1"),
        (["--mesh.tensor", "8"], "does not divide"),
        (["--batch-size", "7"], "batch_size=7 does not divide over 8 devices; nearest: 8"),
        (["--optim.accumulation-steps", "3"], "accumulation_steps=3"),
        (["--data", "absent.txt"], "no such file"),
        (["--data", "."], "is a folder"),
        (["--data", "no_such_data_set"], "neither a file nor a TFDS name"),
        (["--data.tokenizer", "absent.json"], "no such file"),
        (["--data.tokenizer", "SETTINGS"], "is not a Hugging Face tokenizer.json"),
        (["--data.heldout", "absent-*.txt"], "no such file"),
        (["--data.cache-dir", "/proc/none"], "cannot be written"),
        (["--data.document-bytes", "99999999"], "single document"),
        (["--model.vocab-size", "7"], "smaller than the tokenizer's 257"),
        (["--seq-len", "1000000"], "less than one window"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_and_leaves_no_folder(
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    words = [str(settings) if word == "SETTINGS" else word for word in words]
    workdir = tmp_path / "a" / "w"
    assert pretrain.main(["--config", str(settings), "--workdir", str(workdir), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workdir", ["/proc/none/w", "FILE", "FILE/w", "/dev/null"])
def test_a_workdir_that_cannot_be_is_told_in_one_line(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workdir: str
):
    (tmp_path / "file").write_text("in the way")
    workdir = workdir.replace("FILE", str(tmp_path / "file"))
    assert pretrain.main(["--config", str(settings), "--workdir", workdir]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert workdir in error
    assert generate.main([workdir]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class TheirOwn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A few texts."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent  # a test module is no package

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "heldout")}

    def _generate_examples(self, split: str) -> Any:
        yield from ((i, {"text": f"{split} text {i}"}) for i in range(20))


@pytest.mark.parametrize("by", ["folder", "name"])
def test_a_data_set_names_no_code_to_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
):
    """What somebody prepared with TFDS says by name which class reads a feature."""
    from tensorflow_datasets.core.utils import file_utils

    with builders.quiet():
        TheirOwn(data_dir=tmp_path / "sets").download_and_prepare(file_format="array_record")
    folder = tmp_path / "sets" / "their_own" / "1.0.0"
    # Where TFDS looks for names.
    monkeypatch.setattr(file_utils, "_REGISTERED_DATA_DIRS", {tmp_path / "sets"})
    source = str(folder) if by == "folder" else "their_own"
    again = DataConfig(source, "bytes", cache_dir=str(tmp_path / "d"), heldout="heldout")
    assert prepare(again, vocab_size=300).train.num_documents > 0
    features = folder / "features.json"
    text = features.read_text()
    assert "tensorflow_datasets.core.features.text_feature.Text" in text
    features.write_text(
        text.replace("tensorflow_datasets.core.features.text_feature.Text", "executed.Text")
    )
    (tmp_path / "executed.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    changed = DataConfig(source, "bytes", cache_dir=str(tmp_path / "e"), heldout="heldout")
    with pytest.raises(InputError, match=r"executed\.Text"):
        prepare(changed, vocab_size=300)
    assert not (tmp_path / "marker").exists()


FORBIDDEN = ("import pickle", "cloudpickle", "allow_pickle=True", "torch.load", "unsafe_load")


def test_no_source_file_unpickles():
    files = [
        path for part in ("polycom_jax", "experiments") for path in (ROOT / part).rglob("*.py")
    ]
    assert len(files) > 50
    found = [(path, word) for path in files for word in FORBIDDEN if word in path.read_text()]
    assert not found


@pytest.fixture
def folder(settings: Path, tmp_path: Path) -> Path:
    """A folder with a text and a config that refers to it, all with spaces in their names."""
    folder, text = tmp_path / "a folder", settings.parent / "little.txt"
    folder.mkdir()
    (folder / "some text.txt").write_bytes(text.read_bytes())
    words = settings.read_text().replace(str(text), "some text.txt")
    (folder / "my settings.yaml").write_text(words)
    return folder


WORDS = ("--config", "my settings.yaml", "--workdir", "my runs/the first")


def test_a_run_takes_spaces_and_relative_paths_and_names_what_an_unwritable_home_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    # What is compiled is found where the other tests' runs have left it.
    shared = Path(os.environ["POLYCOM_CACHE"])
    with monkeypatch.context() as patch:
        patch.delenv("POLYCOM_CACHE")
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.setenv("HOME", "/proc/none")
        assert pretrain.main(WORDS) == 2
        error = capsys.readouterr().err
        assert "/proc/none" in error
        assert "POLYCOM_CACHE" in error
        assert error.count("\n") == 1
        assert not (folder / "my runs").exists()
        (folder / "my cache").symlink_to(shared)
        assert pretrain.main([*WORDS, "--data.cache-dir", "my cache"]) == 0
    assert (folder / "my runs" / "the first" / "sample.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/proc/none", None], ids=["an unwritable home", "no home"])
def test_a_process_needs_no_home(folder: Path, home: str | None):
    kept = {"PATH", "JAX_PLATFORMS", "XLA_FLAGS", "LD_LIBRARY_PATH"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"PYTHONPATH": str(ROOT)} | ({"HOME": home} if home else {})
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.pretrain", *WORDS, "--data.cache-dir", "my cache"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert (folder / "my runs" / "the first" / "sample.txt").is_file()
    assert (folder / "my cache" / "tokens").is_dir()
