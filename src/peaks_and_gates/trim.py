"""Leave out of a built site what its pages have no use for, so that they are read sooner."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path

from .store import digest

# Scripts that the theme puts into every page: those of the search, and icons that its style sheet brings as a font.
SEARCH = re.compile(r'<script src="[^"]*/(?:searchtools|language_data|searchindex)\.js[^"]*"></script>\s*')
ICONS = re.compile(r'<script defer src="[^"]*/fontawesome\.js[^"]*"></script>\s*')
FORMULAS = re.compile(r"<script>window\.MathJax = .*?</script>\s*<script[^>]*/tex-svg-full\.js[^>]*></script>\s*", re.S)
# Of the list of references: one is deprecated, and a list may not hold the marks that links lead to.
ROLES = re.compile(r' role="doc-biblioentry"|(?<=<div) role="list"(?= class="citation-list")')
# What is said in this one is asked for at once, by what stands in the page itself.
AT_ONCE = "documentation_options.js"
# A notebook holds its pictures itself, each for light and dark; a page need not.
PICTURE = re.compile(r'src="data:image/svg\+xml;base64,([^"]+)"')
ASKED = re.compile(r'(?:src|href)="[./]*_static/((?:pictures|styles)/[^"?]+)')
SIZE = re.compile(rb'<svg[^>]* width="([0-9.]+)pt" height="([0-9.]+)pt"')  # as matplotlib writes it
STYLE = re.compile(r'<link(?=[^>]* rel="stylesheet")[^>]* href="([./]*)_static/([^"?]+)[^>]*>\s*')


def trim(site: Path) -> None:
    """Trim every page of a site, in place.  A page that is trimmed already is left as it is.  What an earlier build
    wrote and no page asks for any more is deleted, and the maps that are for those who debug the theme.
    """
    one_sheet.cache_clear()  # those of an earlier build
    static = site / "_static"
    asked: set[str] = set()
    for path in site.rglob("*.html"):
        text = lighter(path.read_text(), static, searches=path.name == "search.html")
        path.write_text(text)
        asked.update(ASKED.findall(text))
    written = (*static.glob("pictures/*.svg"), *static.glob(f"styles/{'[0-9a-f]' * 8}.css"))
    for path in (*static.rglob("*.map"), *(path for path in written if str(path.relative_to(static)) not in asked)):
        path.unlink()


def lighter(text: str, static: Path, searches: bool) -> str:
    """A built page without scripts that it has no use for; the others wait until it can be read, all style sheets come
    in one file, and pictures in files that are asked for when they come into sight.  These are written into `static`.
    """
    styles = STYLE.findall(text)
    if len(styles) > 1:  # not done already
        sheet = one_sheet(tuple(static / name for _, name in styles))
        link = f'<link rel="stylesheet" href="{styles[0][0]}_static/styles/{sheet.name}">\n'
        text = STYLE.sub("", STYLE.sub(link, text, count=1).replace(link, "\0")).replace("\0", link)
    text = ROLES.sub("", ICONS.sub("", text))
    if not searches:
        text = SEARCH.sub("", text)
    if 'class="math' not in text:
        text = FORMULAS.sub("", text)
    if root := re.search(r'data-content_root="([^"]*)"', text):
        text = PICTURE.sub(lambda found: picture(found[1], static, root[1]), text)
    return re.sub(rf'<script(?! defer)(?=[^>]* src="(?![^"]*{AT_ONCE}))', "<script defer", text)


def picture(encoded: str, static: Path, root: str) -> str:
    """Attributes of an image that is shown from a file, which is written.  root: from the page to the site."""
    svg = base64.b64decode(encoded)
    file = static / "pictures" / f"{digest(encoded)}.svg"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(svg)
    shown = f'src="{root}_static/pictures/{file.name}" loading="lazy"'
    if size := SIZE.search(svg):  # known beforehand, so that the text does not jump when the picture comes
        width, height = (round(float(points) * 4 / 3) for points in size.groups())
        shown += f' width="{width}" height="{height}"'
    return shown


@cache
def one_sheet(paths: tuple[Path, ...]) -> Path:
    """A file in the folder `styles` with all of these style sheets, the first of which is there."""
    text = "\n".join(style(path, paths[0].parent) for path in paths)
    sheet = paths[0].with_name(f"{digest(text)[:8]}.css")
    sheet.write_text(text)
    return sheet


def style(path: Path, folder: Path) -> str:
    """A style sheet with those that it imports, to be read from another folder beside its own."""
    text = path.read_text().removeprefix('@charset "UTF-8";')
    if path.parent != folder:
        text = re.sub(r"url\((?!['\"]?(?:data:|/))", "url(../", text)
    return re.sub(r'@import "\.\./([^"]+)";', lambda name: style(path.parent.parent / name[1], folder), text)
