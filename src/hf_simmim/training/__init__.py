"""Trainers, training arguments, optimizers, callbacks, run folders and model cards."""
