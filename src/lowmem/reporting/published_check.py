"""Published values beside the papers' own pages: `lowmem published check`, for readers with internet.

A page is the paper's HTML (arXiv's own or a copy). Each number of data/published is looked for in the table or figure
whose caption has its label, in the row that its `at` names: confirmed; other: that row holds other numbers; not found.
A value without a known label is looked for in the whole text, where a number proves less, as the line says.
Nothing is changed here; a person reads the lines and corrects data/published.
"""

import html.parser
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from lowmem.errors import Failed, Misuse, nearest
from lowmem.files import read_yaml

PAPERS = {"adam_mini": ("adam_mini", "adam_mini."), "lomo": ("lomo", "lomo."), "adalomo": ("lomo", "adalomo.")}
PAGES = {
    "adam_mini": "https://arxiv.org/html/2406.16793v7",
    "lomo": "https://arxiv.org/html/2306.09782v2",
    "adalomo": "https://arxiv.org/html/2310.10195v3",
}
TIMEOUT = 60  # seconds without an answer
LARGEST = 64 << 20  # bytes of a page
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?=(?:[GMT]i?B|ms|[hsx])?(?!\w))")
LABEL = re.compile(r"(Table|Figure|Fig\.)\s*(\d+)\b")


@dataclass
class Float:
    """A table or figure of a page: its caption, its rows of cells, and all of its words."""

    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)
    words: str = ""


def check(root: Path, paper: str, page: str | None = None) -> list[tuple[str, str, str]]:
    """[(verdict, what, detail)] of each number of a paper: verdict is "confirmed", "other" or "not found"."""
    if paper not in PAPERS:
        raise Misuse(f"unknown paper {paper!r}{nearest(paper, PAPERS)}")
    name, prefix = PAPERS[paper]
    path = root / f"data/published/{name}.yaml"
    floats, text = read(fetched(page or PAGES[paper]))
    if not floats:
        raise Failed(f"{page or PAGES[paper]}: no table or figure on this page; give --page the paper's HTML")
    found = []
    for id, item in read_yaml(path)["items"].items():
        if id.startswith(prefix):
            found += [one(item, value, floats, text) for value in item["values"] if sought(value)]
    return found


def sought(value: dict) -> bool:
    """Whether a value is a number that the paper itself prints; words and what others measured are not looked for."""
    return value["origin"] == "paper" and all(map(is_number, listed(value["value"])))


def one(item: dict, value: dict, floats: dict[str, Float], text: str) -> tuple[str, str, str]:
    """(verdict, what, detail) of one value."""
    place = [str(part) for part in (value.get("at") or {}).values()]
    what = f"{item['label']}: {', '.join([*place, value['what']])} = {value['value']}"
    wanted, label = listed(value["value"]), LABEL.search(item["label"])  # "AdaLomo, Table 2"
    if not label:
        return in_text(what, wanted, text)
    key = f"{label[1].replace('Fig.', 'Figure')} {label[2]}"
    if key not in floats:
        verdict, what, detail = in_text(what, wanted, text)
        return verdict, what, f"no {key} on the page; {detail}"
    shown = floats[key]
    rows = [cells for cells in shown.rows if place and any(same(part, cell) for part in place for cell in cells)]
    best = max(rows, key=lambda cells: fit(place, cells), default=None)
    cell = column(place, shown.rows[0], best) if best else None
    numbers = numbers_in((cell or " ".join(best)) if best else shown.words)
    if all(number in numbers for number in wanted):
        return "confirmed", what, f"in {key}, {'its cell' if cell else 'its row' if best else 'somewhere'}"
    if best and numbers:
        elsewhere = all(number in numbers_in(shown.words) for number in wanted)
        return "other", what, f"{key} has {' '.join(best)[:120]!r}{', and this in another row' if elsewhere else ''}"
    return "not found", what, f"{key} does not have it"


def fit(place: list[str], cells: list[str]) -> tuple[int, bool]:
    """How many parts of a place a row names; of equal ones a row with numbers counts, so that no header wins."""
    return sum(any(same(part, cell) for cell in cells) for part in place), bool(numbers_in(" ".join(cells[1:])))


