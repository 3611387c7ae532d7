"""Settings of the documentation site: Sphinx, Markdown pages, API pages from docstrings."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from pictures import write  # noqa: E402
from settings_page import page  # noqa: E402

from mcsp.version import __version__  # noqa: E402

(ROOT / "docs" / "settings.md").write_text(page())
write(ROOT / "docs" / "images" / "drawn")
# The tutorials start from nothing, and a corpus belongs to one key. Pages of modules that are gone must not stay.
for folder in ("api", "tutorials", "tutorials_src/tutorial_output"):
    shutil.rmtree(ROOT / "docs" / folder, ignore_errors=True)

project, author, release = "MCSP", "the MCSP authors", __version__
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "sphinx_copybutton", "sphinx_gallery.gen_gallery",
]  # fmt: skip
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "tutorials_src"]
templates_path = ["_templates"]
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]

# Types of arguments link where these pages document them; other packages' names have no page here.
nitpick_ignore_regex = [("py:class", ".*"), ("py:.*", r"(?!mcsp\.).*")]

# Tutorials run in the order of their names; one that fails ends the build.
sphinx_gallery_conf = {
    "examples_dirs": "tutorials_src",
    "gallery_dirs": "tutorials",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autosummary_generate = True
napoleon_numpy_docstring = False

html_theme = "pydata_sphinx_theme"
html_title = "MCSP"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 4,
}
html_sidebars = {path.stem: [] for path in (ROOT / "docs").glob("*.md")}  # they have no pages below them
html_show_sourcelink = False
