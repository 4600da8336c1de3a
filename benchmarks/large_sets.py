"""Time and memory until a training on many images starts, from a folder and from streamed shards.

    python benchmarks/large_sets.py                          100,000 and 400,000 images
    python benchmarks/large_sets.py --counts 100000 1000000

Makes folders and parquet shards of small PNG files, and runs `hf-simmim pretrain` for two steps on each, in a process
of its own. Prints the seconds until the training begins, beyond those of a training on 1,000 images, and the most
memory that the process held. Then reads one step after the other from the shards, as the workers of a training do, and
prints images a second and the memory by then: with --streaming it does not grow with the number of images.
"""

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from PIL import Image

ENCODER = {
    **{"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 16},
    **{"depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
}
# Images of a shard and of its row groups.
SHARD, GROUP = 10_000, 100
RUN = """
import resource, sys, time
began = time.perf_counter()
from hf_simmim.cli import pretrain
from hf_simmim.training.trainers import SimMIMTrainer
train = SimMIMTrainer.train
def noted(self, *args, **kwargs):
    print("STARTED", time.perf_counter() - began, flush=True)
    return train(self, *args, **kwargs)
SimMIMTrainer.train = noted
pretrain.COMMAND.main(sys.argv[1:])
print("MEMORY", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
READ = """
import itertools, resource, sys, time
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.streaming import StreamSampler, stream_images
images = stream_images(data_files=[sys.argv[1]], cache_folder=sys.argv[2], cache_bytes=10**9)
dataset = MaskedImageDataset(images, (32, 32), 3, patch_size=4, mask_patch_size=8)
keys = StreamSampler(images, 128, 8192, seed=0).keys(0)
began = time.perf_counter()
for key in itertools.islice(keys, 20_000):
    dataset[key]
print("SPEED", 20_000 / (time.perf_counter() - began))
print("MEMORY", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def pictures(count: int) -> list[bytes]:
    """Small PNG files, few of which are equal."""
    generator, files = np.random.default_rng(0), []
    for _ in range(min(count, 5000)):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((36, 36)).save(file, "PNG")
        files.append(file.getvalue())
    return [files[index % len(files)] for index in range(count)]


def make_folder(folder: Path, files: list[bytes]) -> None:
    """Write files, a thousand to a folder."""
    for index, content in enumerate(files):
        parent = folder / f"{index // 1000:05d}"
        if index % 1000 == 0:
            parent.mkdir(parents=True)
        (parent / f"{index:08d}.png").write_bytes(content)


def make_shards(folder: Path, files: list[bytes]) -> None:
    """Write parquet shards."""
    datasets.disable_progress_bars()
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image()})
    for start in range(0, len(files), SHARD):
        rows = [{"bytes": content, "path": None} for content in files[start : start + SHARD]]
        shard = datasets.Dataset.from_dict({"image": rows}, features=features)
        shard.to_parquet(folder / f"{start // SHARD:05d}.parquet", batch_size=GROUP)


def figures(program: str, *words: str) -> dict[str, float]:
    """Run a program in a process of its own, and read the figures that it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    lines = (line.split() for line in result.stdout.splitlines())
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and line[0] in ("STARTED", "MEMORY", "SPEED")}


def start(work: Path, *source: str) -> dict[str, float]:
    """Two steps of a training."""
    shutil.rmtree(work / "run", ignore_errors=True)
    options = {
        **{"output_dir": work / "run", "encoder": json.dumps(ENCODER), "mask_patch_size": 8, "max_steps": 2},
        **{"per_device_train_batch_size": 16, "max_eval_samples": 16, "use_cpu": True, "disable_tqdm": True},
        **{"compared_images": 0, "save_strategy": "no"},
    }
    return figures(RUN, *source, *(word for name, value in options.items() for word in (f"--{name}", str(value))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 400_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="large_sets-") as name:
        work, base = Path(name), {}
        os.environ["HF_HOME"] = str(work / "cache")
        print("| images | source | s to start, beyond 1,000 images | memory of the process (GB) | read (images/s) |")
        print("| --- | --- | --- | --- | --- |")
        for count in (1000, *arguments.counts):
            files = pictures(count)
            make_folder(work / "photos", files)
            make_shards(work / "shards", files)
            pattern = str(work / "shards" / "*.parquet")
            for kind, source in (
                ("folder", ("--train_dir", str(work / "photos"))),
                ("shards, streamed", ("--data_files", pattern, "--streaming", "True")),
            ):
                began = start(work, *source)
                base.setdefault(kind, began["STARTED"])
                seconds, memory = began["STARTED"] - base[kind], began["MEMORY"] / 1e9
                print(f"| {count:,} | {kind} | {seconds:.1f} | {memory:.2f} | |", flush=True)
            if count > 20_000:
                read = figures(READ, pattern, str(work / "blocks"))
                memory, speed = read["MEMORY"] / 1e9, read["SPEED"]
                print(f"| {count:,} | 20,000 images of the shards | | {memory:.2f} | {speed:,.0f} |", flush=True)
            for folder in ("photos", "shards", "blocks"):
                shutil.rmtree(work / folder, ignore_errors=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, datasets {datasets.__version__}"
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}. {time.strftime('%F')}")


if __name__ == "__main__":
    main()
