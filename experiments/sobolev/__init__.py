"""Studies of approximation in Sobolev spaces; `python -m experiments.sobolev --help`."""
