"""Settings of the documentation site: Sphinx, Markdown pages, API pages from docstrings."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from settings_page import page  # noqa: E402

from mcsp.version import __version__  # noqa: E402

(ROOT / "docs" / "settings.md").write_text(page())

project, author, release = "MCSP", "the MCSP authors", __version__
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "sphinx_copybutton",
]  # fmt: skip
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]

# Types of arguments link where these pages document them; other packages' names have no page here.
nitpick_ignore_regex = [("py:class", ".*"), ("py:.*", r"(?!mcsp\.).*")]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autosummary_generate = True
napoleon_numpy_docstring = False

html_theme = "pydata_sphinx_theme"
html_title = "MCSP"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
