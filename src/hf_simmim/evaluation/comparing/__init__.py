"""Comparison of ways to begin: verdicts, the metric that decides, labels saved, and what it cost."""
