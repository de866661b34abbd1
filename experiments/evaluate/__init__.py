"""Evaluates models: held-out text and downstream tasks."""
