"""Converts models: activations, and Hugging Face folders in both directions."""
