"""Prints, draws and times the table of activations."""
