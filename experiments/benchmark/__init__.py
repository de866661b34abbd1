"""Speed and memory, compared with peers: `python -m experiments.benchmark --help`."""
