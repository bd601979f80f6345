"""Looking in: the control socket of each process."""
