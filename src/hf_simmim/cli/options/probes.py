"""Options of the probe during pre-training, which evaluates the features with labels."""

import copy
from dataclasses import dataclass, field

from ...data.labeled.images import LabeledImageDataset, LabeledImages, load_labeled_images
from ...data.labeled.splits import holdout, readable_images
from ...data.sampling import evenly_spaced
from ...evaluation.probing import POOLINGS
from ...hub.provenance import ImageSource, evaluation_source, last_part
from ...training.callbacks import ProbeCallback
from ...training.fingerprints import Fingerprint, digest
from ...training.trainers import SimMIMTrainer
from .images import SourceArguments, load_labeled_splits

# Share of the labeled images that the probe is tested on, unless there is a validation split.
PROBE_TEST_SHARE = 0.25


@dataclass
class ProbeArguments(SourceArguments):
    """Source of the images, and labels to evaluate the features with during training."""

    probe_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of labeled images to evaluate the features on, with a subfolder for each class (no probe if"
            " unset). The pre-training loss alone is misleading: it is comparable only between runs with the same masks"
            " and target, and may fall while the features do not improve. The probe measures k-NN and a linear"
            " classifier on frozen features before training and at every evaluation. Labels are never used for"
            " training; the trained weights are the same as without."
        },
    )
    probe_label_column: str | None = field(
        default=None,
        metadata={"help": "Column of the training data set with the classes, instead of --probe_dir."},
    )
    probe_layer: str = field(
        default="auto",
        metadata={
            "help": "Hidden state of the encoder to evaluate, 0 for the patch embedding; last for its output; auto to"
            " choose among both at every evaluation by a fifth of the images that the probe is fitted to, never by"
            " those that it is tested on. The best features are often in the middle: the paper probes the 8th of"
            " ViT-B's 12 layers."
        },
    )
    probe_images: int = field(
        default=2000, metadata={"help": "Largest number of labeled images to fit the probe to, and to test it on."}
    )
    probe_pooling: str = field(
        default="auto",
        metadata={
            "help": "Pooling of an image's features to one vector; auto chooses it like the layer.",
            "choices": ["auto", *POOLINGS],
        },
    )


def probe_layer(name: str) -> int | str | None:
    """Read the option: a number, "auto", or None for the output.

    Args:
        name: Value of `probe_layer`.

    Returns:
        What `ProbeCallback` takes.

    Raises:
        ValueError: If it is none of these.
    """
    if name in ("auto", "last"):
        return None if name == "last" else name
    try:
        return int(name)
    except ValueError as error:
        raise ValueError(f"probe_layer={name!r} is unknown. Use the number of a hidden state, last or auto.") from error


def load_probe(arguments: ProbeArguments) -> list[LabeledImages] | None:
    """Load labeled images to fit the probe to, and to test it on.

    Args:
        arguments: The options.

    Returns:
        Training and test images; None if no labels are named.

    Raises:
        ValueError: If the images cannot be used; the message says why and what to do.
    """
    if arguments.probe_dir is None and arguments.probe_label_column is None:
        return None
    if arguments.probe_dir is not None and arguments.probe_label_column is not None:
        raise ValueError("probe_dir and probe_label_column both name labels. Leave one out.")
    test = None
    if arguments.probe_dir is not None:
        images = load_labeled_images(arguments.probe_dir, slicing=arguments.slicing)
    elif arguments.train_dir is not None:
        raise ValueError(
            f"probe_label_column={arguments.probe_label_column!r} needs a data set; a folder has no columns. Use"
            " --probe_dir, with a subfolder for each class."
        )
    else:
        # The validation images of pre-training need no labels.
        labeled = copy.copy(arguments)
        labeled.validation_dir = None
        images, test = load_labeled_splits(labeled, arguments.probe_label_column)
    if images.problem_type != "single_label_classification":
        raise ValueError("The probe's labels must be one class for each image. Name another column.")
    if test is not None:
        return [images, test]
    # Of few images, one of each class.
    share = min(max(PROBE_TEST_SHARE, len(set(images.labels)) / len(images)), 0.5)
    parts = holdout(images.labels, share, 0, images.class_names, images.groups)
    return [images.select(part) for part in parts]


def probe_fingerprints(images: list[LabeledImages]) -> dict[str, Fingerprint]:
    """Fingerprints of the images of a probe, by which a resumed run notices others.

    Args:
        images: Result of `load_probe`.

    Returns:
        The fingerprints, by what is compared.
    """
    train, test = images
    return {"probe training images": digest(train.rows), "probe test images": digest(test.rows)}


def probe_source(arguments: ProbeArguments) -> ImageSource | None:
    """Source of the labeled images that the probe is tested on.

    Args:
        arguments: The options.

    Returns:
        The source; None if there is no probe.
    """
    if arguments.probe_dir is not None:
        return ImageSource(last_part(arguments.probe_dir), "imagefolder")
    if arguments.probe_label_column is None:
        return None
    labeled = copy.copy(arguments)
    labeled.validation_dir = None
    return evaluation_source(labeled, default_split="test")


def add_probe(trainer: SimMIMTrainer, images: list[LabeledImages], arguments: ProbeArguments) -> None:
    """Add a probe to a trainer, which evaluates the features at every evaluation.

    Args:
        trainer: Trainer of the pre-training.
        images: Result of `load_probe`.
        arguments: The options.

    Raises:
        ValueError: If the run has no validation images, or too many images cannot be read.
    """
    if trainer.eval_dataset is None:
        raise ValueError("The probe needs validation images, and there are none. Use --holdout or --validation_dir.")
    if arguments.probe_images < 1:
        raise ValueError(f"probe_images={arguments.probe_images} must be at least 1.")
    config, processor = trainer.model.config, trainer.processing_class
    # Checked before training, which an unreadable image would end.
    images = [
        readable_images(
            part.select(evenly_spaced(len(part), arguments.probe_images)),
            *(config.num_channels, processor.rescale_factor, processor.nodata, arguments.max_unreadable),
        )
        for part in images
    ]
    train, test = (
        LabeledImageDataset(
            *(part.rows, config.image_size, config.num_channels, processor.image_mean, processor.image_std),
            rescale_factor=processor.rescale_factor,
            nodata=processor.nodata,
            crop_ratio=1,
        )
        for part in images
    )
    num_classes = len(images[0].class_names or ())
    trainer.add_callback(
        ProbeCallback(
            *(trainer, train, test, num_classes, arguments.probe_images),
            layer=probe_layer(str(arguments.probe_layer)),
            pooling=arguments.probe_pooling,
        )
    )
