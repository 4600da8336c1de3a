"""The paper's ablation study on a small scale: `python -m benchmarks.ablation`."""
