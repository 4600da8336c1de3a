"""Speed and memory of a training step of masked image modeling, ours and others', optimizer included.

Each mode runs in a process of its own, and the processes take turns, so that drift of the machine cancels. All have the
same weights (except the authors' code), images and masks; times count only if all modes have the same loss. Ours runs
as `hf-simmim pretrain` runs it, with the memory setting of its trainings; `ours default-malloc` leaves that out, `ours
denormal` the zeros in place of denormal weights of attention, and `ours plain-products` the products of linear layers
by oneDNN, which only some processors gain by; `ours unshared` computes all windows of masked tokens.

    python benchmarks/step.py --encoder swin-tiny --batch_size 4
    python benchmarks/step.py --encoder swin-base --batch_size 128 --dtype bfloat16 --device cuda
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import alternate, is_emulated, machine, peak_memory, peak_tensors, ratio, seconds, write_result
from peers import ENCODERS, build_inputs, build_loss

from hf_simmim.model import swin
from hf_simmim.training import acceleration
from hf_simmim.training.acceleration import keep_freed_memory, recompute_activations

MODES = [
    *("ours", "ours default-malloc", "ours denormal", "ours plain-products", "ours unshared"),
    *("ours recompute", "ours compiled"),
    *("transformers sdpa", "transformers eager", "transformers sdpa compiled", "official"),
]
# Relative difference of losses in float32; in bfloat16 only the rounding of the products is common.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


class Softmax:
    """torch's softmax over the last dimension, in place of ours."""

    @staticmethod
    def apply(logits: torch.Tensor) -> torch.Tensor:
        """Weights of the shape of the logits."""
        return logits.softmax(dim=-1)


class Worker:
    """A process that runs steps of a mode when it is told to.

    Args:
        mode: The mode.
        arguments: The arguments of this program.
    """

    def __init__(self, mode: str, arguments: list[str]):
        command = [sys.executable, __file__, *arguments, "--worker", mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loss = self.ask("loss")

    def ask(self, what: str) -> float:
        """Send a word and read the number that comes back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("= "):
                return float(line[2:])
        raise SystemExit(f"The process of a mode ended: {' '.join(map(str, self.process.args))}")  # type: ignore[arg-type]

    def step(self) -> float:
        """Time of a step in seconds."""
        return self.ask("step")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def work(mode: str, args: argparse.Namespace) -> None:
    """Answer the questions of the parent process: `loss`, `step` in seconds, `memory` and `tensors` in MiB."""
    torch.set_num_threads(args.threads)
    if mode.startswith("ours") and not mode.endswith("default-malloc"):
        keep_freed_memory()
    inputs = {name: tensor.to(args.device) for name, tensor in build_inputs(args.encoder, args.batch_size).items()}
    if mode == "ours denormal":
        swin.FlushedSoftmax = Softmax  # type: ignore[misc]
    elif mode == "ours plain-products":
        acceleration.onednn_multiplies_faster = lambda: False  # type: ignore[assignment]
    elif mode == "ours unshared":
        swin.SwinStage.shared_windows = lambda *args: None  # type: ignore[method-assign]
    plain = "ours" if mode.startswith("ours") and not mode.endswith(" compiled") else mode
    model, run = build_loss(plain, args.encoder, inputs, args.official)
    if mode.endswith(" recompute"):
        recompute_activations(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def loss() -> torch.Tensor:
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            output = run()
        return output if isinstance(output, torch.Tensor) else output.loss

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    for line in sys.stdin:
        if line == "loss\n":
            answer = loss().item()
        elif line == "memory\n":
            answer = peak_memory(step, args.device, whole=True)
        elif line == "tensors\n":
            answer = peak_tensors(step, model, optimizer, *inputs.values())
        else:
            answer = seconds(step, args.device)
        print(f"= {answer}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=ENCODERS, default="swin-tiny", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=4, help="images per batch (default: %(default)s)")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["ours", "transformers sdpa"])
    parser.add_argument("--official", type=Path, help="clone of https://github.com/microsoft/SimMIM")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--print_only", action="store_true", help="keep no line in benchmarks/results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args)
        return

    if is_emulated(args.dtype, args.device):
        return
    workers = {mode: Worker(mode, sys.argv[1:]) for mode in args.modes}
    try:
        result = measure(workers, args)
    finally:
        for worker in workers.values():
            worker.close()
    if not args.print_only:
        write_result("step", result)


def measure(workers: dict[str, Worker], args: argparse.Namespace) -> dict[str, Any]:
    """Check the losses, time all modes, print a table, and return the line of results."""
    facts = {**machine(args.device), "threads": args.threads}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    expected = workers["ours"].loss
    for mode, worker in workers.items():
        difference = abs(worker.loss - expected) / expected
        if mode != "official" and not difference < TOLERANCES[args.dtype]:
            raise SystemExit(f"The loss of {mode} is {worker.loss}, ours {expected}: their times are not comparable.")
    times = alternate({mode: worker.step for mode, worker in workers.items()}, args.rounds)
    medians = {mode: statistics.median(values) for mode, values in times.items()}
    print(f"\n{args.encoder}, batch {args.batch_size}, {args.dtype}, {args.rounds} rounds, optimizer included\n")
    print("| | images/s | time of it to that of ours (min to max) | peak memory, MiB | of it tensors |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows = {}
    for mode, values in times.items():
        row: dict[str, Any] = {"seconds": round(medians[mode], 4), "mib": round(workers[mode].ask("memory"))}
        if args.device == "cpu" and not mode.endswith("compiled"):
            row["tensor_mib"] = round(workers[mode].ask("tensors"))
        rows[mode] = row | {"to_ours": ratio(values, times["ours"])}
        spread = rows[mode]["to_ours"]
        print(
            f"| {mode} | {args.batch_size / medians[mode]:.2f} | {spread['median']:.3f} ({spread['min']:.3f} to"
            f" {spread['max']:.3f}) | {row['mib']} | {row.get('tensor_mib', '')} |",
            flush=True,
        )
    peers = [mode for mode in times if not mode.startswith("ours")]
    best = min(peers, key=lambda mode: medians[mode]) if peers else None
    if best:
        print(f"\nBest peer: {best}. Ours is {rows[best]['to_ours']['median']:.3f} times as fast.")
    settings = {key: getattr(args, key) for key in ("encoder", "batch_size", "dtype", "rounds")}
    return {"benchmark": "step", **facts, **settings, "best_peer": best, "modes": rows}


if __name__ == "__main__":
    main()
