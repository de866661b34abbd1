"""Speed and memory beside every peer: `python -m experiments.benchmark --help`."""
