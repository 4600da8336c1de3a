"""Recipes, which are JSON files of options."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .options.names import nearest, no_recipe

RECIPE_FILES = Path(__file__).parent / "recipe_files"


class CommandError(ValueError):
    """A command failed; the message says why and what to do."""


def recipe_names(command: str) -> list[str]:
    """Names of the recipes of a command."""
    return sorted(path.stem for path in (RECIPE_FILES / command).glob("*.json"))


def recipe_options(name: str, known: Collection[str], command: str, skipped: Collection[str] = ()) -> list[str]:
    """Read a recipe as command line options, and refuse keys that are not options.

    Args:
        name: Name of a recipe of the command, or path of a JSON file.
        known: Names of the options.
        command: Name of the command.
        skipped: Keys that are left out.

    Returns:
        The options.

    Raises:
        CommandError: If there is no such recipe, or it cannot be used; the message says why.
    """
    names = recipe_names(command)
    path = RECIPE_FILES / command / f"{name}.json" if name in names else Path(name)
    if not path.is_file():
        raise CommandError(no_recipe(name, names))
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"the recipe {path} is not valid JSON: {error}.") from error
    if not isinstance(recipe, dict):
        raise CommandError(f"the recipe {path} must be a JSON object of options.")
    for key in recipe:
        if key not in known:
            raise CommandError(f"the recipe {path} has the unknown key {key!r}.{nearest(key, known)}")
    return options_of({key: value for key, value in recipe.items() if key not in skipped})


def options_of(values: Mapping[str, Any]) -> list[str]:
    """Turn names and values into a command line; None leaves an option at its default."""
    options = []
    for key, value in values.items():
        if isinstance(value, PreTrainedConfig):
            value = value.to_dict()
        if value is not None:
            parts = value if isinstance(value, (list, tuple)) else [value]
            options += [f"--{key}", *(json.dumps(part) if isinstance(part, dict) else str(part) for part in parts)]
    return options
