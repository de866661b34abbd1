"""Speed and memory, ours and of peers: `python -m experiments.benchmark --help`."""
