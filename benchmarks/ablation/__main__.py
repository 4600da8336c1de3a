"""Runs the ablation study: `python -m benchmarks.ablation`."""

from .study import main

if __name__ == "__main__":
    main()
