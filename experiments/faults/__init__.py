"""Kill test of `experiments.pretrain`: kills at random moments, and a comparison of all bits."""
