"""Command lines of scripts: options of dataclasses, and recipes, which are JSON files of such options."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and every default."""


def parse_with_recipe(
    kinds: Sequence[type],
    argv: list[str],
    folder: Path,
    usual_recipe: Callable[[argparse.Namespace], str | None],
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Command line over recipe over defaults.

    Args:
        kinds: Dataclasses whose fields are the options.
        argv: The command line.
        folder: Where recipes are that can be called by name.
        usual_recipe: Names the recipe, if any, for a command line that names none.
        **kwargs: Passed to the parser, such as `description`.

    Returns:
        One object of each kind.

    Raises:
        SystemExit: If an option or a key of the recipe is unknown, or a value is refused; the message says why.
    """
    parser = HfArgumentParser(kinds, formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)  # type: ignore[arg-type]
    # argparse by itself takes -3.4e+38, which is what many rasters have for no data, for an option.
    parser._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)
    names = recipe_names(folder)
    parser.add_argument(
        "--recipe", help="JSON file of options" + (f", or one of: {', '.join(names)}." if names else ".")
    )
    known = {action.dest for action in parser._actions} - {"help", "recipe"}
    named, _ = parser.parse_known_args(argv)
    recipe = named.recipe if named.recipe is not None else usual_recipe(named)
    if recipe is not None:
        # Before the command line, so that it wins, and through the parser, so that the values are checked alike.
        argv = [*recipe_options(recipe, known, folder), *argv]
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        option = unknown[0].split("=")[0]
        raise SystemExit(f"error: unknown option {option}.{nearest(option.lstrip('-'), known, '--')}")
    values = vars(arguments)
    try:
        return tuple(kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init}) for kind in kinds)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def recipe_names(folder: Path) -> list[str]:
    """Recipes of a folder."""
    return sorted(path.stem for path in folder.glob("*.json"))


def recipe_options(name: str, known: Collection[str], folder: Path) -> list[str]:
    """Read a recipe as command line options, and refuse keys that are none.

    Args:
        name: Name of a recipe in the folder, or path.
        known: Names of the options.
        folder: Where recipes are that can be called by name.

    Returns:
        The options.

    Raises:
        SystemExit: If there is no such recipe, or it is none; the message says why.
    """
    path = folder / f"{name}.json" if name in recipe_names(folder) else Path(name)
    if not path.is_file():
        raise SystemExit(
            f"error: there is no recipe {name!r}. Name a JSON file, or one of: {', '.join(recipe_names(folder))}."
        )
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"error: the recipe {path} is not valid JSON: {error}.") from error
    if not isinstance(recipe, dict):
        raise SystemExit(f"error: the recipe {path} must be a JSON object of options.")
    for key in recipe:
        if key not in known:
            raise SystemExit(f"error: the recipe {path} has the unknown key {key!r}.{nearest(key, known)}")
    return options_of(recipe)


def options_of(values: dict[str, Any]) -> list[str]:
    """Names and values as a command line; what is None is left out."""
    options = []
    for key, value in values.items():
        if value is not None:
            parts = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            options += [f"--{key}", *(str(part) for part in parts)]
    return options


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """A sentence with the valid name that is most like a wrong one."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {prefix}{match[0]}?" if match else " See --help for what there is."
