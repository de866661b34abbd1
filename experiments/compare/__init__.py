"""Studies: activations beside each other at equal data, initial values, parameters and compute."""
