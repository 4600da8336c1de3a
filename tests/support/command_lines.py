"""Command lines, as a shell passes them."""


def command_line(settings: dict) -> list[str]:
    """Options by name; what is None is left out, and a list has a word for each of its values."""
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
