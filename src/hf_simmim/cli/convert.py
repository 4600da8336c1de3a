"""Convert a .pth file of microsoft/SimMIM, microsoft/Swin-Transformer or mmpretrain into a checkpoint of this package.

    python examples/convert_checkpoint.py simmim_pretrain__swin_base__img192_window6__800ep.pth swin-base
    python examples/convert_checkpoint.py swin_base_patch4_window7_224.pth swin-base-224 --image_size 224

Swin, SwinV2 and the authors' ViT; pre-trained with SimMIM, fine-tuned, or trained with labels. Nothing in the file is
run. What became of everything in it is printed, and written into the model card.
"""

import argparse
import sys

from transformers.utils import logging

from hf_simmim.checkpoints.convert import check_output_dir, convert_checkpoint, save_conversion


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="The .pth file.")
    parser.add_argument("output_dir", help="Folder to write the checkpoint to.")
    parser.add_argument(
        "--image_size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="Side of the images that the file was trained on, or height and width. Needed if the file does not tell.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Write into a folder that is not empty.")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the conversion."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.disable_progress_bar()
    size = arguments.image_size
    try:
        if size is not None and (len(size) > 2 or min(size) < 1):
            raise ValueError(f"--image_size {' '.join(map(str, size))} is no size. Give one side, or height and width.")
        check_output_dir(arguments.output_dir, arguments.overwrite)
        conversion = convert_checkpoint(arguments.path, None if size is None else (size[0], size[-1]))
        save_conversion(conversion, arguments.output_dir, arguments.overwrite)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    width = max(len(title) for title in conversion.report)
    for title, text in conversion.report.items():
        print(f"{title:<{width}}  {text}")
    print(f"{'Written to':<{width}}  {arguments.output_dir}; loaded back, a forward is the same bit for bit")


if __name__ == "__main__":
    main()
