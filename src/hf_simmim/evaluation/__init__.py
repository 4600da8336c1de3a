"""Evaluation: metrics, probes, comparisons, reconstructions and features."""
