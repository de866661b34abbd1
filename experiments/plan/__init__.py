"""What a run would need and take on TPUs or GPUs that are not there."""
