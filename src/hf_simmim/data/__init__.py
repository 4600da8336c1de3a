"""From files to batches: sources, reading, augmentation, sampling."""
