"""The HTML of the report: one Jinja2 environment, which escapes whatever a template shows."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .texts import texts


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["css_string"] = css_string
    return environment


def css_string(text: str) -> str:
    """Return a text as a string of CSS, for `content`; whatever it says, it ends where it should."""
    escaped = re.sub(r"[^\w .,()/–-]", lambda sign: f"\\{ord(sign[0]):x} ", str(text))
    return f'"{escaped}"'


def render(template: str, language: str = "en", **values: object) -> Markup:
    """Return `templates/<template>.html.j2` with these values; `words` are the texts of the language.

    A value is text, which is escaped, or already HTML: Markup.
    """
    found = _environment().get_template(f"{template}.html.j2")
    return Markup(found.render(language=language, words=texts(language), **values))


def asset(name: str) -> Markup:
    """Return a style sheet or a script of the templates' folder."""
    return Markup(resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8"))
