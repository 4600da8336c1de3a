"""Options of the probe during pre-training: labels that tell what the features are worth."""

import copy
from dataclasses import dataclass, field

from ..data.label_splits import holdout, readable_images
from ..data.labeled_images import LabeledImageDataset, LabeledImages, load_labeled_images
from ..data.sampling import evenly_spaced
from ..evaluation.probing import POOLINGS
from ..hub.provenance import ImageSource, evaluation_source, last_part
from ..training.callbacks import ProbeCallback
from ..training.trainers import SimMIMTrainer
from .image_options import SourceArguments, load_labeled_splits

# Share of the images of --probe_dir, or of a training set without a validation split, that the probe is tested on.
PROBE_TEST_SHARE = 0.25


@dataclass
class ProbeArguments(SourceArguments):
    """Where the images come from, and labels that tell while training what the features are worth."""

    probe_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of labeled images, a sub-folder for each class. The loss of pre-training alone misleads:"
            " it compares only runs of the same masks and target, and may fall while the features get no better. With"
            " labels, nearest neighbors and a linear classifier on the frozen features are measured before training"
            " and at every evaluation. The labels train nothing; the weights are the same as without."
        },
    )
    probe_label_column: str | None = field(
        default=None,
        metadata={"help": "Instead of --probe_dir, the column of the training data set that holds the classes."},
    )
    probe_layer: int | None = field(
        default=None,
        metadata={
            "help": "Hidden state of the encoder that is measured, 0 for the patch embedding; its output if unset. The"
            " best features may lie in the middle: the paper probes the 8th of ViT-B's 12 layers."
        },
    )
    probe_images: int = field(
        default=2000, metadata={"help": "Labeled images to fit to and to test on, so many each at most."}
    )
    probe_pooling: str = field(
        default="mean", metadata={"help": "How an image's features become one vector.", "choices": list(POOLINGS)}
    )


def load_probe(arguments: ProbeArguments) -> list[LabeledImages] | None:
    """Labeled images to fit the probe to and to test it on.

    Args:
        arguments: The options.

    Returns:
        Both; None if no labels are named.

    Raises:
        ValueError: If they cannot be used; the message says why and what to do.
    """
    if arguments.probe_dir is None and arguments.probe_label_column is None:
        return None
    if arguments.probe_dir is not None and arguments.probe_label_column is not None:
        raise ValueError("probe_dir and probe_label_column both name labels. Leave one out.")
    test = None
    if arguments.probe_dir is not None:
        images = load_labeled_images(arguments.probe_dir)
    elif arguments.train_dir is not None:
        raise ValueError(
            f"probe_label_column={arguments.probe_label_column!r} needs a data set: a folder has no columns. Use"
            " --probe_dir, with a sub-folder for each class."
        )
    else:
        # What pre-training is evaluated on need not have labels.
        labeled = copy.copy(arguments)
        labeled.validation_dir = None
        images, test = load_labeled_splits(labeled, arguments.probe_label_column)
    if images.problem_type != "single_label_classification":
        raise ValueError("The probe's labels must be one class for each image. Name another column.")
    if test is not None:
        return [images, test]
    return [images.select(part) for part in holdout(images.labels, PROBE_TEST_SHARE, 0, images.class_names)]


def probe_source(arguments: ProbeArguments) -> ImageSource | None:
    """Where the labeled images come from that the probe is tested on; None if there are none.

    Args:
        arguments: The options.
    """
    if arguments.probe_dir is not None:
        return ImageSource(last_part(arguments.probe_dir), "imagefolder")
    if arguments.probe_label_column is None:
        return None
    labeled = copy.copy(arguments)
    labeled.validation_dir = None
    return evaluation_source(labeled, default_split="test")


def add_probe(trainer: SimMIMTrainer, images: list[LabeledImages], arguments: ProbeArguments) -> None:
    """Measure the features at every evaluation.

    Args:
        trainer: Of the pre-training.
        images: What `load_probe` returned.
        arguments: The options.

    Raises:
        ValueError: If the run has no evaluations, or too many images cannot be read.
    """
    if trainer.eval_dataset is None:
        raise ValueError("The probe is measured at evaluations, and there are none. Use --holdout or --validation_dir.")
    if arguments.probe_images < 1:
        raise ValueError(f"probe_images={arguments.probe_images} must be at least 1.")
    config, processor = trainer.model.config, trainer.processing_class
    # Before training, which one that cannot be read would end.
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
            layer=arguments.probe_layer,
            pooling=arguments.probe_pooling,
        )
    )
