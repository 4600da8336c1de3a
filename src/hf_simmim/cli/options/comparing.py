"""Options of `compare`: the arms, the images, and what is trained."""

import itertools
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...evaluation.comparing.metric import METRIC_NAMES
from ...training.arguments import json_object
from .images import LabeledSourceArguments
from .slices import SliceArguments

TASKS = ("classification", "segmentation")
# Name of each arm in results and folders, by its name on the command line.
ARM_NAMES = {"pretrained": "pre-trained", "scratch": "from scratch", "public": "public", "continued": "continued"}

# Recipe of finetune for all arms, if none is named: that of the paper takes too few steps on few labels.
FEW_LABELS = "few_labels"
# Of segmentations, unless options say otherwise.
FEW_EPOCHS, FEW_BATCH = 100.0, 8

SLICE_OPTIONS = tuple(option.name for option in fields(SliceArguments))
_LABELED = (
    *("train_dir", "validation_dir", "dataset_name", "dataset_config", "data_files", "train_split"),
    *("validation_split", "image_column", "label_column", "holdout", "holdout_seed", "max_train_samples"),
    *("max_eval_samples", "max_unreadable", *SLICE_OPTIONS),
)


@dataclass
class CompareArguments(LabeledSourceArguments):
    """Options of the comparison."""

    _argument_group_name = "comparison"

    task: str = field(
        default="classification",
        metadata={
            "help": "What the labels are: classification (of images, also several labels, or numbers), or segmentation:"
            " --train_dir then has images and masks, as for segment, and so do the others.",
            "choices": list(TASKS),
        },
    )
    arms: list[str] | None = field(
        default=None,
        metadata={
            "help": "Models to compare, two or more: scratch (random weights), public (--public as it is), pretrained"
            " (on these images) and continued (--public, pre-trained further on these images). If unset, pretrained and"
            " scratch, and those that --public and --continued name.",
            "choices": list(ARM_NAMES),
        },
    )
    public: str | None = field(
        default=None,
        metadata={"help": "Public weights: a folder, or a name on the Hub, of a vision model of transformers or timm."},
    )
    continued: str | None = field(
        default=None,
        metadata={"help": "Model that was pre-trained further from public weights, instead of doing so here."},
    )
    scratch_like: str | None = field(
        default=None,
        metadata={
            "help": "Arm whose architecture the arm scratch has (pretrained, or public if there is none).",
            "choices": ["pretrained", "public", "continued"],
        },
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "Metric that decides, and chooses among learning rates. If unset: accuracy; balanced_accuracy if"
            " the largest class of the test set has more than three times the images of the smallest;"
            " average_precision for several labels per image; mean_iou for segmentation; r2 for numbers.",
            "choices": list(METRIC_NAMES),
        },
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of the test set, with the same subfolders (--holdout if unset)."}
    )
    holdout: float = field(
        default=0.2, metadata={"help": "Share of the images (0 to 1) held out as test set if none is named."}
    )
    unlabeled_dir: str | None = field(
        default=None, metadata={"help": "Folder of images to pre-train on (the labeled training images if unset)."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Pre-trained model to evaluate, instead of pre-training one here."}
    )
    labels_per_class: list[int] = field(
        default_factory=lambda: [10, 50],
        metadata={"help": "Label budgets: labeled images per class, of segmentation in all; 0 for all."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={"help": "Random seeds of labeled images, head and batches: one run of each model per seed."},
    )
    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Learning rates to choose from by cross-validation (the recipe's if unset)."}
    )
    layer_decays: list[float] | None = field(
        default=None, metadata={"help": "Layer-wise decays to choose from by cross-validation (the recipe's if unset)."}
    )
    tuning_folds: int = field(
        default=5, metadata={"help": "Folds of the cross-validation, on the labeled images of the first seed."}
    )
    pretrain_seeds: list[int] | None = field(
        default=None,
        metadata={"help": "Random seeds of pre-training, one pre-training each (a single one if unset)."},
    )
    pretrain_recipe: str | None = field(
        default=None, metadata={"help": "Recipe of pretrain: a name or a JSON file (its defaults if unset)."}
    )
    pretrain_options: dict | str | None = field(
        default=None,
        metadata={"help": 'Further options of pretrain, as JSON, such as {"num_train_epochs": 100}.'},
    )
    continued_options: dict | str | None = field(
        default=None, metadata={"help": "Options of pretrain for the arm continued, on top of those, as JSON."}
    )
    finetune_recipe: str | None = field(
        default=None,
        metadata={
            "help": "Recipe of finetune or segment: a name or a JSON file (few_labels, or 100 epochs, if unset)."
        },
    )
    finetune_options: dict | str | None = field(
        default=None, metadata={"help": "Further options of finetune or segment, as JSON."}
    )
    output_dir: str = field(default="runs/comparison", metadata={"help": "Folder of all runs, results and the plot."})

    def __post_init__(self):
        self.pretrain_options = json_object("pretrain_options", self.pretrain_options)
        self.finetune_options = json_object("finetune_options", self.finetune_options)
        if min(self.labels_per_class) < 0 or len(set(self.labels_per_class)) < len(self.labels_per_class):
            raise ValueError(f"labels_per_class={self.labels_per_class} must be different numbers, 0 for all labels.")
        if self.task == "segmentation" and (self.learning_rates or self.layer_decays):
            raise ValueError(
                "task='segmentation' has no cross-validation. Leave out --learning_rates and --layer_decays, and set a"
                ' rate in --finetune_options, such as {"learning_rate": 1e-4}.'
            )
        if self.task == "segmentation" and 1 in self.labels_per_class:
            raise ValueError(
                f"labels_per_class={self.labels_per_class}: the decoder normalizes by the images of a batch, so one"
                " annotated image is too few. Use 2 or more."
            )
        if self.task == "segmentation" and self.label_column is not None:
            raise ValueError(
                f"label_column={self.label_column!r}: the column of masks is named in --finetune_options, such as"
                ' {"annotation_column": "mask"}.'
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} contains duplicates. Give each seed once.")
        self.continued_options = json_object("continued_options", self.continued_options)
        self._check_arms()
        if (
            self.checkpoint
            and not self.pretrains("continued")
            and (self.unlabeled_dir or self.pretrain_recipe or self.pretrain_options or self.pretrain_seeds)
        ):
            raise ValueError(
                f"checkpoint={self.checkpoint!r} is pre-trained already. Leave out --unlabeled_dir,"
                " --pretrain_recipe, --pretrain_options and --pretrain_seeds."
            )
        # Checked before pre-training; the runs would refuse them only afterwards.
        if not all(0 < decay <= 1 for decay in self.layer_decays or ()):
            raise ValueError(f"layer_decays={self.layer_decays} must be in (0, 1], 1 for none.")
        if not all(rate > 0 for rate in self.learning_rates or ()):
            raise ValueError(f"learning_rates={self.learning_rates} must be more than 0.")
        own = {
            "seeds",
            "seed",
            "labels_per_class",
            "num_train_images",
            "num_folds",
            "checkpoint",
            "from_scratch",
            "output_dir",
            *_LABELED,
        }
        for name, value in (self.finetune_options or {}).items():
            if name in own:
                raise ValueError(
                    f"finetune_options has {name!r}, which compare sets itself. Leave it out; compare has options of"
                    " its own for images and seeds."
                )
            if name == "eval_strategy" and value != "no":
                raise ValueError(
                    f"finetune_options has eval_strategy={value!r}, but the test set is used only once, at the end."
                    " Leave it out."
                )

    def _check_arms(self) -> None:
        """Refuse arms without weights, and weights without an arm."""
        arms = self.arms or []
        if self.arms is not None and (len(arms) < 2 or len(set(arms)) < len(arms)):
            raise ValueError(f"arms={arms} must be two or more different ones of: {', '.join(ARM_NAMES)}.")
        if "public" in arms and not self.public:
            raise ValueError(f"arms={arms} has public, but no weights are named. Set --public to a folder or a name.")
        if "continued" in arms and not (self.public or self.continued):
            raise ValueError(f"arms={arms} has continued. Set --public to the weights to start from, or --continued.")
        named = {"public": self.public, "continued": self.continued, "pretrained": self.checkpoint}
        for arm, value in named.items():
            is_used = arm in self.arm_keys or (arm == "public" and "continued" in arms)
            if value and not is_used:
                option = "checkpoint" if arm == "pretrained" else arm
                raise ValueError(
                    f"{option}={value!r} is of no arm in arms={arms}. Add {arm} to --arms, or leave it out."
                )
        if self.scratch_like and self.scratch_like not in self.arm_keys:
            raise ValueError(f"scratch_like={self.scratch_like!r} is not one of the arms: {', '.join(self.arm_keys)}.")
        seeds = self.pretrain_seeds or []
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"pretrain_seeds={seeds} contains duplicates. Give each seed once.")
        for name in ("pretrain_options", "continued_options"):
            if seeds and "seed" in (getattr(self, name) or {}):
                raise ValueError(f"{name} has 'seed', and pretrain_seeds={seeds}. Leave one out.")
        if not self.pretrains("continued") and self.continued_options:
            raise ValueError("continued_options has no effect: nothing is pre-trained from --public. Leave it out.")
        ours = any(map(self.pretrains, ("pretrained", "continued")))
        if not (ours or self.checkpoint):
            for name in ("unlabeled_dir", "pretrain_recipe", "pretrain_options", "pretrain_seeds"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)!r} has no effect: no arm is pre-trained here.")

    @property
    def arm_keys(self) -> list[str]:
        """The arms, by their names on the command line, in the order in which they run."""
        if self.arms is not None:
            return [name for name in ARM_NAMES if name in self.arms]
        extra = {"public": self.public, "continued": self.continued}
        return ["pretrained", "scratch", *(name for name, value in extra.items() if value)]

    @property
    def arm_names(self) -> list[str]:
        """The arms, by their names in results."""
        return [ARM_NAMES[name] for name in self.arm_keys]

    def pretrains(self, arm: str) -> bool:
        """Whether the model of an arm is pre-trained here.

        Args:
            arm: Its name on the command line.

        Returns:
            True if it is one of the arms and no checkpoint of it is named.
        """
        given = {"pretrained": self.checkpoint, "continued": self.continued}
        return arm in given and arm in self.arm_keys and not given[arm]

    def seeds_of(self, arm: str) -> list[int | None]:
        """Seeds of the pre-trainings of an arm.

        Args:
            arm: Its name on the command line.

        Returns:
            The seeds; None alone for a single model.
        """
        return list(self.pretrain_seeds) if self.pretrain_seeds and self.pretrains(arm) else [None]

    def further(self, what: str) -> dict[str, Any]:
        """Further options, as they were given: of `"pretrain"`, `"continued"` or `"finetune"`."""
        return dict(getattr(self, f"{what}_options") or {})

    @property
    def scratch_model(self) -> str:
        """The arm whose architecture the arm scratch has, by its name on the command line."""
        others = [name for name in ("pretrained", "public", "continued") if name in self.arm_keys]
        return self.scratch_like or others[0]

    def kept_decoder(self, folder: Path) -> dict[str, str]:
        """The option of a new run by which it decodes images as the runs before it, maybe of another machine.

        Args:
            folder: Folder of the run.

        Returns:
            `image_decoder` of the first run of its kind in the folder of the comparison. Nothing if there is none, if
            the run has begun, which keeps its own, or if such runs have no choice.
        """
        if folder.parent == Path(self.output_dir):
            pattern = "*/run.json"
        elif self.task == TASKS[0]:
            pattern = "*-labels/**/run.json"
        else:
            return {}
        if any(folder.rglob("run.json")):
            return {}
        earlier = sorted(Path(self.output_dir).glob(pattern), key=lambda path: (path.stat().st_mtime, path))
        for path in earlier:
            settings = json.loads(path.read_text(encoding="utf-8"))
            if settings.get("image_decoder"):
                return {"image_decoder": settings["image_decoder"]}
        return {}

    def labeled_source(self) -> dict[str, Any]:
        """Options of `hf-simmim finetune` that name the images."""
        return {name: value for name, value in asdict(self).items() if name in _LABELED and value is not None}

    def training_options(self, budget: int = 0) -> dict[str, Any]:
        """Options of `hf-simmim finetune`, or of `segment`, that say how all arms are trained.

        Args:
            budget: Labeled images per class, or in all; 0 for all.

        Returns:
            The options, without model, images, seeds, folder and what each arm chooses for itself.
        """
        options: dict[str, Any] = {}
        recipe = self.finetune_recipe
        if self.task == TASKS[0] and recipe is None and self.names_images:
            recipe = FEW_LABELS
        elif self.task != TASKS[0] and recipe is None:
            options = {
                "num_train_epochs": FEW_EPOCHS,
                "per_device_train_batch_size": min(FEW_BATCH, budget or FEW_BATCH),
            }
        return options | ({"recipe": recipe} if recipe is not None else {}) | self.further("finetune")

    @property
    def choices(self) -> list[dict[str, float]]:
        """Options of `hf-simmim finetune` that each arm chooses from; a single one is no choice."""
        given = {"learning_rate": self.learning_rates, "layer_decay": self.layer_decays}
        grid = {name: values for name, values in given.items() if values}
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def tuning_source(self) -> dict[str, Any]:
        """The same options for a cross-validation without the test set."""
        source = self.labeled_source()
        named = [source.pop(name, None) for name in ("validation_dir", "validation_split")]
        # The embedded data set has a test split, which is used without being named.
        if any(named) or not self.names_images:
            source["holdout"] = 0.0
        return source | {"num_folds": self.tuning_folds}

    def unlabeled_source(self) -> dict[str, Any]:
        """Options of `hf-simmim pretrain` that name the images; it never gets the test set, and holds out its own."""
        if self.unlabeled_dir is not None:
            slices = {name: value for name, value in self.labeled_source().items() if name in SLICE_OPTIONS}
            return {"train_dir": self.unlabeled_dir, **slices}
        if self.task == "segmentation" and self.train_dir is not None:
            # Beside them are the masks.
            slices = {name: value for name, value in self.labeled_source().items() if name in SLICE_OPTIONS}
            return {"train_dir": str(Path(self.train_dir, "images")), **slices}
        left_out = ("label_column", "holdout", "holdout_seed", "validation_dir", "validation_split", "max_eval_samples")
        return {name: value for name, value in self.labeled_source().items() if name not in left_out}
