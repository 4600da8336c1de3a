"""Curation: what is in a folder of images, which of them are copies, and what to leave out."""
