"""Studies: activations compared at equal data, initial values, parameters and compute."""
