"""Features of both ways of encoding after the same time: a small ViT on the embedded Fashion-MNIST, and linear probes.

Each way trains for the same processor time, whatever else the machine does: the paper's with a mask ratio of 0.6, and
`encode="visible"` with 0.75 and 0.6. The encoder that was not trained is probed, too. One run of each is a first look,
not a study: differences of a point or less are noise.

    python -m benchmarks.visible_probe --seconds 180
"""

import argparse
import math
import os
import platform
import time
from importlib.metadata import version

import torch

from benchmarks.ablation.data import augment, load_images
from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.evaluation.probing import linear_probe
from hf_simmim.model.masking import random_mask

from .measuring import write_result

# Of `examples/data/fashion_mnist_7k`.
MEAN, STD = 0.286, 0.353
ENCODER = {
    "model_type": "vit",
    "image_size": 28,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 384,
}
OBJECTIVE = {"target": "normalized_rgb", "target_options": {"window_size": 15}, "loss": "l2"}
ARMS = {
    "not trained": ({}, 0.0),
    "all, ratio 0.6": ({}, 0.6),
    "visible, ratio 0.75": ({"encode": "visible", "decoder_options": {"num_layers": 2}}, 0.75),
    "visible, ratio 0.6": ({"encode": "visible", "decoder_options": {"num_layers": 2}}, 0.6),
}
WARM_UP = 0.1


def normalize(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - MEAN) / STD


def train(
    images: torch.Tensor, settings: dict, ratio: float, arguments: argparse.Namespace
) -> tuple[SimMIMForMaskedImageModeling, int]:
    """Train for a time; the learning rate rises, and falls as half a cosine.

    Args:
        images: Images (N, 1, 28, 28) of 8 bits.
        settings: Of the config.
        ratio: Share of masked patches; 0 for no training.
        arguments: Options of this script.

    Returns:
        The model and the number of steps.
    """
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER, **OBJECTIVE, **settings)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.05, betas=(0.9, 0.95))
    start, steps = time.process_time(), 0
    while ratio and (done := (time.process_time() - start) / arguments.seconds) < 1:
        rate = min(done / WARM_UP, 1) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * arguments.learning_rate
        rows = torch.randint(len(images), (arguments.batch_size,), generator=generator)
        pixel_values = augment(normalize(images[rows]), generator)
        mask = random_mask(model.config.grid_size, ratio, arguments.batch_size, generator=generator)
        model(pixel_values, bool_masked_pos=mask, return_reconstruction=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return model.eval(), steps


@torch.no_grad()
def features(model: SimMIMForMaskedImageModeling, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.simmim(normalize(part)).pooler_output for part in images.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="Processor time of each training.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images of a step.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Peak learning rate.")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="Arms to run.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_images("embedded", 28, 6000, 1000)
    print("| | steps | linear probe, % |\n| --- | ---: | ---: |")
    found = {}
    for name in arguments.arms:
        model, steps = train(data.images, *ARMS[name], arguments)
        parts = [features(model, images) for images in (data.images, data.test_images)]
        accuracy = linear_probe(parts[0], data.labels, parts[1], data.test_labels, 10).accuracy
        found[name] = {"steps": steps, "accuracy": round(accuracy, 4)}
        print(f"| {name} | {steps:,} | {accuracy:.1%} |".replace("%", ""), flush=True)
    facts = {
        "study": "probe",
        **{name: getattr(arguments, name) for name in ("seconds", "batch_size", "learning_rate", "seed")},
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} threads",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }
    print("\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    write_result("visible", facts | {"results": found})


if __name__ == "__main__":
    main()
