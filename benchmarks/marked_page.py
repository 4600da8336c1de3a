"""Pages of which a part between two marks is written by a program."""

from pathlib import Path

END = "<!-- end -->\n"


def begin(program: str) -> str:
    """The mark after which a page is written by a program of `benchmarks`."""
    return f"<!-- written by benchmarks/{program} -->\n"


def write_part(path: Path, program: str, text: str) -> None:
    """Replace the part of a page between its marks.

    Args:
        path: The page.
        program: Name of the program's file.
        text: The new part.

    Raises:
        SystemExit: If the page has no marks of this program.
    """
    before, _, rest = path.read_text(encoding="utf-8").partition(begin(program))
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{path} has no lines {begin(program).strip()} and {END.strip()}")
    path.write_text(before + begin(program) + text + END + after, encoding="utf-8")
