"""Images per second of a whole pre-training, against the way of transformers' run_mim.py on the same folder.

Both train the same encoder with the same images, batches, precision and number of reading processes, as commands that
take turns: `hf-simmim pretrain`, and what run_mim.py does, written here because its torchvision cannot be installed
everywhere: `datasets` reads the folder, Pillow decodes, crops and flips as torchvision's transforms do, the script's
mask generator draws, and Trainer trains transformers' `SwinForMaskedImageModeling`. Neither evaluates or saves on the
way. The rate of steps is that after the first of them; that of the command counts everything from its start to its end,
such as imports and a first look at the images, and so depends on the number of steps. Requires scikit-image.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --size 4000 3000 --bf16
"""

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from loading_speed import like_torchvision, make_files
from measuring import alternate, machine, ratio, write_result
from PIL import Image
from transformers import SwinConfig, SwinForMaskedImageModeling, Trainer, TrainerCallback, TrainingArguments

from hf_simmim import ENCODER_PRESETS
from hf_simmim.data.transforms import Box

MASK_PATCH, MASK_RATIO = 32, 0.6
SCALE, ASPECT = (0.67, 1.0), (3 / 4, 4 / 3)


def random_crop(image: Image.Image, size: int) -> torch.Tensor:
    """torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `ToTensor` and `Normalize`.

    Args:
        image: Image of three channels.
        size: Side of the crop in pixels.

    Returns:
        float32 tensor of shape (3, size, size).
    """
    width, height = image.size
    box: Box = (0, 0, width, height)
    for _ in range(10):
        area = width * height * float(torch.empty(1).uniform_(*SCALE))
        aspect = float(torch.exp(torch.empty(1).uniform_(float(np.log(ASPECT[0])), float(np.log(ASPECT[1])))))
        wide, high = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            top, left = (int(torch.randint(0, limit + 1, ())) for limit in (height - high, width - wide))
            box = (left, top, left + wide, top + high)
            break
    return like_torchvision(image, box, (size, size), bool(torch.rand(()) < 0.5))


def random_mask(side: int, patch_size: int) -> torch.Tensor:
    """The mask of `MaskGenerator` of run_mim.py, flat over patches of the encoder."""
    cells = (side // MASK_PATCH) ** 2
    mask = torch.zeros(cells, dtype=torch.long)
    mask[torch.randperm(cells)[: math.ceil(cells * MASK_RATIO)]] = 1
    repeats = MASK_PATCH // patch_size
    mask = mask.view(side // MASK_PATCH, -1).repeat_interleave(repeats, 0).repeat_interleave(repeats, 1)
    return mask.flatten()


class PrintSteps(TrainerCallback):
    """Prints each step as `hf-simmim pretrain` does."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        print(f"step {state.global_step}/{state.max_steps}", flush=True)


def train_as_run_mim(args: argparse.Namespace) -> None:
    """Train as transformers' run_mim.py does."""
    settings = ENCODER_PRESETS[args.encoder] | {"image_size": args.image_size, "encoder_stride": 32}
    config = SwinConfig(**{key: value for key, value in settings.items() if key != "model_type"})
    images = load_dataset("imagefolder", data_dir=str(args.worker), split="train")

    def transform(rows: dict[str, Any]) -> dict[str, Any]:
        pixels = [random_crop(image.convert("RGB"), args.image_size) for image in rows["image"]]
        return {"pixel_values": pixels, "mask": [random_mask(args.image_size, config.patch_size) for _ in pixels]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "bool_masked_pos": torch.stack([row["mask"] for row in rows]),
        }

    images.set_transform(transform)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            dataloader_num_workers=args.workers,
            bf16=args.bf16,
            learning_rate=1e-5,
            weight_decay=0.05,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=args.device == "cpu",
        )
        trainer = Trainer(SwinForMaskedImageModeling(config), arguments, data_collator=collate, train_dataset=images)
        trainer.add_callback(PrintSteps())
        trainer.train()


def rates(command: list[str], batch_size: int) -> tuple[float, float]:
    """Run a command that prints its steps.

    Args:
        command: The command.
        batch_size: Images of a step.

    Returns:
        Images per second of all steps but the first, and of the whole command.
    """
    started = time.monotonic()
    times, lines = [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.match(r"step \d+/\d+($| +\()", line) and "trained in" not in line:
                times.append(time.monotonic())
    seconds = time.monotonic() - started
    if process.returncode or len(times) < 2:
        raise SystemExit("".join(lines[-20:]) + f"The command failed: {' '.join(command)}")
    return batch_size * (len(times) - 1) / (times[-1] - times[0]), batch_size * len(times) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    swins = [name for name in ENCODER_PRESETS if name.startswith("swin-")]
    parser.add_argument("--encoder", choices=swins, default="swin-tiny", help="default: %(default)s")
    parser.add_argument("--image_size", type=int, default=192, help="side in pixels (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=[1280, 960], help="width and height of the photos")
    parser.add_argument("--batch_size", type=int, default=16, help="images per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="steps of a training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train_as_run_mim(args)
        return

    with tempfile.TemporaryDirectory() as root:
        photos = Path(root) / "photos"
        photos.mkdir()
        files = make_files(tuple(args.size))
        for index in range(args.batch_size * args.steps):
            (photos / f"{index:05}.jpg").write_bytes(files[index % len(files)])
        shared = ["--per_device_train_batch_size", args.batch_size, "--max_steps", args.steps]
        shared += ["--dataloader_num_workers", args.workers, "--bf16", args.bf16, "--image_size", args.image_size]
        ours = [sys.executable, "-m", "hf_simmim", "pretrain", "--train_dir", photos, "--output_dir", f"{root}/run"]
        ours += ["--encoder", args.encoder, "--restart", "true", "--holdout", 0, "--mask_patch_size", MASK_PATCH]
        ours += ["--target", "rgb"]
        ours += shared
        ours += ["--eval_strategy", "no", "--save_strategy", "no", "--logging_steps", 1, "--disable_tqdm", "true"]
        ours += ["--use_cpu", args.device == "cpu"]
        theirs = [sys.executable, __file__, *sys.argv[1:], "--worker", photos]
        found: dict[str, list[tuple[float, float]]] = {"ours": [], "run_mim": []}

        def run(name: str, command: list[Any]) -> float:
            found[name].append(rates([str(part) for part in command], args.batch_size))
            return found[name][-1][0]

        alternate({"ours": lambda: run("ours", ours), "run_mim": lambda: run("run_mim", theirs)}, args.rounds, 1)
    facts = machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    settings = {key: getattr(args, key) for key in ("encoder", "image_size", "batch_size", "steps", "workers", "bf16")}
    settings |= {"photos": f"{args.size[0]}x{args.size[1]}"}
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    print("\n| images/s | ours | run_mim | times as fast (min to max) |\n| --- | ---: | ---: | ---: |")
    rows = {}
    for index, title in enumerate(("steps", "command")):
        own, peer = ([values[index] for values in found[name][1:]] for name in ("ours", "run_mim"))
        rows[title] = {"ours": round(float(np.median(own)), 2), "run_mim": round(float(np.median(peer)), 2)}
        rows[title]["ratio"] = spread = ratio(own, peer)
        print(
            f"| {title} | {rows[title]['ours']} | {rows[title]['run_mim']} | {spread['median']:.2f}"
            f" ({spread['min']:.2f} to {spread['max']:.2f}) |"
        )
    write_result("end_to_end", {"benchmark": "end_to_end", **facts, **settings, "images_per_second": rows})


if __name__ == "__main__":
    main()
