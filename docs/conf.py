"""The site of these documents, by Sphinx: `make docs`. docs/index.md lists the pages; its headings are the menu's."""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

INDEX = Path(__file__).with_name("index.md")

project = "mixfast"
author = copyright = "mixfast contributors"
extensions = ["myst_parser"]
root_doc = "README"  # the root of the checkout is the root of the site, so that links are those of the checkout
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md"]
exclude_patterns = [".*", "benchmarks", "build", "csrc", "data", "dist", "mixfast", "runs", "scripts", "tests"]
myst_heading_anchors = 3  # the anchors that GitHub gives to headings
html_theme = "furo"
html_title = "mixfast"
html_copy_source = False


def menu(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the sections of docs/index.md to the front page, which the menu is made from."""
    if name != root_doc:
        return
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    source[0] += "\n```{toctree}\n:hidden:\n\nAll pages </docs/index>\n```\n"
    for title, links in sections:
        pages = "\n".join(f"{text} </docs/{page}>" for text, page in re.findall(r"\[(.+)\]\((.+)\.md\)", links))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n"


def front_page(app: Sphinx, error: Exception | None) -> None:
    """A server shows index.html when no page is named."""
    if error is None:
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", menu)
    app.connect("build-finished", front_page)
