"""What a run is made of: its config, folder, data, compiled programs, numbers and report."""
