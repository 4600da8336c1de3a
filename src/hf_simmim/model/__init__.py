"""The code that is saved with checkpoints: config, models, encoders, masks, heads, targets, losses, processor."""
