"""Training sets, teacher, student, evaluation. Everything is learnt from the rank log, nothing else."""
