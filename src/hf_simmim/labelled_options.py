"""Options of scripts that say where labelled images come from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data_options import SourceArguments
from .labelled_images import LabelledImages, load_labelled_images


@dataclass
class LabelledSourceArguments(SourceArguments):
    """Where the images and labels come from."""

    train_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder for each class."})
    validation_dir: str | None = field(
        default=None, metadata={"help": "The same of images to evaluate on. Without it a part is held out."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels; found by its type."})


def load_labelled_splits(
    arguments: SourceArguments, label_column: str | None, embedded_data: str | Path, needs_validation: bool = True
) -> tuple[LabelledImages, LabelledImages | None]:
    """Labelled images to train on, and those to evaluate on if they are named.

    Args:
        arguments: Where they are.
        label_column: Column of the labels.
        embedded_data: Data set that is used where none is named; its test split is evaluated on.
        needs_validation: Whether that split is wanted, too.

    Returns:
        Both, with the same classes.

    Raises:
        ValueError, OSError: If they cannot be used; the message says why and what to do.
    """
    arguments.check_source()
    for name in ("validation_dir", "validation_split"):
        value = getattr(arguments, name)
        if value is not None and not arguments.names_images:
            raise ValueError(
                f"{name}={value!r} does nothing without images to train on. Name --train_dir, --dataset_name or"
                " --data_files, too, or leave it out."
            )
    source: dict[str, Any] = {
        "folder": arguments.train_dir,
        "dataset_name": arguments.dataset_name,
        "dataset_config": arguments.dataset_config,
        "data_files": arguments.data_files,
        "image_column": arguments.image_column,
        "label_column": label_column,
    }
    validation_split = arguments.validation_split
    if not arguments.names_images:
        source["dataset_name"] = str(embedded_data)
        if needs_validation:
            validation_split = validation_split or "test"
    train = load_labelled_images(**source, split=arguments.train_split)
    validation = None
    if arguments.validation_dir is not None:
        validation = load_labelled_images(arguments.validation_dir)
    elif validation_split is not None:
        validation = load_labelled_images(**source, split=validation_split)
    return train, None if validation is None else validation.with_classes(train.class_names)
