"""Hooks of the site's build: formulas become MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex leaves of $…$ and $$…$$.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replace the formulas of a page.

    Raises:
        PluginError: a formula has a command that is unknown.
    """

    def mathml(match: re.Match[str]) -> str:
        tag, latex = match[1], html.unescape(match[2])
        formula = convert(latex, display="block" if tag == "div" else "inline")
        if "\\" in formula:
            raise PluginError(f"{page.file.src_path}: the formula {latex!r} has a command that is unknown")
        return f'<{tag} class="formula">{formula}</{tag}>'

    return FORMULA.sub(mathml, content)
