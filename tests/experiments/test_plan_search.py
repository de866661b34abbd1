"""The search for a better plan, with a compiler that is a formula."""

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from commands import run_config

from experiments.plan import __main__ as plan
from experiments.plan import search
from experiments.plan.host_side import HostSide
from experiments.plan.outcome import Outcome
from experiments.run.config import PretrainConfig
from experiments.terminal import flags
from polycom_jax import InputError
from polycom_jax import compile_ahead as aot

VMEM = "xla_tpu_scoped_vmem_limit_kib"
WORDS = ["--model", "dense-1b", "--mesh.data", "1", "--mesh.fsdp", "4", "--batch-size", "16"]


def config_of(*words: str) -> PretrainConfig:
    return run_config([*WORDS, *words])[0]


def formula(config: PretrainConfig) -> Outcome:
    """The best: large windows, "dots", two replicas and twice the batch, which does not fit."""
    options = dict(option.split("=") for option in config.run.compiler_options)
    if options.get(VMEM) == "65536":
        raise InputError("VMEM of the chip: too little.")
    if config.mesh.tensor > 1:
        raise jax.errors.JaxRuntimeError("INTERNAL: it is broken\nat length")
    score = 0.3 + 0.1 * (options.get(VMEM) == "49152") + 0.05 * (config.model.remat == "dots")
    score += 0.02 * math.log2(config.data.batch_size) + 0.01 * (config.mesh.data == 2)
    too_large = config.data.batch_size > 16
    return Outcome(
        config="", hardware="", mesh={}, compiler="", variants={}, settings=(),
        parameters=1, active_parameters=1,
        memory={"peak of all": 8}, hbm=16, seconds=1 / score, parts={}, collectives=(),
        tokens_per_second=score, mfu=score, mfu_causal=score, days=1.0, not_estimated=(),
        machines=HostSide(1, 1.0, 1, 1.0, 1),
        problems=("it needs more",) if too_large else (),
    )  # fmt: skip


def test_a_search_keeps_each_change_for_the_better_and_no_other():
    told: list[tuple[search.Trial, int]] = []
    trials = search.search(config_of(), formula, lambda *words: told.append(words), "tpu")
    best = config_of(*trials[0].flags)
    assert (best.model.remat, best.mesh.data, best.mesh.fsdp) == ("dots", 2, 2)
    assert best.run.compiler_options[-1] == f"{VMEM}=49152"
    assert best.data.batch_size == 16
    assert trials[0].good
    larger = [trial for trial in trials if trial.outcome and trial.outcome.problems]
    assert larger
    assert all(trial.rank > trials[0].rank for trial in larger)  # though its MFU is higher
    assert told[-1][1] == 0
    assert len(told) == len(trials)
    assert told[0][0].flags == ()


def test_what_the_compiler_refuses_is_a_result():
    trials = search.search(config_of(), formula, lambda *words: None, "tpu")
    lines = [search.said(trial) for trial in trials if trial.outcome is None]
    assert any(line.endswith("VMEM of the chip: too little.") for line in lines)
    assert any(line.endswith("INTERNAL: it is broken at length") for line in lines)


def test_the_axis_of_experts_is_tried_for_a_mixture_alone():
    words = ("--mesh.expert", "2", "--mesh.fsdp", "2")
    mixture = config_of(*words, "--model", "moe-1b-7b")
    axes = {candidate.mesh.expert for candidate in search._meshes(mixture)}
    assert axes == {1, 2, 4}
    assert {candidate.mesh.expert for candidate in search._meshes(config_of())} == {1}
    sizes = [vars(candidate.mesh).values() for candidate in search._meshes(mixture)]
    assert {math.prod(size) for size in sizes} == {4}


@pytest.mark.parametrize("good", [True, False])
def test_the_program_prints_the_best_and_the_command_that_plans_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path, good: bool
):
    def planned(config: PretrainConfig, where: object) -> Outcome:
        found = formula(config)
        return found if good else replace(found, problems=("no room",))

    monkeypatch.setattr(aot, "without_tpu", lambda: None)
    where = SimpleNamespace(
        name="v5e:2x2", devices=jax.devices()[:4], chip=SimpleNamespace(platform="tpu")
    )
    monkeypatch.setattr(plan, "find_slice", lambda name: where)
    monkeypatch.setattr(plan, "planned", planned)
    path = tmp_path / "search.json"
    assert plan.main([*WORDS, "--search", "--json", str(path)]) == (0 if good else plan.REFUSED)
    out = capfd.readouterr().out
    assert "[1/" in out
    assert "as it is" in out
    assert f"{VMEM}=49152" in out.split("Next:")[1]
    assert "--model.remat dots" in out.split("Next:")[1]
    assert path.read_text().count('"flags"') > 10


@pytest.mark.parametrize("given", [["--search"], ["--search=True"], ["--search", "True"]])
def test_the_next_command_has_no_search_however_it_was_asked_for(given: list[str]):
    assert plan.without_search([*given, "x.yaml", "--steps", "2"]) == ["x.yaml", "--steps", "2"]
    assert plan.without_search(["x.yaml", *given]) == ["x.yaml"]


def test_flags_are_those_that_differ():
    start = config_of()
    assert search.changes(start, start) == []
    other = replace(start, data=replace(start.data, batch_size=32))
    assert search.changes(start, other) == [flags.flag_name("data.batch_size"), "32"]
