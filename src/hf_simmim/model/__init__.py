"""What travels to the Hub with a checkpoint: config, encoders, masks, heads, targets, losses, processor."""
