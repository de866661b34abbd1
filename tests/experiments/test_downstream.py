"""`experiments.evaluate --tasks`: what is shown, and the program where lm-eval is installed."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate
from experiments.evaluate import downstream
from experiments.run.model_loading import Model
from polycom_jax import models
from polycom_jax.data import ByteTokenizer, DataConfig

FOUND = {
    "results": {
        "alpha": {"alias": "alpha", "acc,none": 0.5, "acc_stderr,none": 0.25, "f1,strict": 0.125},
        "beta": {"alias": "beta", "acc,none": 0.25, "acc_stderr,none": "N/A"},
        "group": {"alias": "group", "acc,none": 0.4},
        "no number": {"alias": "no number"},
        "part": {"alias": "part", "acc,none": 0.1},
        "leaf": {"alias": "leaf", "acc,none": 0.1, "f1,none": 1.0},
    },
    "group_subtasks": {"group": ["part"], "part": ["leaf"], "no number": ["alpha", "beta"]},
    "n-shot": {"alpha": 0, "beta": 5},
    "n-samples": {
        "alpha": {"original": 9, "effective": 4},
        "beta": {"original": 2000, "effective": 1000},
    },
}
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/colours.jsonl}, cache_dir: FOLDER/cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""
GROUP = """
group: shades
task:
  - TASK
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


def test_a_table_has_each_number_and_the_means_of_what_tasks_share():
    section = downstream.section(FOUND)
    assert section.rows == (
        ("alpha", "acc", "0.5000", "0.2500", "4", "0"),
        ("alpha", "f1 (strict)", "0.1250", "", "4", "0"),
        ("beta", "acc", "0.2500", "", "1,000", "5"),
        ("group", "acc", "0.4000", "", "", ""),
        ("part", "acc", "0.1000", "", "", ""),
        ("leaf", "acc", "0.1000", "", "", ""),
        ("leaf", "f1", "1.0000", "", "", ""),
        ("mean", "acc", "0.3833", "", "", ""),  # of alpha, beta and group
    )


def test_a_group_counts_once_however_many_tasks_it_has():
    leaves = {f"leaf {i}": {"acc,none": 0.0} for i in range(57)}
    results = {"alpha": {"acc,none": 1.0}, "group": {"acc,none": 0.0}, **leaves}
    found = {"results": results, "group_subtasks": {"group": [*leaves]}}
    assert downstream.means(found) == {"acc": 0.5}


def test_one_task_or_group_has_no_mean():
    results = FOUND["results"]
    for names in (["alpha"], ["group", "part", "leaf"]):
        assert downstream.means({**FOUND, "results": {n: results[n] for n in names}}) == {}


