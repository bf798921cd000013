"""A real SLURM on one machine, for tests and for trying things out (`make slurm-up`, `make slurm-down`)."""
