"""Trainers, their arguments, optimizers, callbacks and the folder of a run."""
