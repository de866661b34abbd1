"""Tasks of lm-evaluation-harness for `experiments.evaluate`: which, and their numbers."""

import difflib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from experiments.run.hf_tokenizer import save_tokenizer
from experiments.run.model_loading import Model
from experiments.terminal.progress import PLAIN_EVERY_S, Display
from experiments.terminal.tables import Section
from polycom_jax import staging, storage
from polycom_jax._errors import InputError, require
from polycom_jax.data import Tokenizer
from polycom_jax.interop.huggingface.files import read_json
from polycom_jax.interop.lm_eval import language_model

TASK_SETS: dict[str, tuple[str, ...]] = {
    # The six tasks of the paper's table of dense models (arXiv 2411.03884, section 4).
    "paper-dense": ("arc_easy", "arc_challenge", "hellaswag", "piqa", "sciq", "winogrande"),
    # Those of OLMoE-1B-7B-0924_PolyNorm.yml in the official repository, of which the paper reports
    # nine without saying here which; "MMLU Var" scores whole answers, as mmlu_continuation does.
    "paper-moe": (
        "piqa",
        "hellaswag",
        "winogrande",
        "openbookqa",
        "boolq",
        "sciq",
        "arc_easy",
        "arc_challenge",
        "copa",
        "commonsense_qa",
        "social_iqa",
        "mmlu_continuation",
    ),
}
"""Named sets of tasks, as lm-eval 0.4.13 calls them. The paper does not state its numbers of shots:
each task's own is taken."""

BOOTSTRAPS = 1000
"""Resamplings for the standard errors that have no formula: enough for two digits."""

PACKAGES = ("lm_eval", "transformers", "datasets", "jax", "jaxlib")
"""Those whose versions a result depends on."""

KEPT = ("results", "group_subtasks", "n-shot", "n-samples", "versions")
"""What is taken from the harness's results."""

