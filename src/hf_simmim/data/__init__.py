"""Data pipeline from image files to batches: sources, reading, augmentation and sampling."""
