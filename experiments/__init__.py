"""Programs: `python -m experiments.NAME --help`. Flags, loops, logging and plots live only here."""

import time

STARTED = time.perf_counter()
"""When the program began; its imports come after this one, and count for whoever waits."""
