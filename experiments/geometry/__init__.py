"""Representational geometry: tasks, networks, measures, and what comes of each activation."""
