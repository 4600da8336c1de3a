"""For the API reference: types in docstrings of transformers' style, (`str`, *optional*), without their marks."""

import re
from typing import Any

import griffe

PARAMETER = re.compile(r"^(\s*\w+ \()(`.*)(\):)$", re.MULTILINE)


class TransformersTypes(griffe.Extension):
    """Takes backquotes and asterisks out of the types of parameters: they stand in code already."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Change the docstring before it is parsed."""
        if cls.docstring is not None:
            bare = PARAMETER.sub(lambda match: match[1] + re.sub(r"[`*]", "", match[2]) + match[3], cls.docstring.value)
            cls.docstring.value = bare
