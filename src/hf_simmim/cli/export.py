"""Export a checkpoint to ONNX or torch.export programs that run without this package.

    hf-simmim export --checkpoint runs/demo --output_dir exported
    hf-simmim export --checkpoint runs/classifier --output_dir exported --image_size 224 --format both

The output of a fine-tuned classifier is its logits, that of other models their features: tokens, their mean, and the
feature map. The written files are read back and compared with the model on random batches; an export that does not
compute the same is deleted. The image processor with its code and the config with the class names are saved next to it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import logging

from ..checkpoints.convert import check_output_dir
from ..checkpoints.export import (
    TASKS,
    TOLERANCE,
    TRACED_BATCH,
    ExportedFile,
    ExportProgram,
    check_packages,
    export_program,
    load_program,
)
from ..model.image_processing_simmim import SimMIMImageProcessor
from .command import Command, in_words

logger = logging.get_logger(__name__)

FORMATS = {"onnx": ("onnx",), "torch": ("torch",), "both": ("onnx", "torch")}
RUN = {
    "onnx": """\
import hf_simmim, onnxruntime  # where the package is not installed, from_pretrained(..., trust_remote_code=True)
from transformers import AutoImageProcessor

inputs = AutoImageProcessor.from_pretrained("{folder}")("photo.jpg", {options}return_tensors="np")
{outputs} = onnxruntime.InferenceSession("{folder}/model.onnx").run(None, dict(inputs))""",
    "torch": """\
import hf_simmim, torch  # where the package is not installed, from_pretrained(..., trust_remote_code=True)
from transformers import AutoImageProcessor

