"""Plans without a compiler: their words, their arithmetic, what they refuse; and the files."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml
from commands import run_config

from experiments.compare.branching import DECAYS_OVER, WARMS_UP_OVER
from experiments.plan import __main__ as plan
from experiments.plan import outcome, report
from experiments.plan.host_side import HostSide, host_side
from experiments.pretrain import __main__ as pretrain
from experiments.run import compiled, devices, tpu_configs
from experiments.run.command import from_command
from experiments.run.config import PretrainConfig
from experiments.run.planned import Slice, find_slice
from polycom_jax import InputError
from polycom_jax import compile_ahead as aot
from polycom_jax.models import count_params
from polycom_jax.sharding import make_mesh

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "tpu_configs").glob("*.yaml"))


def test_the_files_are_there():
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "v5e-16-dense-1b",
        "v5e-256-dense-1b",
        "v6e-256-dense-1b",
        "v4-32-dense-1b",
        "v5p-128-dense-1b",
        "v5p-128-moe-1b-7b",
        "v6e-64-moe-1b-7b",
        "v5p-256-llama-7b",
        "tpu7x-128-dense-1b",
        "h100-8-dense-1b",
        "h100-8-moe-1b-7b",
        "a100-dense-110m",
        "l4-colab",
        "t4-colab",
    }
    assert any(name.startswith("2-") for name in names)


DEVICES_OF = {"v4-32": 16, "v5p-128": 64, "v5p-256": 128}
"""Names of v4 and v5p count cores, two of which are a device."""

GPUS = [path for path in CONFIGS if path.stem.split("-")[0] in aot.GPUS]
SLICES = [path for path in CONFIGS if path not in GPUS]


def check_form(path: Path, count: int) -> PretrainConfig:
    """What all files have in common; the config of one."""
    config, _ = run_config(["--config", str(path)])
    assert tpu_configs.device_count(str(config.run.hardware)) == count
    assert f"tpu_configs/{path.name}" in tpu_configs.made_for(count)
    assert config.data.batch_size % (count * config.optim.accumulation_steps) == 0
    assert path.read_text().startswith("#")
    assert "Batch:" in path.read_text()
    assert set(yaml.safe_load(path.read_text())) <= {"model", "mesh", "optim", "data", "run"}
    return config


@pytest.mark.parametrize("path", SLICES, ids=lambda path: path.stem)
def test_every_file_is_a_config_of_pretrain_with_the_papers_tokens(path: Path):
    slices = 2 if path.stem.startswith("2-") else 1
    machine = "-".join(path.stem.removeprefix("2-").split("-")[:2])
    count = slices * DEVICES_OF.get(machine, int(machine.split("-")[1]))
    config = check_form(path, count)
    assert config.model.context_length == 4096
    tokens = config.run.steps * config.data.batch_size * 4096
    papers = {"dense-1b": 250e9, "moe-1b-7b": 200e9, "llama-7b": 2e12}
    wanted = papers.get(config.preset, 20 * count_params(config.model))
    assert tokens == pytest.approx(wanted, rel=1e-4)
    if config.preset == "dense-1b":
        warmup = config.optim.warmup_steps * config.data.batch_size * 4096
        assert warmup == pytest.approx(620e6, rel=5e-3)
    if config.preset not in papers:  # the scaling study's, as `compare scaling` trains
        assert (config.optim.schedule, config.optim.decay_fraction) == ("wsd", DECAYS_OVER)
        assert config.optim.final_learning_rate_fraction == 0
        share = config.optim.warmup_steps / config.run.steps
        assert share == pytest.approx(WARMS_UP_OVER, rel=1e-2)


@pytest.mark.parametrize("path", GPUS, ids=lambda path: path.stem)
def test_a_file_of_gpus_names_the_card_and_how_many(path: Path):
    card, second, *_ = path.stem.split("-")
    count = int(second) if second.isdigit() else 1
    config = check_form(path, count)
    assert str(config.run.hardware) == (f"{count}*gpu:{card}" if count > 1 else f"gpu:{card}")
    # A T4 has no bfloat16.
    dtype, scaling = ("float16", "dynamic") if card == "t4" else ("bfloat16", "none")
    assert (config.model.dtype, config.optim.loss_scaling) == (dtype, scaling)


def test_the_name_that_hardware_had_before_is_taken(tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text("run: {tpu_slice: 'v5e:4x4'}")
    assert run_config(["--config", str(path)])[0].run.hardware == "v5e:4x4"
    assert run_config(["--run.tpu-slice", "v5e:2x2"])[0].run.hardware == "v5e:2x2"


def test_own_flags_are_told_from_those_of_pretrain():
    path = str(CONFIGS[0])
    words = ["--hardware=v5e:2x2", "--activation", "swiglu", "--json", "x"]
    for first in ([path], ["--config", path]):
        command, given = from_command(plan.LINE, plan.PlanCommand(), [*first, *words])
        assert (command.hardware, command.json, command.config) == ("v5e:2x2", "x", path)
        assert command.pretrain.model.activation == "swiglu"
        assert "model.activation" in given
        assert not {"hardware", "json", "config"} & given
    with pytest.raises(InputError, match="--json takes a value"):
        from_command(plan.LINE, plan.PlanCommand(), ["--json"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "No TPUs or GPUs to plan for: give --hardware"),
        ("v5e-16", "must be a TPU slice, CHIP:TOPOLOGY"),
        ("5*v5e", "must be a TPU slice, CHIP:TOPOLOGY"),
        ("h100", "or GPUs, gpu:CARD"),
        ("gpu:h10", "Did you mean 'h100'"),
    ],
)
def test_a_slice_of_another_form_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        find_slice(name)


def test_operations_belong_to_the_first_part_in_their_name():
    assert outcome.part_of("transpose(jvp())/while/body/checkpoint/ffn/ffn_up/dot") == "ffn"
    assert outcome.part_of("jvp(loss)/while/body/dot_general") == "loss"
    assert outcome.part_of("jvp()/while/body/moe/shard_map/experts_up") == "moe"
    assert outcome.part_of("convert.17") == outcome.REST


def test_a_step_must_leave_memory():
    gib = 2**30
    assert outcome.memory_problems(int(14.7 * gib), 16 * gib) == []
    (problem,) = outcome.memory_problems(int(14.8 * gib), 16 * gib)
    assert "14.80 GiB a chip of 16" in problem


def test_full_copies_are_read_from_what_xla_writes():
    line = (
        "W spmd_partitioner.cc:652] [SPMD] Involuntary full rematerialization. The compiler was not"
        ' able to go from one sharding to another for HLO %x, metadata={op_name="jit(step)/take"}'
    )
    assert outcome.full_copies(f"{line}\n{line}") == [
        "XLA makes a full copy to reshard jit(step)/take"
    ]
    assert outcome.full_copies("nothing of the kind") == []


def test_bytes_a_chip_are_those_of_its_shards():
    mesh = make_mesh(data=4, fsdp=2)
    half = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    assert outcome.held_bytes([jax.ShapeDtypeStruct((8, 3), "bfloat16", sharding=half)]) == 24


FOUND = outcome.Outcome(
    config="tiny with poly_norm",
    hardware="v5e:2x2",
    mesh={"fsdp": 4},
    compiler="libtpu 0",
    parameters=5,
    active_parameters=3,
    memory={"parameters": 2**30},
    hbm=2**34,
    variants={},
    seconds=0.5,
    parts={"ffn": 0.75, outcome.REST: 0.25},
    collectives=(
        {"opcode": "all-gather", "asynchronous": True, "times": 7, "bytes": 2**30, "seconds": 0.25},
    ),
    tokens_per_second=1e6,
    mfu=0.5,
    mfu_causal=0.45,
    days=1.5,
    machines=HostSide(2, 3e6, 2**30, 2.1, 2**31),
    not_estimated=("3 x sort",),
    settings=(),
    problems=("it does not fit",),
)


def test_the_page_says_it_all():
    page = report.text(FOUND)
    for part in ("fsdp 4", "3 active", "1.00", "75.0%", "all-gather, overlapped"):
        assert part in page
    assert "MFU 50.0% (PaLM's count; 45.0% with half of attention" in page
    assert "problem: it does not fit" in page
    assert "each of 2 processes reads 3.00 MB/s of tokens, writes 1.00 GiB" in page


def test_what_a_machine_has_to_do_is_its_share():
    config, _ = run_config(["--batch-size", "16", "--seq-len", "128", "--model.vocab-size", "2048"])
    where = Slice("v5e:2x4", aot.CHIPS["v5e"], tuple(jax.devices()))
    state = {"a": jax.ShapeDtypeStruct((4, 8), jnp.float32), "b": jnp.zeros((), jnp.int32)}
    step: Any = SimpleNamespace(where=where, state=state)
    found = host_side(config, step, seconds=0.5)
    assert found.processes == 2  # eight devices, four a machine
    assert found.checkpoint_bytes == (4 * 8 * 4 + 4) / 2
    assert found.data_bytes_per_s == 16 * 128 / 2 * 2 / 0.5
    assert found.memory_bytes == found.checkpoint_bytes + 8 * (16 * 128 / 2) * 17


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("too large",), plan.REFUSED)])
def test_the_exit_code_says_whether_the_plan_is_good(monkeypatch, tmp_path, capfd, problems, code):
    took = []
    slow: Any = SimpleNamespace(compile=lambda options, variant: took.append(options))
    where = SimpleNamespace(name="v5e:2x2", chip=aot.CHIPS["v5e"])
    monkeypatch.setattr(plan, "find_slice", lambda name: where)
    monkeypatch.setattr(plan, "training_step", lambda config, where: slow)
    found = replace(FOUND, problems=problems)
    monkeypatch.setattr(outcome, "examine", lambda *_: found)
    path = tmp_path / "plan.json"
    words = [str(CONFIGS[0]), "--topology", "v5e:2x2", "--json", str(path)]  # its former name
    options = ["--run.compiler-options", "xla_gpu_x=1", "xla_tpu_x=2"]
    assert plan.main(words + options) == code
    assert took == [("xla_tpu_x=2",)]  # as pretrain leaves out what another platform has
    assert '"compiler": "libtpu 0"' in path.read_text()
    assert "MFU" in capfd.readouterr().out


def test_a_page_of_gpus_says_what_each_way_to_compile_takes():
    gib = 2**30
    one = {"seconds": 0.5, "kernels": 2575, "peak_bytes": 6 * gib}
    one |= {"bytes_read": 200 * gib, "bytes_written": 100 * gib}
    found = replace(FOUND, variants={"Triton": one, "cuBLAS": one | {"kernels": 2576}})
    page = report.text(replace(found, settings=("A=1 in the environment: so",)))
    for part in ("Triton", "cuBLAS", "2,575", "200.0", "6.00", "so a floor", "start it with A=1"):
        assert part in page
    assert "Triton" not in report.text(replace(FOUND, variants={"libtpu": one}))


def test_what_jax_would_not_give_a_program_on_a_gpu_is_said():
    t4 = aot.GPUS["t4"]
    assert outcome.settings(t4, int(0.7 * t4.hbm_bytes)) == ()
    assert outcome.settings(aot.TPUS["v5e"], aot.TPUS["v5e"].hbm_bytes) == ()
    (said,) = outcome.settings(t4, int(0.85 * t4.hbm_bytes))
    assert said.startswith("XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 in the environment: JAX takes 75%")


def test_what_is_written_past_python_is_caught():
    import os

    result, messages = plan.with_messages(lambda: os.write(2, b"from below\n"))
    assert (result, messages) == (11, "from below\n")


def test_a_mesh_that_does_not_fit_names_the_files_that_would(monkeypatch):
    config, _ = run_config(["--mesh.data", "3"])
    monkeypatch.setattr(devices, "made_for", lambda count: [f"for-{count}.yaml"])
    with pytest.raises(InputError, match=r"there are 8.*Made for 8 devices: for-8\.yaml"):
        devices.mesh_of(config)


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if not path.stem.startswith("h100-8-")],  # there are eight devices
    ids=lambda path: path.stem,
)
def test_a_slice_s_settings_end_in_a_line_where_there_is_no_slice(
    monkeypatch, tmp_path, capsys, path
):
    monkeypatch.setattr(
        "experiments.run.corpus.prepare_mixture", None
    )  # nothing is downloaded: a call would fail
    assert pretrain.main(["--config", str(path), "--workdir", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    config, _ = run_config(["--config", str(path)])
    count = tpu_configs.device_count(str(config.run.hardware))
    assert f"needs {count} device{'s' * (count > 1)}, and there are 8 (cpu)" in error
    assert "--run.hardware None" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_slice_of_as_many_devices_is_taken_and_a_strange_name_refused():
    devices.check_hardware("v5e:2x4")
    devices.check_hardware(None)
    with pytest.raises(InputError, match="must be a TPU slice"):
        devices.check_hardware("a dozen")


@pytest.mark.parametrize(
    ("days", "text"),
    [(1.5, "1.5 days"), (0.04, "57.6 minutes"), (0.5, "12.0 hours"), (1e-4, "8.6 seconds")],
)
def test_the_length_of_a_run_is_told_in_a_unit_that_it_has(days, text):
    from dataclasses import replace

    assert f", {text} for the run" in report.text(replace(FOUND, days=days))


def test_options_of_accelerators_are_left_out_elsewhere_with_a_word(
    monkeypatch: pytest.MonkeyPatch,
):
    told = []
    words = ["--run.compiler-options", "xla_tpu_x=1"]
    config, _ = run_config(words)
    display: Any = SimpleNamespace(note=told.append)
    assert compiled.compiler_options(config, display) == {}
    assert "left out on this cpu" in told[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # a plan for GPUs takes them, too
    assert compiled.compiler_options(config, display) == {}  # the run was one of TPUs
    assert told[1:] == ["run.compiler_options: left out on a gpu: xla_tpu_x=1"]
    words = ["--run.compiler-options", "xla_gpu_x=1", "xla_x=xla_tpu_"]
    config, _ = run_config(words)
    assert compiled.compiler_options(config, display) == {"xla_gpu_x": "1", "xla_x": "xla_tpu_"}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compiled.compiler_options(config, display) == {"xla_x": "xla_tpu_"}
    with pytest.raises(InputError, match="must be NAME=VALUE"):
        run_config(["--run.compiler-options", "xla_tpu_x"])
