"""Hooks of the site's build: a table of all options; formulas become MathML, which browsers draw without a script."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

from optex_rl import TrainConfig

# What pymdownx.arithmatex leaves of $…$ and $$…$$.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
OPTIONS = "<!-- options of TrainConfig -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of options where a page has `OPTIONS`."""
    return markdown.replace(OPTIONS, option_table())


def option_table() -> str:
    """The options of a run in Markdown: what each means, its default, and what is allowed."""
    rows = ["| option | meaning | default | allowed |", "|---|---|---|---|"]
    for spec in dataclasses.fields(TrainConfig):
        known = spec.metadata
        numbers = "" if known["high"] is None else f"{known['low']:g} … {known['high']:g}"
        words = ", ".join(f"`{choice}`" for choice in known["choices"] or ())
        allowed = ", ".join(filter(None, (words, numbers, known["other"])))
        rows.append(f"| `{spec.name}` | {known['help']} | `{spec.default}` | {allowed} |")
    return "\n".join(rows)


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
