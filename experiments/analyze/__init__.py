"""What trained models are like inside, several runs side by side."""
