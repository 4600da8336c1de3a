"""Names of commands, options and recipes, before anything heavy is imported: help, version, and mistakes in names.

Torch takes seconds to import. So the options are read from the text of the package, from the dataclasses that `COMMAND`
names, and those of TrainingArguments from the text of the installed transformers. Only what the command's own parser
would refuse too is refused.
"""

import ast
import difflib
import importlib.util
from collections.abc import Collection, Sequence
from pathlib import Path

from .. import COMMANDS

PACKAGE = Path(__file__).parents[2]
HELP = """hf-simmim {version}: pre-train a vision backbone on your own images, and use it.

usage: hf-simmim COMMAND [options]

{commands}

hf-simmim COMMAND --help shows the options that people use, --help-all all of them.
On many GPUs: accelerate launch -m hf_simmim COMMAND [options]"""

# What other programs call an option, and what it may be called here; the first that a command has is meant.
OTHER_NAMES = {
    "lr": ("learning_rate", "learning_rates"),
    "blr": ("base_learning_rate",),
    "wd": ("weight_decay",),
    "epochs": ("num_train_epochs",),
    "num_epochs": ("num_train_epochs",),
    "steps": ("max_steps",),
    "warmup": ("warmup_steps",),
    "batch_size": ("per_device_train_batch_size", "per_device_eval_batch_size"),
    "bs": ("per_device_train_batch_size", "batch_size", "per_device_eval_batch_size"),
    "train_batch_size": ("per_device_train_batch_size",),
    "eval_batch_size": ("per_device_eval_batch_size", "batch_size"),
    "workers": ("dataloader_num_workers", "num_workers"),
    "num_workers": ("dataloader_num_workers",),
    "dataloader_num_workers": ("num_workers",),
    "per_device_train_batch_size": ("batch_size",),
    "per_device_eval_batch_size": ("batch_size",),
    "data": ("train_dir", "image_dir", "images"),
    "data_dir": ("train_dir", "image_dir", "images"),
    "data_path": ("train_dir", "image_dir", "images"),
    "dataset": ("dataset_name",),
    "images": ("image_dir", "train_dir"),
    "image_dir": ("images", "train_dir"),
    "train_dir": ("image_dir", "images"),
    "window_size": ("image_window",),
    "val_dir": ("validation_dir",),
    "test_dir": ("validation_dir",),
    "out": ("output_dir", "output"),
    "out_dir": ("output_dir", "output"),
    "output": ("output_dir",),
    "output_dir": ("output",),
    "model": ("checkpoint", "encoder"),
    "weights": ("checkpoint",),
    "pretrained": ("checkpoint",),
    "ckpt": ("checkpoint",),
    "arch": ("encoder",),
    "backbone": ("encoder", "checkpoint"),
    "resume": ("resume_from_checkpoint",),
    "img_size": ("image_size", "crop_size"),
    "input_size": ("image_size", "crop_size"),
    "resolution": ("image_size", "crop_size"),
    "channels": ("num_channels",),
    "in_chans": ("num_channels",),
    "in_channels": ("num_channels",),
    "optimizer": ("optim",),
    "opt": ("optim",),
    "scheduler": ("lr_scheduler_type",),
    "sched": ("lr_scheduler_type",),
    "clip_grad": ("max_grad_norm",),
    "accum_iter": ("gradient_accumulation_steps",),
    "grad_accum": ("gradient_accumulation_steps",),
    "amp": ("bf16",),
    "cpu": ("use_cpu",),
    "compile": ("torch_compile",),
    "drop_path": ("drop_path_rate",),
    "ema": ("weight_average",),
    "config": ("recipe",),
}


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """A sentence that suggests the valid name closest to an unknown one.

    Args:
        name: The unknown name.
        known: The valid names.
        prefix: What stands before a valid name, such as the dashes of an option.

    Returns:
        The sentence, with a space before it.
    """
    meant = next((other for other in OTHER_NAMES.get(name, ()) if other in known), None)
    if meant is not None:
        return f" Use {prefix}{meant}."
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {prefix}{match[0]}?" if match else " See --help-all for all valid names."


