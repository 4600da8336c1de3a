"""Time of `import hf_simmim` against `import transformers`, in new processes that take turns.

Both import nothing until a class is asked for; then torch is, which takes seconds. So classes are compared as well:
those that a model derives from and is registered with, and our models.

python benchmarks/import_time.py
"""

import argparse
import statistics
import subprocess
import sys

from measuring import alternate, machine, write_result

TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
IMPORTS = {
    "transformers": "import transformers",
    "classes of transformers": "from transformers import AutoModel, PreTrainedModel, SwinModel, ViTModel",
    "hf_simmim": "import hf_simmim",
    "models of hf_simmim": "from hf_simmim import SimMIMForMaskedImageModeling",
}
PAIRS = {"transformers": "hf_simmim", "classes of transformers": "models of hf_simmim"}


def import_seconds(statement: str) -> float:
    """Seconds that an import takes in a new process."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of timing (default: %(default)s)")
    args = parser.parse_args()
    steps = {name: lambda line=line: import_seconds(line) for name, line in IMPORTS.items()}
    times = alternate(steps, args.rounds)
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    facts = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    over = {}
    for peer, name in PAIRS.items():
        differences = [ours - other for ours, other in zip(times[name], times[peer], strict=True)]
        over[peer] = round(statistics.median(differences), 3)
        print(f"{peer}: {medians[peer]} s; {name}: {medians[name]} s, {over[peer]:+} s")
    write_result("import_time", {"benchmark": "import_time", **facts, "seconds": medians, "over": over})


if __name__ == "__main__":
    main()
