"""Training: the loop, the engine (deepspeed), optimiser settings, checkpoints, evaluation and the choice of an epoch."""
