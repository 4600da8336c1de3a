"""Export a checkpoint to ONNX, and to a program of torch.export, that run without this package.

    hf-simmim export --checkpoint runs/demo --output_dir exported
    hf-simmim export --checkpoint runs/classifier --output_dir exported --image_size 224 --format both

A fine-tuned classifier is exported with its logits as output, everything else with its features: tokens, their mean,
and the feature map. What is written is read back and compared with the model on random batches; an export that does
not compute the same is not kept. Beside it lie the image processor with its code, and the config, with the names of
the classes.
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
    """What is exported, and how."""

    _argument_group_name = "export"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "A SimMIM checkpoint, or that of a vision model of transformers: folder or name on the Hub."},
    )
    output_dir: str = field(default="runs/export", metadata={"help": "Folder to write to."})
    format: str = field(default="onnx", metadata={"help": "What to write.", "choices": list(FORMATS)})
    task: str | None = field(
        default=None,
        metadata={
            "help": "What is computed: classification for a fine-tuned classifier and features for everything else, if"
            " unset. reconstruction takes a mask, too.",
            "choices": list(TASKS),
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels, or height and width. The checkpoint's own if unset."},
    )
    dynamic_batch: bool = field(
        default=True, metadata={"help": "Whether batches of any size are taken, else one image at a time."}
    )
    dynamic_size: bool = field(
        default=False,
        metadata={
            "help": "Whether images of any height and width are taken that are multiples of the encoder's stride."
            " Convolutional networks can."
        },
    )
    opset: int | None = field(default=None, metadata={"help": "Version of ONNX's operators. torch's own if unset."})
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})

    def __post_init__(self):
        if self.checkpoint is None:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a training.")
        size = self.image_size
        if size is not None and (len(size) > 2 or min(size) < 1):
            raise ValueError(f"image_size={size} is no size. Give one side, or height and width.")
        if Path(self.output_dir).resolve() == Path(self.checkpoint).resolve():
            raise ValueError(f"output_dir={self.output_dir!r} is the checkpoint, which stays as it is. Name another.")


def load_processor(checkpoint: str, program: ExportProgram) -> Any:
    """The checkpoint's image processor, for images of the program's size; None if there is none."""
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
            f"The image processor of {checkpoint} makes images of {made[0]}x{made[1]} px, and the program takes"
            f" {height}x{width}. Use --image_size {made[0]} {made[1]}, or save another processor beside the model."
        )
    return processor


def describe(shapes: dict[str, tuple[str | int, ...]]) -> str:
    """Names and shapes in a line."""
    return ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items())


def print_report(
    files: list[ExportedFile], program: ExportProgram, arguments: ExportArguments, has_processor: bool
) -> None:
    """What was written, what was checked, and how it is run."""
    config = program.model.config
    parameters = sum(parameter.numel() for parameter in program.model.parameters())
    print(f"{type(program.model).__name__}, {config.encoder_config.model_type}: {parameters:,} parameters")
    print(f"inputs   {describe(files[0].inputs)}\noutputs  {describe(files[0].outputs)}")
    if arguments.dynamic_size:
        stride = config.encoder_stride
        print(f"         height and width are multiples of {stride} px, from {2 * stride} on, in h and w steps")
    for file in files:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in file.differences.items())
        batches = " and ".join(map(str, file.batch_sizes))
        print(f"{file.path}  {file.num_bytes / 1e6:.1f} MB")
        traced = TRACED_BATCH if arguments.dynamic_batch else 1
        sizes = ", ".join(f"{height}x{width}" for height, width in file.image_sizes)
        print(
            f"  checked on random images of {sizes} px in batches of {batches}, traced with {traced}: largest"
            f" difference from the model, as a share of its largest output: {differences}; {TOLERANCE:.0e} is allowed"
        )
    if has_processor:
        options = "do_mask=True, " if program.task.takes_mask else ""
        outputs = ", ".join(program.output_names) + ("," if len(program.output_names) == 1 else "")
        for name in FORMATS[arguments.format]:
            print(f"\n{RUN[name].format(folder=arguments.output_dir, options=options, outputs=outputs)}")


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Args:
        files: The programs, with what was checked of each.
        output_dir: Folder of everything.
    """

    files: list[ExportedFile]
    output_dir: Path


def export_all(arguments: ExportArguments) -> ExportResult:
    """Export, and say what was written."""
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