def test_what_a_group_is_made_of_is_asked_in_the_group():
    def entry(cfg, *tags):
        return SimpleNamespace(cfg=cfg, tags=set(tags))

    index = {
        "group": entry({"group": "group", "task": ["part", {"task": "inline"}]}),
        "part": entry({"group": "part", "task": ["marked", "part", {"group": "g", "task": ["a"]}]}),
        "marked": entry(None, "b"),
        "a": entry({"task": "a"}),
        "b": entry({"task": "b"}, "marked"),
        "other": entry({"task": "other"}, "marked"),
    }
    names = ["a", "inline", "b", "other", "file.yaml", "part", "group", "g", "group"]
    manager = SimpleNamespace(task_index=index)
    assert downstream._asked_once(names, manager) == ["other", "file.yaml", "group"]
    assert downstream._asked_once(["a", "b", "a"], manager) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "3"], "limit=3 is of --tasks"),
        (["--num-fewshot", "0"], "num_fewshot=0 is of --tasks"),
        (["--tasks", "alpha", "--limit", "0"], "limit=0 must be at least 1"),
        (["--tasks", "alpha", "--num-fewshot=-1"], "num_fewshot=-1 must be at least 0"),
    ],
)
def test_bad_settings_end_in_one_line(words, message, capsys):
    assert evaluate.main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "named", "end", "expected"),
    [
        (("tokenizer.json",), False, None, ("theirs", {})),
        (("tokenizer.json",), False, "<end>", ("theirs", {"eos_token": "<end>"})),
        ((), True, None, ("ours", {})),
    ],
)
def test_what_is_named_goes_before_what_a_folder_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files, named, end, expected
):
    def read(folder, **options):
        del options["local_files_only"], options["trust_remote_code"]
        text = (Path(folder) / "tokenizer_config.json").read_text()
        return "theirs" if text == "{}" else "ours", options

    library = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(from_pretrained=read), PretrainedConfig=dict
    )
    monkeypatch.setitem(sys.modules, "transformers", library)
    there, working = tmp_path / "there", tmp_path / "working"
    for folder in (there, working):
        folder.mkdir()
    for file in (*files, "tokenizer_config.json"):
        (there / file).write_text("{}")
    own = None if named else ByteTokenizer()
    cfg = models.preset("tiny", num_layers=1)
    model = Model(cfg, {}, own, DataConfig(), there, None, end_of_text=end)
    found = downstream._tokenizer(model, ByteTokenizer() if named else None, working)
    assert found == expected


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    documents = [
        {"question": f"{n} is", "choices": [" odd", " even"], "label": int(n % 2 == 0)}
        for n in range(6)
    ]
    (tmp_path / "colours.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (tmp_path / "colours.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the harness's and its packages' are not ours to mend
def test_a_run_is_asked_the_tasks_of_a_folder(whole, colours, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
    out = tmp_path / "numbers.json"
    words = [str(whole), "--tasks", str(colours), "--json", str(out)]
    assert evaluate.main(words) == 0
    found = json.loads(out.read_text())
    assert "results" not in found  # no text was named
    assert found["config"]["tasks"] == [str(colours)]
    tasks = found["tasks"]
    assert tasks["n-samples"]["colours"] == {"original": 6, "effective": 6}
    assert 0 <= tasks["results"]["colours"]["acc,none"] <= 1
    assert set(tasks["packages"]) == set(downstream.PACKAGES)
    shown = " ".join(capsys.readouterr().out.split())
    assert "colours acc" in shown
    assert "loglikelihood" not in shown  # no line of progress for what takes no time
    # The file itself, and fewer documents.
    words = [str(whole), "--tasks", str(colours / "colours.yaml"), "--limit", "2"]
    words += ["--json", str(out)]
    assert evaluate.main(words) == 0
    assert json.loads(out.read_text())["tasks"]["n-samples"]["colours"]["effective"] == 2
    # A group counts once.
    (tmp_path / "groups").mkdir()
    inside = (colours / "colours.yaml").read_text().strip().replace("\n", "\n    ")
    (tmp_path / "groups" / "shades.yaml").write_text(GROUP.replace("TASK", inside))
    assert evaluate.main([str(whole), "--tasks", str(tmp_path / "groups"), *words[-2:]]) == 0
    tasks = json.loads(out.read_text())["tasks"]
    assert [*tasks["group_subtasks"]] == ["shades"]
    assert tasks["results"].keys() > {"shades"}
    assert downstream.means(tasks) == {}
    # Beside the task that it names.
    (tmp_path / "groups" / "shades.yaml").write_text(GROUP.replace("TASK", "colours"))
    shutil.copy(colours / "colours.yaml", tmp_path / "groups")
    assert evaluate.main([str(whole), "--tasks", str(tmp_path / "groups"), *words[-2:]]) == 0
    assert [*json.loads(out.read_text())["tasks"]["group_subtasks"]] == ["shades"]
    other = GROUP.replace("TASK", "colours").replace("shades", "tints")
    (tmp_path / "groups" / "tints.yaml").write_text(other)
    capsys.readouterr()
    assert evaluate.main([str(whole), "--tasks", str(tmp_path / "groups")]) == 2
    assert "ask for one of these at a time" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_exported_folder_is_asked_without_a_question_at_the_keyboard(
    whole, colours, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")

    def nobody(prompt: str = "") -> str:
        raise AssertionError(f"asked at the keyboard: {prompt}")

    monkeypatch.setattr("builtins.input", nobody)
    folder, out = tmp_path / "folder", tmp_path / "numbers.json"
    assert convert.main([str(whole), "--out", str(folder)]) == 0
    accuracies = []
    for workdir in (whole, folder):
        words = [str(workdir), "--tasks", str(colours), "--json", str(out)]
        assert evaluate.main(words) == 0
        accuracies.append(json.loads(out.read_text())["tasks"]["results"]["colours"]["acc,none"])
    assert accuracies[0] == accuracies[1]
    assert "You are using a model of type" not in capsys.readouterr().err
    (folder / "tokenizer.json").write_text("{}")
    assert evaluate.main(words) == 2
    assert "tokenizer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("task", "message"),
    [("paper-dens", "Near: paper-dense"), (".", "no YAML file")],
)
def test_unknown_tasks_end_in_one_line(task, message, whole, tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([str(whole), "--tasks", task]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_paper_s_tasks_are_the_harness_s():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    known = set(TaskManager().all_tasks)
    for name, tasks in downstream.TASK_SETS.items():
        assert set(tasks) <= known, name
