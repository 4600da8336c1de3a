"""What holds for every model card, whatever it is of."""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

PIPELINES = ("image-feature-extraction", "image-classification", "image-segmentation")


def check_card(card: ModelCard, folder: Path | None = None) -> str:
    """Refuse a card with holes, broken tables or code, invalid metadata, or anything of this machine.

    Args:
        card: The card.
        folder: Where it lies, with its pictures.

    Returns:
        Its text.
    """
    content = str(card)
    assert ModelCard(content).content == content
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    assert match is not None
    check_metadata(yaml.safe_load(match[1]))
    text = content[match.end() :]
    assert "\n\n\n" not in content
    assert not re.search(r"[ \t]$", content, re.MULTILINE)
    assert not re.search(r"\b(None|nan|inf|NaN|Undefined|undefined|True|False)\b", without_code(content)), content
    assert not re.search(r"\{\{|\}\}|\{%|object at 0x", text)
    here = Path.cwd() if folder is None else folder.resolve().parent
    for place in {str(Path.home()), str(Path.cwd()), str(here)} - {"/"}:
        assert place not in content
    check_headings(without_code(text))
    check_tables(without_code(text))
    blocks = re.findall(r"^```(\w+)\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    assert text.count("```") == 2 * len(blocks)
    for language, code in blocks:
        assert code.strip()
        if language == "python":
            compile(code, "card", "exec")
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert folder is not None
        assert (folder / picture).exists()
    return content


def check_metadata(metadata: dict) -> None:
    """What the Hub's library reads, and gives back the same."""
    assert ModelCardData(**metadata).to_dict() == metadata
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] in PIPELINES
    assert "simmim" in metadata["tags"]
    if "model-index" in metadata:
        name, results = model_index_to_eval_results(metadata["model-index"])
        assert results
        assert eval_results_to_model_index(name, results) == metadata["model-index"]


def check_headings(text: str) -> None:
    """One title, and something below every heading before the next."""
    parts = re.split(r"^(#+ .*)$", text, flags=re.MULTILINE)
    titles, bodies = parts[1::2], parts[2::2]
    assert [title for title in titles if title.startswith("# ")] == titles[:1]
    assert len(set(titles)) == len(titles)
    for title, body in zip(titles, bodies, strict=True):
        assert title.strip("# ")
        assert body.strip(), f"nothing below {title!r}"
        assert body.startswith("\n\n")


def check_tables(text: str) -> None:
    """Rows of as many cells as the header, none of them empty."""
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip().splitlines()
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
        if not rows:
            continue
        assert len(rows) == len(lines), f"a table is broken: {paragraph!r}"
        assert len(rows) > 2, f"a table is empty: {paragraph!r}"
        assert all(set(cell.strip()) == {"-"} for cell in rows[1])
        assert {len(row) for row in rows} == {max(2, len(rows[0]))}, paragraph
        assert all(cell.strip() for row in rows[2:] for cell in row), paragraph


def without_code(text: str) -> str:
    """Text with something in the place of each block of code."""
    return re.sub(r"^```.*?^```$", "code", text, flags=re.DOTALL | re.MULTILINE)


def table(text: str) -> dict[str, str]:
    """All rows of all tables, by their first cell."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", without_code(text), re.MULTILINE)
    return {title: value for title, value in rows if set(title) != {"-"}}
