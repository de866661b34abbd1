"""Tokenises a corpus by many workers; see `experiments.tokenize.__main__`."""
