"""What an audit writes: a page, a JSON file, lines on a terminal.

The terminal's part, which needs rich, is in `spax.audit.render.terminal`.
"""

from spax.audit.render.figures import svg
from spax.audit.render.folder import check, write
from spax.audit.render.html import html
from spax.audit.render.images import image_grid
from spax.audit.render.json import to_json

__all__ = ["check", "html", "image_grid", "svg", "to_json", "write"]