def column(place: list[str], header: list[str], row: list[str]) -> str | None:
    """The cell of a row under the column that a place names; None where the header names none, or has other columns."""
    under = [i for i, name in enumerate(header) if i and any(same(part, name) for part in place)]
    return row[under[0]] if len(under) == 1 and len(row) == len(header) and row is not header else None


def in_text(what: str, wanted: list, text: str) -> tuple[str, str, str]:
    """A value whose table or figure is not known, looked for in the whole text."""
    numbers = numbers_in(text)
    if all(number in numbers for number in wanted):
        return "confirmed", what, "somewhere in the text, so that it may be another number"
    return "not found", what, "nowhere in the text"


# -- pages -------------------------------------------------------------------------------------------------------------


def fetched(page: str) -> str:
    """The text of an address or a file."""
    if not re.match(r"https?://", page):
        path = Path(page)
        if not path.is_file():
            raise Misuse(f"no file {page}; --page takes an address (https://...) or a file")
        return path.read_text(encoding="utf-8", errors="replace")
    try:
        with urllib.request.urlopen(
            urllib.request.Request(page, headers={"User-Agent": "lowmem"}), timeout=TIMEOUT
        ) as r:
            return r.read(LARGEST).decode("utf-8", "replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Failed(
            f"cannot read {page}: {getattr(error, 'reason', error)}; --page takes another address or a file"
        ) from None


def read(page: str) -> tuple[dict[str, Float], str]:
    """({"Table 4": Float}, whole text) of a page; the first float of a label wins."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    found: dict[str, Float] = {}
    for shown in reader.floats:
        label = LABEL.match(shown.caption.strip())
        if label:
            found.setdefault(f"{label[1].replace('Fig.', 'Figure')} {label[2]}", shown)
    return found, " ".join(reader.text)


class Reader(html.parser.HTMLParser):
    """Collects the outermost <figure>s (and <table>s outside of one) with captions and rows; scripts and styles are none."""

    def __init__(self):
        super().__init__()
        self.floats, self.text = [], []
        self.open, self.depth, self.tag = None, 0, ""
        self.caption = self.cell = self.skipped = False

    def handle_starttag(self, tag, attributes):
        self.skipped = self.skipped or tag in ("script", "style")
        if self.open is None and tag in ("figure", "table"):
            self.open, self.depth, self.tag = Float(), 0, tag
            self.floats.append(self.open)
        if self.open is None:
            return
        self.depth += tag == self.tag
        self.caption = self.caption or tag in ("figcaption", "caption")
        if tag == "tr":
            self.open.rows.append([])
        if tag in ("td", "th"):
            if not self.open.rows:
                self.open.rows.append([])
            self.open.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.skipped = False
        if tag in ("figcaption", "caption"):
            self.caption = False
        if tag in ("td", "th"):
            self.cell = False
        if self.open is not None and tag == self.tag:
            self.depth -= 1
            if not self.depth:
                self.open, self.caption, self.cell = None, False, False

    def handle_data(self, data):
        if self.skipped:
            return
        self.text.append(data)
        if self.open is None:
            return
        self.open.words += f" {data}"
        if self.caption:
            self.open.caption += data
        elif self.cell:
            self.open.rows[-1][-1] += data


# -- words and numbers -------------------------------------------------------------------------------------------------


def numbers_in(text: str) -> set[float]:
    """Every number of a text, with thousands separators or without."""
    return {float(found.replace(",", "").replace("−", "-")) for found in NUMBER.findall(text)}


def same(part: str, cell: str) -> bool:
    """Whether a cell names what `at` names: the same letters and digits, whatever separates them."""
    plain = [re.sub(r"[^a-z0-9]+", "", word.lower()) for word in (part, cell)]
    return bool(plain[0]) and plain[0] == plain[1]


def is_number(value) -> bool:
    """Whether a published value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def listed(value) -> list:
    """A published value as a list."""
    return value if isinstance(value, list) else [value]
