"""What a run would be, without running it: its settings, its program, and the memory they take."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from experiments.run.compiled import batch_shape, compile_step
from experiments.run.config import PretrainConfig
from experiments.run.device_memory import bytes_limit
from experiments.run.folder import as_yaml
from experiments.terminal.program import LESS_MEMORY
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_table
from polycom_jax._errors import require
from polycom_jax.data import Mixture
from polycom_jax.training import abstract_state, put_batch

GIB = 2**30


def show(config: PretrainConfig, data: Mixture, mesh: Mesh, display: Display) -> None:
    """Compiles the training step for the devices that are there, and prints what a run would be.

    Raises:
        InputError: a device has less memory than the step needs.
    """
    batches = data.train_batches(**batch_shape(config, mesh), seed=config.run.seed)
    put = partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    state = abstract_state(config.model, config.optim, mesh)
    needed = memory(compile_step(config, mesh, state, put(next(iter(batches))), display))
    available = memory_of_a_device()
    display.note(as_yaml(config))
    table = Table(title="Memory of a device, GiB")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, size in {**needed, "there is": available}.items():
        table.add_row(name, f"{size / GIB:.3f}" if size else "unknown")
    print_table(display.console, table)
    size = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    display.note(f"a checkpoint: {size / GIB:.3f} GiB; the newest {config.run.keep_last} are kept")
    require(
        not available or needed["in all"] <= available,
        f"A step needs {needed['in all'] / GIB:.2f} GiB a device, and there are"
        f" {available / GIB:.2f}; {LESS_MEMORY}",
    )
    display.note(
        "The workdir is as it was; prepared data and compiled programs are kept. The same command"
        " without --run.dry-run runs it."
    )


def memory(compiled: jax.stages.Compiled) -> Mapping[str, int]:
    """Bytes that a compiled step takes on a device, by kind."""
    found: Any = compiled.memory_analysis()
    held, temporary = found.argument_size_in_bytes, found.temp_size_in_bytes
    code = found.generated_code_size_in_bytes
    return {
        "parameters, optimiser, batch": held,
        "temporaries": temporary,
        "program": code,
        "in all": held + temporary + code,
    }


def memory_of_a_device() -> int:
    """Bytes that a device may use; devices on CPUs share their machine's. 0: nobody says."""
    if jax.local_devices()[0].platform != "cpu":
        return bytes_limit()
    return _memory_of_the_machine() // jax.local_device_count()


def _memory_of_the_machine() -> int:
    """Physical memory, or what the control group of a container allows."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # another system
        return 0
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min([physical, *limits])
