"""Adapters that are trained instead of the weights of an encoder."""