def answered(argv: Sequence[str], version: str) -> bool:
    """Print help or version, if that is asked for, or refuse mistakes in the names of commands, options and recipes.

    Args:
        argv: Name of the command and its options.
        version: That of the package.

    Returns:
        Whether nothing is left to do.

    Raises:
        SystemExit: If a name is unknown; the message names the nearest one.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {key:<{width}}  {text}" for key, text in COMMANDS.items())
        print(HELP.format(version=version, commands=lines))
        return True
    if name == "--version":
        print(version)
        return True
    if name not in COMMANDS:
        remedy = nearest(name, COMMANDS).replace("--help-all for all valid names", "--help for all commands")
        raise SystemExit(f"error: there is no command {name!r}.{remedy}")
    mistake = _mistake(name, argv[1:])
    if mistake is not None:
        raise SystemExit(f"error: {mistake}")
    return False


def option_names(command: str) -> set[str]:
    """Names of all options of a command, read from the text of the package and of the installed transformers.

    Args:
        command: Name of the command.

    Returns:
        The names; empty if they cannot be read.
    """
    spec = importlib.util.find_spec("transformers")
    sources = [*(PACKAGE / "cli").rglob("*.py"), PACKAGE / "training" / "arguments.py"]
    sources += [Path(folder) / "training_args.py" for folder in (spec and spec.submodule_search_locations) or ()]
    classes: dict[str, ast.ClassDef] = {}
    for path in sources:
        # Names of classes are unique among these files.
        classes |= {node.name: node for node in _tree(path).body if isinstance(node, ast.ClassDef)}
    names = {"recipe"}
    # The dataclasses whose fields are the options.
    kinds = _command(_tree(PACKAGE / "cli" / f"{command}.py")).get("kinds")
    queue = [item.id for item in kinds.elts if isinstance(item, ast.Name)] if isinstance(kinds, ast.Tuple) else []
    if not queue:
        return set()
    while queue:
        node = classes.get(queue.pop())
        if node is None:
            return set()
        queue += [base.id for base in node.bases if isinstance(base, ast.Name)]
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and _is_option(line):
                names.add(line.target.id)
    return names


def _command(tree: ast.Module) -> dict[str, ast.expr]:
    """What the definition of a command in its module says, by keyword."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Command":
            return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return {}


def _is_option(line: ast.AnnAssign) -> bool:
    """Whether an annotated line of a dataclass is a field that can be set."""
    if "ClassVar" in ast.unparse(line.annotation):
        return False
    settings = line.value.keywords if isinstance(line.value, ast.Call) else []
    return not any(setting.arg == "init" and ast.unparse(setting.value) == "False" for setting in settings)


def _mistake(command: str, argv: Sequence[str]) -> str | None:
    """What is wrong with the names of options and of the recipe, if anything is."""
    if {"-h", "--help", "--help-all"} & set(argv):
        return None
    known = option_names(command)
    for position, word in enumerate(argv):
        option, _, value = word.partition("=")
        name = option[2:].replace("-", "_")
        if not word.startswith("--") or not name or not known:
            continue
        # argparse adds --no_... to options that are on by default.
        if name not in known and name.removeprefix("no_") not in known:
            return f"unknown option {option}.{nearest(name, known, '--')}"
        if name == "recipe":
            value = value or next(iter(argv[position + 1 :]), "")
            other = _command(_tree(PACKAGE / "cli" / f"{command}.py")).get("recipes_of")
            folder = other.value if isinstance(other, ast.Constant) and other.value else command
            names = sorted(path.stem for path in (PACKAGE / "cli" / "recipe_files" / str(folder)).glob("*.json"))
            if value and not value.startswith("--") and value not in names and not Path(value).is_file():
                return no_recipe(value, names)
    return None


def no_recipe(name: str, names: Collection[str]) -> str:
    """What is said of a recipe that does not exist.

    Args:
        name: The given name.
        names: Names of the command's own recipes.

    Returns:
        The sentences.
    """
    match = difflib.get_close_matches(name, names, n=1)
    meant = f" Did you mean {match[0]}?" if match else ""
    also = f", or one of: {', '.join(names)}" if names else ""
    return f"there is no recipe {name!r}.{meant} Name a JSON file{also}."


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
