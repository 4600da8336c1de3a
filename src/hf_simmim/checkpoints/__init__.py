"""Loading, converting and exporting checkpoints."""
