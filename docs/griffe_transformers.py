"""Plain types for the API reference, from docstrings in the style of transformers: (`str`, *optional*)."""

import re
from typing import Any

import griffe

PARAMETER = re.compile(r"^(\s*\w+ \()(`.*)(\):)$", re.MULTILINE)


class TransformersTypes(griffe.Extension):
    """Removes backquotes and asterisks from the types of parameters, which are already set as code."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Change the docstring before it is parsed."""
        if cls.docstring is not None:
            bare = PARAMETER.sub(lambda match: match[1] + re.sub(r"[`*]", "", match[2]) + match[3], cls.docstring.value)
            cls.docstring.value = bare
