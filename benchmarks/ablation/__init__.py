"""The paper's study of its components, on a small scale: `python -m benchmarks.ablation`."""
