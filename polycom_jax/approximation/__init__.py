"""Explicit networks, Sobolev norms and targets: the paper's theory as code."""
