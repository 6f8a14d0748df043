"""Training sets, teacher, student, evaluation: all of it learnt from the rank log alone."""
