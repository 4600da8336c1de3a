"""Run a skipped step of a training again, image by image, and tell what was not finite, and where.

    hf-simmim replay runs/photos/skipped_steps/step-0000123
    hf-simmim replay runs/photos/skipped_steps/step-0000123 --checkpoint runs/photos/checkpoint-100

A training skips steps whose loss or gradient is not finite, and writes their batches to `skipped_steps` in its folder;
with the first one the weights of that moment. Each image is run alone, in float32 and in the precision of the training:
its range of pixels, its loss, the norm of its gradient, and the first layer whose output is not finite.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import logging

from ..data.transforms import normalize
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.modeling_simmim import SimMIMForMaskedImageModeling
from ..training.run_folder import settings_before
from ..training.saving.checkpoints import newest_whole_checkpoint
from .command import Command, in_words

logger = logging.get_logger(__name__)

DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
RESULTS_FILE = "replay.json"
# Images that are printed.
MAX_SHOWN = 20


@dataclass
class ReplayArguments:
    """Options of a replay."""

    _argument_group_name = "replay"

    file: str | None = field(
        default=None, metadata={"help": "Folder of a skipped step, or one of its batches (.safetensors)."}
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Weights (those beside the batches if unset, or else the newest checkpoint of the run before the"
            " step)."
        },
    )

    precision: str | None = field(
        default=None,
        metadata={
            "help": "Precision beside float32 (that of the training if unset).",
            "choices": ["float32", "bf16", "fp16"],
        },
    )
    device: str | None = field(default=None, metadata={"help": "Device to compute on (a GPU if there is one)."})

    def __post_init__(self):
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.file is None:
            raise ValueError(
                "No step is named. Give the folder of a skipped step, such as runs/x/skipped_steps/step-7."
            )


@dataclass(frozen=True)
class Replayed:
    """An image of a skipped step, run alone.

    Args:
        name: Name of the image.
        low: Smallest normalized pixel value.
        high: Largest normalized pixel value.
        losses: Loss by precision.
        gradients: Norm of the gradient by precision.
        layers: The first layer whose output is not finite, by precision; absent if all are.
    """

    name: str
    low: float
    high: float
    losses: dict[str, float]
    gradients: dict[str, float]
    layers: dict[str, str]

    def is_finite(self, precision: str) -> bool:
        """Whether loss and gradient are finite in a precision."""
        values = torch.tensor([self.losses[precision], self.gradients[precision]])
        return bool(values.isfinite().all())


@dataclass(frozen=True)
class ReplayResult:
    """Result of a replay.

    Args:
        images: The images of the step.
        conclusion: What was not finite, and what to do, in words.
        weights: Where the weights are from.
    """

    images: list[Replayed]
    conclusion: str
    weights: str


def find_batches(path: Path) -> list[Path]:
    """Files of the batches of a step.

    Args:
        path: Folder of a skipped step, or one of its batches.

    Returns:
        The files.

    Raises:
        ValueError: If there are none.
    """
    files = [path] if path.is_file() else sorted(path.glob("batch-*.safetensors"))
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ValueError(
            f"{path} holds no batches of a skipped step. Name a folder that a training wrote, such as"
            " runs/x/skipped_steps/step-0000123."
        )
    return files


def find_weights(folder: Path, checkpoint: str | None, step: int) -> str:
    """Folder or name of the weights to run.

    Args:
        folder: Folder of the skipped step.
        checkpoint: What a user named, or None.
        step: The step.

    Returns:
        That of the user; those of the step; those of an earlier skipped step; or the newest checkpoint before it.

    Raises:
        ValueError: If there are none.
    """
    if checkpoint is not None:
        return checkpoint
    nearest = sorted(other for other in folder.parent.glob("step-*") if (other / "model.safetensors").exists())
    before = [other for other in nearest if other.name <= folder.name]
    if before:
        return str(before[-1])
    newest = newest_whole_checkpoint(folder.parents[1])
    if newest is None:
        raise ValueError(f"There are no weights of a step up to {step}. Name some with --checkpoint.")
    return str(newest)


@contextlib.contextmanager
def first_not_finite(model: torch.nn.Module) -> Iterator[list[str]]:
    """Collect the names of layers whose output is not finite, in the order in which they end."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: Any, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else [output]
            if any(torch.is_tensor(value) and not value.isfinite().all() for value in tensors):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def run_alone(
    model: Any, inputs: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> tuple[float, float, str | None]:
    """Loss, norm of the gradient, and the first layer that is not finite, of a batch of one image."""
    model.zero_grad()
    torch.manual_seed(0)
    device = next(model.parameters()).device.type
    autocast = contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)
    with first_not_finite(model) as found, autocast:
        loss = model(**inputs).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), float(torch.nn.utils.get_total_norm(gradients)), found[0] if found else None


