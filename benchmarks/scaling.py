"""Images a second of two processes of one thread (DDP) against one process of two threads, the same batch in all.

Both take turns, round by round. On two cores neither can be faster than twice one thread. Gradients lie in the buckets
that are exchanged, as in trainings.

    python benchmarks/scaling.py
"""

import argparse
import os
import socket
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measuring import WARM_UP_ROUNDS, machine, ratio, write_result
from peers import ENCODERS, build_inputs, build_loss

from hf_simmim.training.acceleration import faster_kernels, keep_freed_memory

NUM_PROCESSES = 2


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_step(args: argparse.Namespace, batch_size: int, is_parallel: bool) -> Any:
    """A function that runs a training step, optimizer included."""
    inputs = build_inputs(args.encoder, batch_size)
    model, _ = build_loss("ours", args.encoder, inputs, None)
    if is_parallel:
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with faster_kernels():
            model(**inputs, return_reconstruction=False, skip_visible=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def work(rank: int, args: argparse.Namespace, port: int, results: Any) -> None:
    """A process: its step with the other one, then in the first process a step alone with all threads; in turns."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    keep_freed_memory()
    dist.init_process_group("gloo", rank=rank, world_size=NUM_PROCESSES)
    together = make_step(args, args.batch_size // NUM_PROCESSES, True)
    alone = make_step(args, args.batch_size, False) if rank == 0 else None
    times: dict[str, list[float]] = {"processes": [], "threads": []}
    for _ in range(WARM_UP_ROUNDS + args.rounds):
        torch.set_num_threads(1)
        dist.barrier()
        start = time.perf_counter()
        together()
        dist.barrier()
        times["processes"].append(time.perf_counter() - start)
        if alone is not None:
            torch.set_num_threads(NUM_PROCESSES)
            start = time.perf_counter()
            alone()
            times["threads"].append(time.perf_counter() - start)
        # The other process sleeps, rather than to look whether the first has come.
        if rank == 0:
            results.put(None)
        else:
            results.get()
    dist.destroy_process_group()
    if rank == 0:
        results.put({name: values[WARM_UP_ROUNDS:] for name, values in times.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=ENCODERS, default="swin-tiny", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="of both processes together (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of timing (default: %(default)s)")
    args = parser.parse_args()
    results = mp.get_context("spawn").Queue()
    mp.spawn(work, (args, free_port(), results), nprocs=NUM_PROCESSES, join=True)
    times = results.get()
    speed = ratio(times["threads"], times["processes"])
    facts = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        f"{args.encoder}, batch {args.batch_size}: {NUM_PROCESSES} processes of one thread are {speed['median']:.2f}"
        f" times as fast as one of {NUM_PROCESSES} threads ({speed['min']:.2f} to {speed['max']:.2f})"
    )
    settings = {"encoder": args.encoder, "batch_size": args.batch_size, "rounds": args.rounds}
    write_result("scaling", {"benchmark": "scaling", **facts, **settings, "processes_to_threads": speed})


if __name__ == "__main__":
    main()
