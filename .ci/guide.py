"""Renders the Markdown pages of the repository beside those of the interface, with the look of pdoc's pages."""

import re
import shutil
from pathlib import Path

import pdoc

HOME = Path(__file__).resolve().parents[1]
FRAME = """
{% extends "frame.html.jinja2" %}
{% block title %}{{ title }} - jaxpt{% endblock %}
{% block style %}
    {{ super() }}
    <style>
        body { width: calc(72rem + var(--sidebar-width)) !important; max-width: 100%; }
        main.pdoc { width: calc(66rem + var(--sidebar-width, 0rem)); max-width: 100vw; }
        @media (max-width: 769px) { main.pdoc h1:first-child { padding-right: 4rem; } }  /* for the menu's button */
        main.pdoc table { display: block; overflow-x: auto; margin-bottom: 1rem; }
        main.pdoc th, main.pdoc td { border: 1px solid var(--accent2); padding: .2rem .5rem; }
        main.pdoc img { max-width: 100%; }
        main.pdoc pre { padding: .6rem; background-color: var(--code); overflow-x: auto; }
    </style>
{% endblock %}
{% block nav %}
    <h2>Pages</h2>
    <ul>{% for name, address in pages %}<li><a href="{{ address }}">{{ name }}</a></li>{% endfor %}</ul>
    <h2>Contents</h2>
    {{ text.toc_html | safe }}
{% endblock %}
{% block content %}<main class="pdoc">{{ text | safe }}</main>{% endblock %}
"""
TARGET = re.compile(r"(?<=\]\()(?!https?:)([^)#\s]+)|(?<=src=\")(?!https?:)([^\"]+)")
TITLE = re.compile(r"^# (.*)$", re.MULTILINE)


def targets(page: Path) -> list[Path]:
    """Returns the files that a page links to or shows.

    Raises:
        FileNotFoundError: a link leads outside the repository, to a folder, or to no file.
    """
    found = [(page.parent / (link or picture)).resolve() for link, picture in TARGET.findall(page.read_text())]
    for file in found:
        if not (file.is_relative_to(HOME) and file.is_file()):
            raise FileNotFoundError(f"{page.relative_to(HOME)} links to {file}, which is not a file of the repository")
    return found


def reached(first: Path) -> tuple[list[Path], set[Path]]:
    """Returns the Markdown pages that links lead to from a first one, in order, and the other files."""
    pages, files = [first], set()
    for page in pages:  # grows as it is read
        for file in targets(page):
            if file.suffix != ".md":
                files.add(file)
            elif file not in pages:
                pages.append(file)
    return pages, files


def write(folder: Path) -> None:
    """Writes the README and every page that it leads to as HTML; copies the pictures and files that they link to."""
    pages, files = reached(HOME / "README.md")
    for file in files:
        copy = folder / file.relative_to(HOME)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    frame = pdoc.render.env.from_string(FRAME)
    found = {page: TITLE.search(page.read_text())[1] for page in pages}
    # Pages with the same title are told apart by their folders.
    titles = {
        page: f"{t} ({page.parent.name})" if list(found.values()).count(t) > 1 else t for page, t in found.items()
    }
    for page in pages:
        place = page.relative_to(HOME)
        text = TARGET.sub(lambda found: re.sub(r"\.md$", ".html", found[0]), page.read_text())
        root = "../" * (len(place.parts) - 1)
        listed = [(title, f"{root}{other.relative_to(HOME).with_suffix('.html')}") for other, title in titles.items()]
        html = frame.render(
            title=titles[page],
            text=pdoc.render.env.filters["to_html"](text),
            pages=[("Interface", f"{root}jaxpt.html"), *listed],
        )
        out = folder / place.with_suffix(".html")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html)
