"""What a run asks of the machines beside its chips: data in, checkpoints out, memory."""

from dataclasses import dataclass

import jax

from experiments.run.config import PretrainConfig
from experiments.run.planned import Step

STORAGE_BYTES_PER_S = 500e6
"""What a process is taken to write to a bucket or a shared disk; measure yours."""

BATCHES_AHEAD = 8
"""Batches that wait ready in memory."""

BATCH_BYTES_PER_TOKEN = 4 * 4 + 1
"""Four arrays of int32 and a mask."""


@dataclass(frozen=True)
class HostSide:
    """Bytes and seconds of one process, of which each machine runs one.

    Attributes:
        processes: of the run.
        data_bytes_per_s: tokens that it reads.
        checkpoint_bytes: that it writes of each checkpoint, its share of all arrays.
        checkpoint_s: how long that takes at `STORAGE_BYTES_PER_S`; training goes on meanwhile.
        memory_bytes: copy of that share while it is written, and batches that wait.
    """

    processes: int
    data_bytes_per_s: float
    checkpoint_bytes: int
    checkpoint_s: float
    memory_bytes: int


def host_side(config: PretrainConfig, step: Step, seconds: float) -> HostSide:
    """What each process has to do for a step of so many seconds."""
    chip = step.where.chip
    per_process = chip.chips_per_host * chip.devices_per_chip
    processes = max(1, len(step.where.devices) // per_process)
    tokens = config.data.batch_size * config.model.context_length / processes
    width = 2 if config.model.vocab_size <= 1 << 16 else 4
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state))
    share = -(-whole // processes)
    return HostSide(
        processes=processes,
        data_bytes_per_s=tokens * width / seconds,
        checkpoint_bytes=share,
        checkpoint_s=share / STORAGE_BYTES_PER_S,
        memory_bytes=share + round(BATCHES_AHEAD * tokens * BATCH_BYTES_PER_TOKEN),
    )
