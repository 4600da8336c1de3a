"""Metrics, probes, comparisons, reconstructions and features."""
