"""Pretrains a transformer."""