inputs = AutoImageProcessor.from_pretrained("{folder}")("photo.jpg", {options}return_tensors="pt")
{outputs} = torch.export.load("{folder}/model.pt2").module()(*inputs.values())""",
}


@dataclass
class ExportArguments:
    """Options of the export."""

    _argument_group_name = "export"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "SimMIM checkpoint or vision model of transformers: folder or name on the Hub."},
    )
    output_dir: str = field(default="runs/export", metadata={"help": "Folder to write to."})
    format: str = field(default="onnx", metadata={"help": "Format: onnx, torch or both.", "choices": list(FORMATS)})
    task: str | None = field(
        default=None,
        metadata={
            "help": "Output of the program (if unset, classification for a fine-tuned classifier, else features)."
            " Programs for reconstruction also take a mask.",
            "choices": list(TASKS),
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Image size in pixels: one side, or height and width (the checkpoint's if unset)."},
    )
    dynamic_batch: bool = field(
        default=True, metadata={"help": "Accept batches of any size (the default), not one image at a time."}
    )
    dynamic_size: bool = field(
        default=False,
        metadata={
            "help": "Accept images of any height and width that are multiples of the encoder's stride. Only"
            " convolutional networks support it."
        },
    )
    opset: int | None = field(default=None, metadata={"help": "Version of ONNX operators (torch's default if unset)."})
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty, replacing files."})

    def __post_init__(self):
        if self.checkpoint is None:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a training.")
        size = self.image_size
        if size is not None and (len(size) > 2 or min(size) < 1):
            raise ValueError(f"image_size={size} is invalid. Give one side, or height and width.")
        if Path(self.output_dir).resolve() == Path(self.checkpoint).resolve():
            raise ValueError(f"output_dir={self.output_dir!r} is the checkpoint, which must not change. Name another.")


def load_processor(checkpoint: str, program: ExportProgram) -> Any:
    """Load the checkpoint's image processor for the program's image size; None if there is none."""
    height, width = program.image_size
    try:
        stored, _ = SimMIMImageProcessor.get_image_processor_dict(checkpoint)
    except OSError:
        logger.warning(f"{checkpoint} has no image processor, so none is written.")
        return None
    size = stored.get("size")
    change = {"size": {"height": height, "width": width}} if isinstance(size, dict) and "height" in size else {}
    processor = AutoImageProcessor.from_pretrained(checkpoint, **change)
    black = torch.zeros(program.model.config.num_channels, 2 * height, 2 * width, dtype=torch.uint8)
    made = tuple(processor(black, input_data_format="channels_first", return_tensors="pt")["pixel_values"].shape[-2:])
    if made != program.image_size:
        raise ValueError(
            f"The image processor of {checkpoint} gives images of {made[0]}x{made[1]} px, but the program takes"
            f" {height}x{width}. Use --image_size {made[0]} {made[1]}, or save another processor next to the model."
        )
    return processor


def describe(shapes: dict[str, tuple[str | int, ...]]) -> str:
    """Format names and shapes in one line."""
    return ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items())


def print_report(
    files: list[ExportedFile], program: ExportProgram, arguments: ExportArguments, has_processor: bool
) -> None:
    """Print what was written, what was checked, and how to run it."""
    config = program.model.config
    parameters = sum(parameter.numel() for parameter in program.model.parameters())
    print(f"{type(program.model).__name__}, {config.encoder_config.model_type}: {parameters:,} parameters")
    print(f"inputs   {describe(files[0].inputs)}\noutputs  {describe(files[0].outputs)}")
    if arguments.dynamic_size:
        stride = config.encoder_stride
        print(f"         height and width are multiples of {stride} px, at least {2 * stride}; h and w count strides")
    for file in files:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in file.differences.items())
        batches = " and ".join(map(str, file.batch_sizes))
        print(f"{file.path}  {file.num_bytes / 1e6:.1f} MB")
        traced = TRACED_BATCH if arguments.dynamic_batch else 1
        sizes = ", ".join(f"{height}x{width}" for height, width in file.image_sizes)
        print(
            f"  verified on random images of {sizes} px in batches of {batches}, traced with {traced}: largest"
            f" difference from the model, relative to its largest output: {differences} (tolerance {TOLERANCE:.0e})"
        )
    if has_processor:
        options = "do_mask=True, " if program.task.takes_mask else ""
        outputs = ", ".join(program.output_names) + ("," if len(program.output_names) == 1 else "")
        for name in FORMATS[arguments.format]:
            print(f"\n{RUN[name].format(folder=arguments.output_dir, options=options, outputs=outputs)}")


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Args:
        files: The programs, with the results of their verification.
        output_dir: Folder of the programs, config and image processor.
    """

    files: list[ExportedFile]
    output_dir: Path


def export_all(arguments: ExportArguments) -> ExportResult:
    """Export the checkpoint, and print a report."""
    formats = FORMATS[arguments.format]
    checkpoint, size = str(arguments.checkpoint), arguments.image_size
    check_packages(formats)
    check_output_dir(arguments.output_dir, arguments.overwrite)
    program = load_program(checkpoint, arguments.task, None if size is None else (size[0], size[-1]))
    processor = load_processor(checkpoint, program)
    files = export_program(
        program, arguments.output_dir, formats, arguments.dynamic_batch, arguments.dynamic_size, arguments.opset
    )
    config = program.model.config
    config.architectures = [type(program.model).__name__]
    config.save_pretrained(arguments.output_dir)
    if processor is not None:
        processor.save_pretrained(arguments.output_dir)
    print_report(files, program, arguments, processor is not None)
    return ExportResult(files, Path(arguments.output_dir))


def run(arguments: ExportArguments) -> ExportResult:
    """Export the checkpoint."""
    logging.disable_progress_bar()
    with in_words(arguments.checkpoint):
        return export_all(arguments)


COMMAND = Command(
    name="export",
    usage="--checkpoint NAME --output_dir FOLDER [options]",
    description=__doc__,
    kinds=(ExportArguments,),
    run=run,
    common=(
        *("checkpoint", "output_dir", "format", "task", "image_size", "dynamic_batch", "dynamic_size", "opset"),
        "overwrite",
    ),
)