def conclude(images: list[Replayed], precision: str) -> str:
    """Say in words what was not finite.

    Args:
        images: The images.
        precision: That of the training.

    Returns:
        One or two sentences.
    """
    broken = [image for image in images if not image.is_finite("float32")]
    if broken:
        first = broken[0]
        place = f", first in {first.layers['float32']}" if "float32" in first.layers else ""
        return (
            f"{len(broken)} of {len(images)} images are not finite in float32, such as {first.name}, whose normalized"
            f" pixels reach {max(abs(first.low), abs(first.high)):.3g}{place}. Look at the files; leave them out with"
            " --leave_out, or set --nodata or --rescale_factor."
        )
    broken = [image for image in images if not image.is_finite(precision)]
    if broken:
        first = broken[0]
        place = f" (first in {first.layers[precision]})" if precision in first.layers else ""
        remedy = "--bf16" if precision == "fp16" else "without --bf16"
        return (
            f"{len(broken)} of {len(images)} images are finite in float32, and not in {precision}, such as"
            f" {first.name}{place}. Train {remedy}."
        )
    return (
        f"All {len(images)} images have a finite loss and gradient alone with these weights, in float32 and"
        f" {precision}. The weights at that step were others, or the device computed something else: repeat it there,"
        " or train with a lower --learning_rate."
    )


def replay(arguments: ReplayArguments) -> ReplayResult:
    """Run the images of the step one by one."""
    files = find_batches(Path(str(arguments.file)))
    folder = files[0].parent
    with safe_open(files[0], "pt") as file:
        step = int((file.metadata() or {}).get("step", -1))
    weights = find_weights(folder, arguments.checkpoint, step)
    model = SimMIMForMaskedImageModeling.from_pretrained(weights, dtype=torch.float32).train().to(str(arguments.device))
    processor = SimMIMImageProcessor.from_pretrained(weights)
    precision = arguments.precision or settings_before(folder.parents[1]).get("precision", "float32")
    images = []
    for path in files:
        with safe_open(path, "pt") as file:
            batch = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            names = [name for name in (file.metadata() or {}).get("names", "").split("\n") if name]
        for index in range(len(batch["pixel_values"])):
            inputs = {key: value[index : index + 1].to(str(arguments.device)) for key, value in batch.items()}
            inputs["pixel_values"] = normalize(
                inputs["pixel_values"], processor.image_mean, processor.image_std, processor.rescale_factor
            )
            found = {name: run_alone(model, inputs, DTYPES[name]) for name in dict.fromkeys(("float32", precision))}
            images.append(
                Replayed(
                    names[index] if index < len(names) else f"{path.name} row {index}",
                    inputs["pixel_values"].min().item(),
                    inputs["pixel_values"].max().item(),
                    {name: values[0] for name, values in found.items()},
                    {name: values[1] for name, values in found.items()},
                    {name: values[2] for name, values in found.items() if values[2] is not None},
                )
            )
    return ReplayResult(images, conclude(images, precision), weights)


def print_images(images: list[Replayed]) -> None:
    """Print the images that are not finite, and those of the largest loss."""
    precisions = list(images[0].losses)
    order = sorted(images, key=lambda image: (all(map(image.is_finite, precisions)), -image.losses["float32"]))
    for image in order[:MAX_SHOWN]:
        parts = [
            f"{name}: loss {image.losses[name]:.4g}, gradient {image.gradients[name]:.4g}"
            + (f", not finite from {image.layers[name]}" if name in image.layers else "")
            for name in precisions
        ]
        print(f"{image.name}  pixels {image.low:.3g} to {image.high:.3g}; {'; '.join(parts)}")
    if len(order) > MAX_SHOWN:
        print(f"and {len(order) - MAX_SHOWN} others with smaller losses")


def run(arguments: ReplayArguments) -> ReplayResult:
    """Run the step again, print and write what was found."""
    logging.disable_progress_bar()
    with in_words(arguments.checkpoint):
        result = replay(arguments)
        print_images(result.images)
        path = Path(str(arguments.file))
        path = (path if path.is_dir() else path.parent) / RESULTS_FILE
        path.write_text(json.dumps(asdict(result), indent=2), encoding="utf-8")
    print(f"Weights of {result.weights}. {result.conclusion}\n{path}  these figures")
    return result


COMMAND = Command(
    name="replay",
    usage="FOLDER [--checkpoint NAME]",
    description=__doc__,
    kinds=(ReplayArguments,),
    run=run,
    common=("file", "checkpoint", "precision", "device"),
    positional=("file",),
)
