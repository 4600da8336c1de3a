"""Checks of model and data set cards, as far as the Hub's are known.

Source: huggingface/hub-docs, modelcard.md and docs/hub/repositories-licenses.md.
"""

import re
from typing import Any

import yaml

from .store import Commit, Repository

LICENSES = re.findall(
    r"\S+",
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr unknown other
    """,
)
STRINGS = ("license_name", "license_link", "library_name", "pipeline_tag", "pretty_name")
LISTS = ("tags", "datasets", "metrics", "language", "base_model", "license")
# These may also be a single string.
SINGLE = ("language", "base_model", "license", "datasets", "metrics")
REPOSITORY_NAME = r"(?:[\w-]+/)?[\w.-]+"
NO_METADATA = "empty or missing yaml metadata in repo card"


def split_card(content: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Metadata of a card, None if it has none, and what is wrong with its YAML."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*(\r?\n|\Z)", content, re.DOTALL | re.MULTILINE)
    try:
        metadata = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError as error:
        return {}, [f"YAML metadata cannot be read: {error}"]
    if metadata is None or isinstance(metadata, dict):
        return metadata, []
    return {}, ["YAML metadata must be a mapping."]


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
        return [], [NO_METADATA]
    errors += [f'"{key}" must be a string' for key in STRINGS if not isinstance(metadata.get(key, ""), str)]
    for key in LISTS:
        value = metadata.get(key, [])
        values = [value] if key in SINGLE and isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            errors.append(f'"{key}" must be {"a string or " if key in SINGLE else ""}a list of strings')
            continue
        for item in values:
            if key == "license" and item not in LICENSES:
                errors.append(f'"license" must be one of [{", ".join(LICENSES)}], not "{item}"')
            if key in ("datasets", "base_model") and not re.fullmatch(REPOSITORY_NAME, item):
                errors.append(f'"{key}" with value "{item}" is not valid. Use an id from the Hub.')
    if metadata.get("license") == "other" and "license_name" not in metadata:
        errors.append('"license_name" is required where the license is "other"')
    if repo_type == "model" and "model-index" in metadata:
        errors += _check_model_index(metadata["model-index"])
    return errors, []


def _check_model_index(index: Any) -> list[str]:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        names = [entry["name"] for entry in index]
        _, results = model_index_to_eval_results(index)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return [f'"model-index" cannot be read ({type(error).__name__}: {error})']
    errors = [f'"model-index" has a name that is no text: {name!r}' for name in names if not isinstance(name, str)]
    for result in results:
        texts = (result.task_type, result.dataset_type, result.dataset_name, result.metric_type)
        if not all(isinstance(text, str) and text for text in texts):
            errors.append(f'"model-index" needs texts as types and names, not {texts}')
        elif not re.fullmatch(REPOSITORY_NAME, result.dataset_type):
            errors.append(f'"model-index" names no data set of the Hub: dataset.type is "{result.dataset_type}"')
        if not isinstance(result.metric_value, (int, float, str, list, dict)):
            errors.append(f'"model-index" has no value of {result.metric_type}: {result.metric_value!r}')
    return errors
