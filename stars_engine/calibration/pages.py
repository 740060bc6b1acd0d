"""HTML pages from the templates of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stars_engine.errors import needs_extra


def render(
    folder: str,
    template: str,
    *,
    plots: Mapping[str, str],
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """Return a page; text is escaped, and an unknown name is an error.

    Args:
        folder: The subpackage with the template.
        template: Name of the template.
        plots: SVG text by name, written as it is.
        filters: Filters of the template.
        **values: Values of the template.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    with needs_extra("eval"):
        from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
        from markupsafe import Markup  # noqa: PLC0415
    environment = Environment(
        loader=PackageLoader("stars_engine", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(filters or {})
    safe = {name: Markup(text) for name, text in plots.items()}
    return environment.get_template(template).render(plots=safe, **values)
