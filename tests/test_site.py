"""Links of the documents lead somewhere, docs/index.md lists every page, and the site is built from them."""

import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")] + sorted(ROOT.glob("docs/**/*.md"))
TOOLS = ("sphinx", "myst_parser", "furo")


def prose(page: Path) -> str:
    """A page without what stands in code."""
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, without those on other servers."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"https?:|mailto:", target)]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    names: Counter[str] = Counter()
    found = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        visible = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", visible).strip().replace(" ", "-")
        found.add(f"{name}-{names[name]}" if names[name] else name)
        names[name] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_broken(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        known = place.exists() and place.is_relative_to(ROOT)
        if not known or (anchor and (place.suffix != ".md" or anchor not in anchors(place))):
            broken.append(target)
    assert not broken


def test_the_index_lists_every_page_once() -> None:
    index = ROOT / "docs/index.md"
    listed = [(index.parent / target).resolve() for target in links(index)]
    assert sorted(listed) == sorted(page for page in PAGES if page != index)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, TOOLS)), reason="a tool is not installed: pip install 'mixfast[docs]'")
def test_the_site_is_built_and_needs_no_other_server(tmp_path: Path) -> None:
    """Every warning, a broken link for instance, is an error of the build."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-d",
        tmp_path / "cache",
        "-c",
        "docs",
        ".",
        tmp_path / "site",
    ]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {page.relative_to(tmp_path / "site").with_suffix(".md") for page in tmp_path.glob("site/**/*.html")}
    assert {page.relative_to(ROOT) for page in PAGES} <= made
    front = (tmp_path / "site/index.html").read_text()
    sections = re.findall(r"^## (.+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    assert [caption for caption in re.findall(r'<span class="caption-text">(.+?)</span>', front)] == sections
    assert not re.findall(r"<(?:script|img|link rel=.stylesheet.)[^>]*(?:src|href)=.https?:", front)
