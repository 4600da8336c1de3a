"""Checks of model and data set cards, as far as the Hub's are known."""

import re
from typing import Any

import yaml
from hub_store import Commit, Repository

STRINGS = ("license_name", "license_link", "library_name", "pipeline_tag", "pretty_name", "inference")
LISTS = ("tags", "datasets", "metrics")


def split_card(content: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Metadata of a card, None if it has none, and what is wrong with its YAML."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*(\r?\n|\Z)", content, re.DOTALL | re.MULTILINE)
    if match is None:
        return None, []
    try:
        metadata = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return {}, [f"YAML metadata cannot be read: {error}"]
    if metadata is None:
        return None, []
    return (metadata, []) if isinstance(metadata, dict) else ({}, ["YAML metadata must be a mapping."])


def card_metadata(repository: Repository, commit: Commit) -> dict[str, Any]:
    """Metadata of a commit's card; nothing if it cannot be read."""
    if "README.md" not in commit.files:
        return {}
    return split_card(repository.file("README.md", commit.oid).decode(errors="replace"))[0] or {}


def check_card(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a card's metadata.

    Args:
        content: Text of the card.
        repo_type: "model", "dataset" or "space".

    Returns:
        Messages of what is refused, and of what is missing.
    """
    metadata, errors = split_card(content)
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors += [f'"{key}" must be a string' for key in STRINGS if not isinstance(metadata.get(key, ""), (str, bool))]
    for key in ("license", "language", "base_model"):
        value = metadata.get(key, "")
        if not _is_list_of_strings(value) and not isinstance(value, str):
            errors.append(f'"{key}" must be a string or a list of strings')
    errors += [f'"{key}" must be a list of strings' for key in LISTS if not _is_list_of_strings(metadata.get(key, []))]
    if repo_type == "model" and "model-index" in metadata:
        errors += _check_model_index(metadata["model-index"])
    return errors, []


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_model_index(index: Any) -> list[str]:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        if not index or not all(isinstance(entry["name"], str) for entry in index):
            return ['"model-index" must be a list of models with a name']
        _, results = model_index_to_eval_results(index)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return [f'"model-index" cannot be read ({type(error).__name__}: {error})']
    wrong = [result for result in results if not isinstance(result.metric_value, (int, float, str))]
    return [f'"model-index" has no number as {result.metric_type} of {result.dataset_name}' for result in wrong]
