"""The composition root: command line, settings, the embedded local stack, process supervision."""
