"""Convert a .pth file of microsoft/SimMIM, microsoft/Swin-Transformer or mmpretrain into a checkpoint of this package.

    hf-simmim convert simmim_pretrain__swin_base__img192_window6__800ep.pth swin-base
    hf-simmim convert swin_base_patch4_window7_224.pth swin-base-224 --image_size 224

Swin, SwinV2 and the authors' ViT; pre-trained with SimMIM, fine-tuned, or trained with labels. No code in the file is
run. What became of everything in it is printed, and written into the model card.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ..checkpoints.convert import Conversion, check_output_dir, convert_checkpoint, save_conversion
from .command import Command, in_words, print_titled
from .recipes import CommandError


@dataclass
class ConvertArguments:
    """What is converted, and where to."""

    _argument_group_name = "conversion"

    path: str = field(metadata={"help": "The .pth file; may be given without --path, first."})
    output_dir: str = field(metadata={"help": "Folder to write the checkpoint to; without --output_dir, second."})
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Side in pixels of the images that the file was trained on, or height and width. Needed if the file"
            " does not tell."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})

    def __post_init__(self):
        size = self.image_size
        if size is not None and (len(size) > 2 or min(size) < 1):
            raise ValueError(f"image_size={size} is invalid. Give one side, or height and width.")


@dataclass(frozen=True)
class ConversionResult:
    """A converted checkpoint.

    Args:
        conversion: The model, its processor, and what became of everything in the file.
        output_dir: Folder of the checkpoint.
    """

    conversion: Conversion
    output_dir: Path


def run(arguments: ConvertArguments) -> ConversionResult:
    """Convert, write, and say what became of everything in the file."""
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
        conversion.report | {"Written to": f"{arguments.output_dir}; loaded back, a forward is the same bit for bit"}
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
