"""Docstrings for mkdocstrings: a block of code after ``::``, as Sphinx writes it, follows a colon in Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Colons(griffe.Extension):
    """Leaves one colon of two at the end of a line."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object of the package once it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
