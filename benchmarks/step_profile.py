"""Where the time of a training step goes, and the least that each part can take on this processor.

Each operator is timed when it is called, by its name and shapes; torch's profiler would make the memory of a training
grow, and take longer than the step. The limit of products is their arithmetic at the rate
of a large product of the same type, that of everything else its bytes at the rate of a copy, both measured in the same
run: the sum of the limits is what could be reached if nothing ever waited for anything else. Not called profile.py:
Python's own `cProfile` imports a module of that name.

    python benchmarks/step_profile.py --encoder swin-tiny --batch_size 4
"""

import argparse
import math
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from measuring import is_emulated, machine, write_result
from peers import ENCODERS, build_inputs, build_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_simmim.training.acceleration import keep_freed_memory

# Takes tokens (..., C) and weights (D, C).
ONEDNN_LINEAR = "mkldnn::_linear_pointwise"
# Products of queries with keys and of weights with values, and the four of their gradients.
FUSED_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 4,
}
# Operators of each part; others, such as views, only take the time of their call.
PARTS = {
    "products of tokens and weights": ("mm", "addmm", ONEDNN_LINEAR),
    "products of attention": ("bmm", "baddbmm", *FUSED_ATTENTION),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "norms and activations": ("native_layer_norm", "native_layer_norm_backward", "gelu", "gelu_backward"),
    "data movement": (
        *("cat", "stack", "clone", "index_select", "index", "index_put", "index_copy", "fill_", "zero_", "copy_"),
        *("where", "masked_fill", "pixel_shuffle", "pixel_unshuffle", "embedding", "embedding_dense_backward"),
        *("_to_copy", "new_zeros", "zeros_like"),
    ),
    "sums and differences": ("add", "add_", "sub", "mul", "mul_", "sum"),
    "loss": ("abs", "sgn", "div", "neg"),
    "convolution": ("convolution", "convolution_backward"),
    "optimizer": ("_fused_adamw_",),
}
PART_OF = {operator: part for part, operators in PARTS.items() for operator in operators}
# Bytes of an element of a parameter that AdamW reads and writes: weight, gradient and two moments, three of them back.
OPTIMIZER_BYTES = 7 * 4
STEPS = 5


class Clock(TorchDispatchMode):
    """Calls and seconds of each operator, by its name and the shapes of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple[str, tuple[Any, ...]], int] = defaultdict(int)
        self.seconds: dict[tuple[str, tuple[Any, ...]], float] = defaultdict(float)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        end = time.perf_counter()
        leaves = tree_leaves(args) if function._schema.name == "aten::cat" else args
        shapes = tuple(tuple(value.shape) for value in leaves if isinstance(value, torch.Tensor))
        key = function._schema.name.removeprefix("aten::"), shapes
        self.calls[key] += 1
        self.seconds[key] += end - start
        return result


def best_rate(work: float, run: Any, repeats: int = 15) -> float:
    """Work a second of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return work / min(times)


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large product."""
    size = 1024
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return best_rate(2 * size**3, lambda: left @ right)


def memory_rate() -> float:
    """Bytes a second of a copy that does not fit the caches, read and written."""
    source = torch.zeros(2**25)
    goal = torch.zeros_like(source)
    return best_rate(2 * source.nbytes, lambda: goal.copy_(source))


def operations(name: str, shapes: tuple[Any, ...]) -> float:
    """Arithmetic operations of a product, from the shapes of its arguments."""
    if name in FUSED_ATTENTION:
        batch_size, heads, length, dim = shapes[0]
        return 2.0 * FUSED_ATTENTION[name] * batch_size * heads * length**2 * dim
    first, second = [shape for shape in shapes if len(shape) >= 2][-2:]
    if name in ("bmm", "baddbmm"):
        return 2.0 * first[0] * first[1] * first[2] * second[2]
    if name == ONEDNN_LINEAR:
        return 2.0 * math.prod(first) * second[0]
    return 2.0 * first[0] * first[1] * second[1]


def elements(shapes: tuple[Any, ...]) -> int:
    """Elements of all arguments, and of an output as large as the largest of them."""
    sizes = [math.prod(shape) for shape in shapes]
    return sum(sizes) + max(sizes, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=ENCODERS, default="swin-tiny", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=4, help="images per batch (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--mode", default="ours", help="as --modes of step.py, not compiled (default: %(default)s)")
    args = parser.parse_args()
    if is_emulated(args.dtype, "cpu"):
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    model, run = build_loss(args.mode, args.encoder, build_inputs(args.encoder, args.batch_size), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = run().loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    plain = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        plain.append(time.perf_counter() - start)
    with Clock():
        step()
    with Clock() as clock:
        for _ in range(STEPS):
            step()
    dtype = getattr(torch, args.dtype)
    rates = {"operations": product_rate(dtype), "bytes": memory_rate()}
    times: dict[str, float] = defaultdict(float)
    limits: dict[str, float] = defaultdict(float)
    for (name, shapes), calls in clock.calls.items():
        part = PART_OF.get(name, "views")
        times[part] += clock.seconds[name, shapes] / STEPS
        if part.startswith("products"):
            limits[part] += calls / STEPS * operations(name, shapes) / rates["operations"]
        elif part not in ("views", "optimizer"):
            size = 2 if args.dtype == "bfloat16" and part != "loss" else 4
            limits[part] += calls / STEPS * elements(shapes) * size / rates["bytes"]
    limits["optimizer"] = sum(value.numel() for value in model.parameters()) * OPTIMIZER_BYTES / rates["bytes"]
    least = sum(limits.values())
    seconds = statistics.median(plain)
    times["calls, Python"] = max(seconds - sum(times.values()), 0.0)
    total = sum(times.values())
    facts = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        f"{args.mode}, {args.encoder}, batch {args.batch_size}, {args.dtype}: {seconds * 1e3:.0f} ms a"
        f" step without the profiler; {rates['operations'] / 1e9:.0f} Gop/s, {rates['bytes'] / 1e9:.1f} GB/s\n"
    )
    print("| part | ms | share | limit, ms |\n| --- | ---: | ---: | ---: |")
    for part in sorted(times, key=lambda name: -times[name]):
        print(f"| {part} | {times[part] * 1e3:.1f} | {times[part] / total:.1%} | {limits[part] * 1e3:.1f} |")
    print(f"| sum | {total * 1e3:.1f} | | {least * 1e3:.1f} |")
    print(f"\nThe step takes {seconds / least:.2f} times the sum of the limits, which is {least / seconds:.0%} of it.")
    result = {part: {"ms": round(times[part] * 1e3, 2), "limit_ms": round(limits[part] * 1e3, 2)} for part in times}
    settings = {key: getattr(args, key) for key in ("mode", "encoder", "batch_size", "dtype")}
    write_result(
        "step_profile",
        {"benchmark": "step_profile", **facts, **settings, "step_ms": round(seconds * 1e3, 1)}
        | {"share_of_limits": round(least / seconds, 3), "parts": result},
    )


if __name__ == "__main__":
    main()
