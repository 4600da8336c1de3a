"""Time of `import hf_simmim` against `import transformers`, which it needs, in new processes that take turns.

python benchmarks/import_time.py
"""

import argparse
import statistics
import subprocess
import sys

from measuring import alternate, machine, write_result

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
PACKAGES = ("transformers", "hf_simmim")


def import_seconds(package: str) -> float:
    """Seconds that an import takes in a new process."""
    command = [sys.executable, "-c", TIMED.format(package)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of timing (default: %(default)s)")
    args = parser.parse_args()
    times = alternate({name: lambda name=name: import_seconds(name) for name in PACKAGES}, args.rounds)
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    over = round(statistics.median(ours - peer for peer, ours in zip(*times.values(), strict=True)), 3)
    facts = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print("; ".join(f"import {name}: {value} s" for name, value in medians.items()) + f"; {over} s over")
    write_result("import_time", {"benchmark": "import_time", **facts, "seconds": medians, "over": over})


if __name__ == "__main__":
    main()
