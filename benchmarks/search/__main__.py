"""What makes pre-training pay on about 2,000 small gray pictures? A search, one factor at a time.

    python -m benchmarks.search --list
    python -m benchmarks.search --sets textures --rows scratch rgb hog --pretrain_seeds 0 1
    python -m benchmarks.search --report_only

The sets `textures` and `clipart` are fetched before: python -m benchmarks.ablation.fetch textures clipart. Every run is
a line of benchmarks/results/search.jsonl, and a killed search goes on. The report is docs/search.md.
"""

import argparse
from pathlib import Path

import torch

from .grid import PRETRAININGS
from .images import SETS
from .report import REPORT, write_report
from .study import RESULTS, run_search


def main(arguments: list[str] | None = None) -> None:
    """Search, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="image sets (default: all)")
    parser.add_argument("--rows", nargs="+", choices=PRETRAININGS, default=list(PRETRAININGS), help="default: all")
    parser.add_argument("--labels", nargs="+", type=int, default=[50, 200], help="labeled images (default: 50 200)")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3], help="of fine-tuning (default: 1e-3)")
    parser.add_argument("--pretrain_seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="label subsets (default: 0 1 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the runs (default: %(default)s)")
    parser.add_argument("--report", type=Path, default=REPORT, help="the report (default: %(default)s)")
    parser.add_argument("--report_only", action="store_true", help="write the report from earlier runs")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(PRETRAININGS))
        return
    torch.set_num_threads(args.threads)
    if not args.report_only:
        run_search(*(args.sets, args.rows, args.labels, args.rates, args.pretrain_seeds, args.seeds), path=args.results)
    print(f"written: {write_report(args.results, args.report)}")


if __name__ == "__main__":
    main()