DOWNLOADS = ("datasets", "huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "fsspec")
"""Packages whose errors mean that a data set could not be had."""


def run_tasks(
    names: Sequence[str],
    model: Model,
    tokenizer: Tokenizer | None,
    mesh: Mesh,
    display: Display,
    *,
    batch_size: int,
    max_length: int,
    num_fewshot: int | None,
    limit: int | None,
) -> dict[str, Any]:
    """Asks all tasks at once; the same keys as in the harness's own results.

    Args:
        names: sets, tasks, groups or tags, YAML files, or folders of these.
        model: what is asked.
        tokenizer: for a model without one.
        mesh: devices.
        display: shows how far it is.
        batch_size: requests at a time.
        max_length: most tokens that the model sees at once.
        num_fewshot: solved examples before a question; None: as the task says.
        limit: documents of each task; None: all.

    Returns:
        `results`: task or group -> metric -> number, `group_subtasks`: group -> what it is made of,
        `n-shot`, `n-samples`, `versions` of the tasks, and `packages`: versions of what they were
        computed with.

    Raises:
        InputError: lm-eval is not installed, a tokenizer that transformers cannot read, an unknown
            task, or one whose data cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        lm = language_model(
            model.cfg,
            model.params,
            _tokenizer(model, tokenizer, Path(folder)),
            mesh=mesh,
            batch_size=batch_size,
            max_length=max_length,
            progress=_shown(display),
        )
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    display.busy("looking for tasks")
    folders = [path for name in names if (path := Path(name).expanduser()).is_dir()]
    manager = TaskManager(
        include_path=list[str | Path](folders),
        include_defaults=not all(Path(name).expanduser().exists() for name in names),
    )
    tasks = _asked_once([task for name in names for task in _expand(name, manager)], manager)
    # The harness would fork a process that runs JAX's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    display.note(f"tasks: {', '.join(tasks)}")
    try:
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=list[Any](tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] in DOWNLOADS:
            raise InputError(
                f"A task's data set cannot be had ({' '.join(str(error).split())[:300]}); lm-eval"
                " downloads them once, from the Hugging Face hub."
            ) from error
        if isinstance(error, ValueError) and str(error).startswith("Duplicate task"):
            raise InputError(f"{error}; ask for one of these at a time.") from error
        raise
    display.stop()
    assert found is not None
    kept = {name: found[name] for name in KEPT}
    return {**kept, "packages": {name: importlib.metadata.version(name) for name in PACKAGES}}


def _tokenizer(model: Model, tokenizer: Tokenizer | None, folder: Path) -> Any:
    """As `transformers` reads it: what a Hugging Face folder holds, or what one of ours becomes.

    What was named goes before what the folder says: a tokenizer, or the end of text.
    """
    try:
        from transformers import (  # pyright: ignore[reportMissingImports]
            AutoTokenizer,
            PretrainedConfig,
        )
    except ImportError as error:
        raise InputError(
            f"transformers cannot be imported ({error}); pip install 'polycom-jax[eval]'."
        ) from error
    given = tokenizer is not None or model.step is not None
    if not given and storage.is_file(model.folder / "tokenizer_config.json"):
        folder = staging.fetched_to(folder, model.folder, without=".safetensors")
    else:
        own = model.tokenizer or tokenizer
        require(
            own is not None,
            f"{model.folder} holds no tokenizer.json; name one with --tokenizer.",
        )
        assert own is not None
        length = model.cfg.context_length
        save_tokenizer(folder, own, context_length=length, as_trained=model.trained_here)
    # A folder's own code is not needed here; without this config, transformers asks at the
    # keyboard for leave to run it, as soon as it looks for the model's class in our config.json.
    other: dict[str, Any] = {"config": PretrainedConfig()} if _brings_code(folder) else {}
    if model.end_of_text is not None:
        other["eos_token"] = model.end_of_text
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **other
        )
    except (OSError, ValueError) as error:
        raise InputError(f"transformers cannot read the tokenizer in {folder}: {error}") from error


def _brings_code(folder: Path) -> bool:
    """Does its config.json name code of its own."""
    file = folder / "config.json"
    return file.is_file() and "auto_map" in read_json(file)


def _expand(name: str, manager: Any) -> list[str]:
    """The tasks that a word of `--tasks` stands for, as the harness takes them."""
    if name in TASK_SETS:
        return list(TASK_SETS[name])
    path = Path(name).expanduser()
    if path.is_dir():
        inside = path.resolve()
        own = [
            key
            for key, entry in manager.task_index.items()
            if entry.yaml_path is not None and inside in entry.yaml_path.resolve().parents
        ]
        require(bool(own), f"{name} holds no YAML file of a task.")
        return sorted(own)
    if path.is_file() or name in manager.task_index:
        return [name]
    near = difflib.get_close_matches(name, [*TASK_SETS, *manager.all_tasks], n=3)
    hint = f" Near: {', '.join(near)}." if near else ""
    raise InputError(
        f"Unknown task {name!r}.{hint} Sets: {', '.join(TASK_SETS)}; `lm-eval ls tasks` lists all"
        " tasks, and a YAML file or a folder of some goes too."
    )


def _asked_once(tasks: Sequence[str], manager: Any) -> list[str]:
    """Without what a group among them is made of: its numbers come with the group's."""
    inside = {part for task in tasks for part in _made_of(task, manager.task_index)}
    return [task for task in dict.fromkeys(tasks) if task not in inside]


def _made_of(group: str, index: dict[str, Any]) -> set[str]:
    """Names of all tasks, tags and groups in a group's list, at any depth; none of a task."""
    found, todo = set[str](), _listed(index.get(group))
    while todo:
        part = todo.pop()
        if isinstance(part, dict):  # written out in the list
            todo += _parts(part)
            part = part.get("group", part.get("task"))
        if isinstance(part, str) and part not in found:
            found.add(part)
            todo += _listed(index.get(part))
    return found


def _listed(entry: Any) -> list[Any]:
    """What a group lists, or the tasks of a tag, which has no file."""
    if entry is None:
        return []
    return sorted(entry.tags) if entry.cfg is None else _parts(entry.cfg)


def _parts(cfg: dict[str, Any]) -> list[Any]:
    parts = cfg.get("task")
    return [*parts] if isinstance(parts, list) else []


def _shown(display: Display) -> Any:
    """Shows the requests of one kind after the other, with the time left."""
    begun, last, now = 0.0, 0.0, None

    def show(what: str, done: int, total: int) -> None:
        nonlocal begun, last, now
        clock = time.monotonic()
        if now != (what, total):
            now, begun, last = (what, total), clock, clock
            display.stop()
            display.start(0, total)
            display.doing(what)
        display.step(done)
        if not display.live and clock - last >= PLAIN_EVERY_S:
            last = clock
            left = (clock - begun) / done * (total - done)
            display.note(f"{what} {done:,}/{total:,}  {left:.0f} s left")

    return show


def section(found: dict[str, Any]) -> Section:
    """One line a number, and the means of what all tasks have."""
    rows = []
    for task, numbers in found["results"].items():
        for name, value, error in _metrics(numbers):
            size = found["n-samples"].get(task, {}).get("effective")
            shots = found["n-shot"].get(task)
            rows.append(
                (
                    task,
                    name,
                    f"{value:.4f}",
                    "" if error is None else f"{error:.4f}",
                    "" if size is None else f"{size:,}",
                    "" if shots is None else str(shots),
                )
            )
    rows += [("mean", name, f"{value:.4f}", "", "", "") for name, value in means(found).items()]
    return Section(
        "tasks of lm-evaluation-harness",
        ("task", "metric", "value", "standard error", "documents", "shots"),
        tuple(rows),
        (
            "mean: over tasks and groups, each counted once, of what all of them report; what a"
            " group is made of counts in the group's number alone.",
        ),
    )


def means(found: dict[str, Any]) -> dict[str, float]:
    """The unweighted mean of each metric that all tasks and groups have; none of one alone.

    A group is one of them, and what it is made of is not, so that its many tasks weigh no more than
    another's one.
    """
    inside = _inside_groups(found)
    numbers = [
        {name: value for name, value, _ in metrics}
        for task, own in found["results"].items()
        if task not in inside and (metrics := _metrics(own))
    ]
    if len(numbers) < 2:
        return {}
    shared = [name for name in numbers[0] if all(name in other for other in numbers)]
    return {name: sum(each[name] for each in numbers) / len(numbers) for name in shared}


def _inside_groups(found: dict[str, Any]) -> set[str]:
    """All tasks and groups that a group with a number of its own is made of, at any depth."""
    below, inside = found["group_subtasks"], set[str]()
    todo = [group for group in below if _metrics(found["results"].get(group, {}))]
    while todo:
        new = set(below.get(todo.pop(), ())) - inside
        inside |= new
        todo += new
    return inside


def _metrics(numbers: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Name, value and standard error, from the keys `metric,filter` and `metric_stderr,filter`."""
    found = []
    for key, value in numbers.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            error = numbers.get(f"{name}_stderr,{kind}")
            shown = name if kind == "none" else f"{name} ({kind})"
            found.append((shown, value, error if isinstance(error, float) else None))
    return found
