"""Image classification: data sets, networks, training, and what comes of each activation."""
