"""Implicit representations of images and of signed distances, at equal size."""
