"""Probes one frozen network in several ways: as public tables of SimMIM do, and as the paper does.

Tables of self-supervised methods take the class token after the final norm. A pre-training by masked pixels gives that
token nothing to do: no pixel is predicted from it. The paper probes the mean of the patch tokens of a middle block, the
8th of ViT-B's 12. Without --checkpoint two small ViTs are pre-trained on the embedded images, alike but for their
masks: single tokens, and squares of 2 x 2 tokens, as the paper's 32 px are 2 x 2 tokens of 16 px.

    python benchmarks/frozen_features.py
    python benchmarks/frozen_features.py --checkpoint runs/mim --train_dir labeled_photos
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

import hf_simmim
from hf_simmim import SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.data.labeled.images import LabeledImageDataset, LabeledImages, load_labeled_images
from hf_simmim.data.labeled.splits import holdout
from hf_simmim.data.sources import embedded_data
from hf_simmim.evaluation.intervals import paired_bootstrap
from hf_simmim.evaluation.probing import Pair, ProbeResult, check_layers, choose_pair, extract_pairs, knn, linear_probe

ENCODER = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# Sides of the mask patches in pixels: one token, and the paper's 32 px at 16 px for a token.
MASK_PATCHES = {"single-token masks": 4, "masks of 2 x 2 tokens": 8}
# The paper's share of the blocks: 8 of 12.
MIDDLE = 8 / 12
MASK_RATIO = 0.6


class Subject(NamedTuple):
    """A network that is probed."""

    name: str
    model: SimMIMForMaskedImageModeling
    processor: SimMIMImageProcessor


class Features(NamedTuple):
    """Features of images, (N, D) each, by what they are taken from."""

    pairs: dict[Pair, torch.Tensor]
    # The class token after the final norm, of whole images, and the mean of the patch tokens of masked images.
    token: torch.Tensor
    masked_mean: torch.Tensor


def pretrained(folder: Path, epochs: float, seed: int) -> Iterator[Subject]:
    """Pre-train the two networks, and yield them with an untrained one."""
    for name, size in MASK_PATCHES.items():
        result = hf_simmim.pretrain(
            dataset_name=embedded_data(),
            encoder=ENCODER,
            output_dir=str(folder / str(size)),
            mask_patch_size=size,
            mask_ratio=[MASK_RATIO],
            crop_scale=[0.67, 1.0],
            num_train_epochs=epochs,
            per_device_train_batch_size=60,
            learning_rate=1e-3,
            image_mean=[0.286],
            image_std=[0.353],
            holdout=0.0,
            eval_strategy="no",
            save_strategy="no",
            logging_steps=200,
            # The same on all machines, and for so small a network faster.
            bf16=False,
            report_to="none",
            seed=seed,
        )
        yield Subject(name, result.model, result.processor)
    torch.manual_seed(seed)
    yield Subject("untrained", SimMIMForMaskedImageModeling(result.model.config), result.processor)


def load_checkpoint(name: str) -> Subject:
    """Load a pre-trained model and its processor."""
    model = SimMIMForMaskedImageModeling.from_pretrained(name)
    return Subject(Path(name).name, model, AutoImageProcessor.from_pretrained(name))


def load_labeled(folder: str | None) -> tuple[LabeledImages, LabeledImages]:
    """Load training and test images."""
    if folder is None:
        train, test = (load_labeled_images(dataset_name=embedded_data(), split=split) for split in ("train", "test"))
        return train, test.with_classes(train.class_names)
    images = load_labeled_images(folder)
    train, test = (images.select(part) for part in holdout(images.labels, 0.2, 0, images.class_names, images.groups))
    return train, test


def batches(images: LabeledImages, subject: Subject) -> DataLoader:
    """Batches of whole images, normalized for a network."""
    config, processor = subject.model.config, subject.processor
    dataset = LabeledImageDataset(
        *(images.rows, config.image_size, config.num_channels, processor.image_mean, processor.image_std),
        rescale_factor=processor.rescale_factor,
        nodata=processor.nodata,
        crop_ratio=1,
    )
    return DataLoader(dataset, 250)


def final_norm(model: SimMIMForMaskedImageModeling) -> torch.nn.Module:
    """The norm after the last block of a ViT; an encoder without a class token is refused."""
    check_layers(model.config, [None], "cls")
    return next(part for name, part in model.named_modules() if name.endswith(("encoder.layernorm", "encoder.norm")))


@torch.no_grad()
def features_of(subject: Subject, images: LabeledImages, pairs: list[Pair]) -> Features:
    """Take all features of some images."""
    model, outputs, generator = subject.model.eval(), [], torch.Generator().manual_seed(0)
    norm = final_norm(model)
    found = extract_pairs(model, batches(images, subject), pairs, progress=False)
    tokens, means = [], []
    handle = norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for batch in batches(images, subject):
        pixels = batch["pixel_values"]
        model(pixels, return_reconstruction=False)
        whole = outputs.pop()
        tokens.append(whole[:, 0])
        num_tokens = whole.shape[1] - 1
        order = torch.rand(len(pixels), num_tokens, generator=generator).argsort(dim=1)
        model(pixels, bool_masked_pos=order < round(MASK_RATIO * num_tokens), return_reconstruction=False)
        means.append(outputs.pop()[:, 1:].mean(dim=1))
    handle.remove()
    return Features(dict(zip(pairs, found, strict=True)), torch.cat(tokens), torch.cat(means))


def main() -> None:
    """Probe each network in all ways, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", help="pre-trained ViTs with a class token, instead of small ones")
    parser.add_argument("--train_dir", help="folder of labeled images (the embedded ones if unset)")
    parser.add_argument("--epochs", type=float, default=8, help="epochs of the pre-trainings (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pre-trainings (default: %(default)s)")
    args = parser.parse_args()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        subjects = (
            [load_checkpoint(name) for name in args.checkpoint]
            if args.checkpoint
            else list(pretrained(Path(folder), args.epochs, args.seed))
        )
    train, test = load_labeled(args.train_dir)
    labels: Any = (train.labels, test.labels, len(train.class_names or ()))

    def probed(first: torch.Tensor, second: torch.Tensor) -> ProbeResult:
        return linear_probe(first, labels[0], second, labels[1], labels[2])

    def right(result: ProbeResult) -> torch.Tensor:
        return result.predictions == torch.as_tensor(labels[1])

    trained = "" if args.checkpoint else f", {args.epochs:g} epochs, seed {args.seed}"
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, hf-simmim {hf_simmim.__version__}; {len(train):,} images to fit probes to,"
        f" {len(test):,} test images{trained}"
    )
    summary = []
    for subject in subjects:
        depth = subject.model.config.encoder_config.num_hidden_layers
        poolings = ("mean", "cls")
        pairs: list[Pair] = [(layer, pooling) for layer in range(1, depth + 1) for pooling in poolings]
        pairs.append((None, "mean"))
        fitted, tested = (features_of(subject, part, pairs) for part in (train, test))
        results = {pair: probed(fitted.pairs[pair], tested.pairs[pair]) for pair in pairs}
        token = probed(fitted.token, tested.token)
        mixed = probed(fitted.masked_mean, tested.token)
        print(f"\n{subject.name}: test accuracy of a linear probe, %\n")
        print("| features of | mean of patch tokens | class token |\n| --- | ---: | ---: |")
        for layer in range(1, depth + 1):
            print(f"| block {layer} | {' | '.join(f'{100 * results[layer, p].accuracy:.1f}' for p in poolings)} |")
        print(f"| after the final norm | {100 * results[None, 'mean'].accuracy:.1f} | {100 * token.accuracy:.1f} |")
        candidates: list[Pair] = [(layer, "mean") for layer in range(1, depth + 1)]
        chosen = candidates[choose_pair([fitted.pairs[pair] for pair in candidates], labels[0], labels[2])]
        middle = round(MIDDLE * depth), "mean"
        ways = {
            "fitted to the mean of masked images, tested on the class token": mixed,
            "class token after the final norm": token,
            f"mean of block {middle[0]} of {depth}, as the paper": results[middle],
            f"mean of a block that validation chose: {chosen[0]}": results[chosen],
        }
        for way, result in ways.items():
            difference, low, high = paired_bootstrap(right(result), right(token))
            gain = "" if result is token else f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            summary.append(f"| {subject.name} | {way} | {100 * result.accuracy:.1f} | {gain} |")
        for way, pair in (("class token after the final norm", None), (f"mean of block {chosen[0]}", chosen)):
            first, second = (part.token if pair is None else part.pairs[pair] for part in (fitted, tested))
            neighbors = knn(first, labels[0], second, labels[1], labels[2])
            summary.append(f"| {subject.name} | 20 nearest neighbors: {way} | {100 * neighbors.accuracy:.1f} | |")
    print("\nDifferences to the class token are on the same test images, with 95 % intervals by a paired bootstrap.\n")
    print("| network | probe | test accuracy, % | difference to the class token |\n| --- | --- | ---: | ---: |")
    print("\n".join(summary))
    print(f"\n{(time.process_time() - started) / 60:.1f} minutes of the CPU")


if __name__ == "__main__":
    main()
