"""Notebooks, for Colab too, and what their first cells need."""
