"""Convert a .pth file of microsoft/SimMIM, microsoft/Swin-Transformer or mmpretrain into a checkpoint of this package.

    hf-simmim convert simmim_pretrain__swin_base__img192_window6__800ep.pth swin-base
    hf-simmim convert swin_base_patch4_window7_224.pth swin-base-224 --image_size 224

Swin, SwinV2 and the authors' ViT; pre-trained with SimMIM, fine-tuned, or trained with labels. No code in the file is
run. A report on every part of the file is printed, and written into the model card.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ..checkpoints.convert import Conversion, check_output_dir, convert_checkpoint, save_conversion
from .command import Command, in_words, print_titled
from .recipes import CommandError


@dataclass
class ConvertArguments:
    """Options of the conversion."""

    _argument_group_name = "conversion"

    path: str = field(metadata={"help": "The .pth file; --path may be left out if first."})
    output_dir: str = field(metadata={"help": "Folder to write to; --output_dir may be left out if second."})
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Image size of the file in pixels: one side, or height and width (read from the file if unset)."
            " It is required if the file does not state it."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty, replacing files."})

    def __post_init__(self):
        size = self.image_size
        if size is not None and (len(size) > 2 or min(size) < 1):
            raise ValueError(f"image_size={size} is invalid. Give one side, or height and width.")


@dataclass(frozen=True)
class ConversionResult:
    """A converted checkpoint.

    Args:
        conversion: The model, its processor, and the report on the file.
        output_dir: Folder of the checkpoint.
    """

    conversion: Conversion
    output_dir: Path


def run(arguments: ConvertArguments) -> ConversionResult:
    """Convert the file, write the checkpoint, and print the report."""
    logging.disable_progress_bar()
    size = arguments.image_size
    try:
        with in_words(arguments.path):
            check_output_dir(arguments.output_dir, arguments.overwrite)
            conversion = convert_checkpoint(arguments.path, None if size is None else (size[0], size[-1]))
            save_conversion(conversion, arguments.output_dir, arguments.overwrite)
    except RuntimeError as error:
        raise CommandError(str(error)) from error
    print_titled(
        conversion.report | {"Written to": f"{arguments.output_dir}; verified to compute the same, bit for bit"}
    )
    return ConversionResult(conversion, Path(arguments.output_dir))


COMMAND = Command(
    name="convert",
    usage="FILE FOLDER [--image_size PIXELS [PIXELS]] [--overwrite]",
    description=__doc__,
    kinds=(ConvertArguments,),
    run=run,
    common=("path", "output_dir", "image_size", "overwrite"),
    positional=("path", "output_dir"),
)
