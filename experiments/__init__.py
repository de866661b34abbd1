"""Programs: `python -m experiments` lists them. Flags, loops, logging and plots live only here."""

import signal
import sys
import time

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Imports take seconds; Ctrl-C during them shows no traceback. `terminal.program` takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments.run.host_collectives import patient_collectives
from experiments.run.host_memory import keep_freed_memory
from experiments.terminal.streams import open_streams, write_any_letter

open_streams()  # before any file is opened that stays open
write_any_letter()

STARTED = time.perf_counter()
"""When the program began; its imports come after this one, and count for whoever waits."""

KEEPS_FREED_MEMORY = keep_freed_memory()  # before any program imports JAX
"""Whether it took effect; it bears on all times and memory measured in this process."""

WAITS_FOR_VIRTUAL_DEVICES = patient_collectives()  # before any program imports JAX, too
"""Whether collectives between virtual devices have more time than XLA gives them."""
