"""Visualization: image grids and plots."""
