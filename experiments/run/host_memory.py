"""What a program on CPUs asks of the C library's allocator."""

import ctypes
import os
import sys
from pathlib import Path

# Parameters of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def _accelerators() -> list[Path]:
    patterns = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")
    return [device for pattern in patterns for device in Path("/dev").glob(pattern)]


def keep_freed_memory() -> bool:
    """Keeps memory that was freed, for the next step, instead of giving it back to the system.

    XLA's CPU backend allocates what a step needs anew each time; given back, it has to be mapped
    and zeroed page by page again. It has to be called before JAX is imported: threads that have an
    arena of their own keep it.

    What is kept can be more than twice what a step needs, since the next step's block need not fit
    where the last one's was. Where that is too much, any MALLOC_ variable in the environment turns
    it off. What it saves and costs: experiments/results/speed/cpu.md, "Freed memory".

    Returns:
        Whether it took effect. Not without glibc, nor where the user has set MALLOC_ variables or
        GLIBC_TUNABLES, nor on a machine with accelerators, whose processes do other things.
    """
    chosen = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]
    if not sys.platform.startswith("linux") or chosen or _accelerators():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # One arena that grows and is never trimmed: large blocks of other arenas would be mapped.
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])
