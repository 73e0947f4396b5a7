import html.parser
import re
from urllib.parse import unquote

import pytest
from synthetic import ROOT, checkout, only, record, write_losses, write_state_memory

from lowmem.errors import Failed
from lowmem.exhibits import adam_mini_table1
from lowmem.files import read_json, read_yaml
from lowmem.pipeline import experiments, planning
from lowmem.reporting import claims, exhibit, report


@pytest.fixture(scope="module")
def full(everything):
    """A checkout with all records and the page made from them."""
    root, _ = everything
    path = root / "reports/laptop/so_far/index.html"
    return root, path, path.read_text(encoding="utf-8")


def page_of(root, *ids):
    """The page after making these exhibits alone, and the claims."""
    for id in ids:
        exhibit.make(root, id, "laptop")
    claims.gather(root, "laptop")
    return report.make(root, "laptop", {}).read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """All start tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def test_every_exhibit_and_every_claim_appears(full):
    root, _, page = full
    elements = Elements(page)
    ids = [a["id"] for _, a in elements.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(planning.exhibits(root)) <= set(ids)
    assert {f"claim-{one['id']}" for one in claims.load(root)} <= set(ids)
    order = [a["id"] for a in elements.all("article")]
    assert order == list(planning.exhibits(root))


def test_inner_links_lead_somewhere(full):
    elements = Elements(full[2])
    ids = {a["id"] for _, a in elements.tags if "id" in a}
    targets = [a["href"][1:] for a in elements.all("a", "use") if a.get("href", "").startswith("#")]
    targets += [a["xlink:href"][1:] for a in elements.all("use") if "xlink:href" in a]
    targets += re.findall(r"url\(#([^)]+)\)", full[2])
    assert targets and set(targets) <= ids


def test_the_page_needs_nothing_from_outside(full):
    elements = Elements(full[2])
    for tag, attributes in elements.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            target = attributes.get(name)
            if target is None or target.startswith(("#", "data:")):
                continue
            assert tag == "a" and re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", target), (tag, target)
    assert not re.search(r"@import|url\((?!#)", full[2])
    assert "default-src 'none'" in full[2]


def test_data_links_hold_the_files(full):
    root, path, page = full
    links = {a["download"]: a["href"] for a in Elements(page).all("a") if "download" in a}
    for id, header in planning.exhibits(root).items():
        folder = path.parent / ("figures" if header["kind"] == "figure" else "tables")
        endings = ["csv", *(["svg"] if header["kind"] == "figure" else [])]
        for ending in endings:
            text = unquote(links[f"{id}.{ending}"].split(",", 1)[1])
            assert text == (folder / f"{id}.{ending}").read_text(encoding="utf-8")
    points = unquote(links["adam_mini_fig10_points.csv"].split(",", 1)[1]).splitlines()
    assert points[0].startswith("model,optimizer,seed,tokens") and len(points) > 50


def test_pictures_are_labelled_and_tables_have_headers(full):
    elements = Elements(full[2])
    pictures = elements.all("svg")
    assert len(pictures) == sum(header["kind"] == "figure" for header in planning.exhibits(full[0]).values())
    assert all(a["role"] == "img" and a["aria-label"] and "viewbox" in a for a in pictures)
    assert elements.all("th") and all(a.get("scope") in ("col", "row") for a in elements.all("th"))
    assert elements.all("html")[0]["lang"] == "en"
    assert any(a.get("name") == "viewport" for a in elements.all("meta"))
    assert "focus-visible" in full[2] and "prefers-color-scheme: dark" in full[2] and "@media print" in full[2]


def test_pictures_take_the_text_colour_of_the_page(full):
    inside = "".join(re.findall(r"<svg.*?</svg>", full[2], flags=re.DOTALL))
    assert "currentColor" in inside and "#6a737d" not in inside and "#000000" not in inside


def test_source_tags_that_the_page_uses_are_explained(full):
    words = "".join(Elements(full[2]).words)
    assert "readme-image-vector: curve coordinates" in words and "memory: recalled" in words
    shown = [read_json(path) for path in full[1].parent.glob("*/*.json")]
    used = [value["source"] for one in shown for value in one["published"]]
    used += [claim["published"]["source"] for claim in claims.load(full[0])]
    for name in ("adam_mini", "lomo"):
        for tag, meaning in read_yaml(ROOT / f"data/published/{name}.yaml")["sources"].items():
            if not any(tag in source for source in used):
                assert f"{tag}: {meaning}" not in words


def test_numbers_on_the_page_are_those_of_the_csv(full):
    words = "".join(Elements(full[2]).words)
    for id, header in planning.exhibits(full[0]).items():
        folder = "figures" if header["kind"] == "figure" else "tables"
        for row in read_json(full[1].parent / folder / f"{id}.json")["rows"]:
            assert all(cell in words for cell in row)


def test_text_from_records_and_rules_is_escaped(tmp_path, monkeypatch):
    root, bad = checkout(tmp_path), "</td><script>alert(1)</script>\"'<img src=http://x.example/y>"
    write_state_memory(root, "laptop")
    write_losses(root, "laptop")
    run = experiments.runs(root, "gpt2_sizes", "laptop")[0]
    record(root, run, {}, status="failed", reason=bad, device=bad, packages={bad: bad})
    monkeypatch.setitem(adam_mini_table1.MODELS, "llama2_7b", (bad, "Llama2-7B"))
    loaded = claims.load(root)
    loaded[0]["statement"] = loaded[0]["reason"] = loaded[0]["published"]["source"] = bad
    monkeypatch.setattr(claims, "load", lambda root: loaded)
    page = page_of(root, "adam_mini_table1", "adam_mini_fig10", loaded[0]["exhibit"])
    elements = Elements(page)
    assert len(elements.all("script")) == 1 and not elements.all("img")
    assert "".join(elements.words).count("alert(1)") >= 4
    assert "<script>alert" not in page


def test_without_any_record_the_page_stands_and_says_not_run(tmp_path):
    root = checkout(tmp_path)
    page = report.make(root, "smoke", {}, "so_far").read_text(encoding="utf-8")
    runs = {id for id, header in planning.exhibits(root).items() if planning.shown_by(header, "smoke")}
    asked = {claim["id"] for claim in claims.load(root) if claim["exhibit"] in runs}  # others compare published numbers
    verdicts = {
        a["id"].removeprefix("claim-"): a["data-verdict"] for a in Elements(page).all("tr") if "data-verdict" in a
    }
    assert asked and {verdicts[id] for id in asked} == {"not_run"}
    assert set(verdicts.values()) <= {"not_run", "inconclusive"}
    assert "not run: no record" in page and "no run yet" in page
    assert "decides nothing" in page


def test_a_broken_exhibit_is_said_and_the_others_stand(tmp_path, monkeypatch):
    root = checkout(tmp_path)
    write_state_memory(root, "laptop")
    only(monkeypatch, "adam_mini_table1", "lomo_table1")
    report.make(root, "laptop", {}, "so_far")
    monkeypatch.setattr(adam_mini_table1, "render", lambda *_: [][0])
    path = report.make(root, "laptop", {}, "so_far")
    page = path.read_text(encoding="utf-8")
    assert "IndexError" in page and "12.55" in page
    assert not (path.parent / "tables/adam_mini_table1.json").exists()
    rows = {row["id"]: row for row in read_json(path.parent / "claims.json")}
    assert rows["adam_mini_halves_state"]["verdict"] == "not_run"


def test_so_far_leaves_the_finished_report_alone(full):
    root, path, _ = full
    assert path == root / "reports/laptop/so_far/index.html"
    assert [p.name for p in (root / "reports/laptop").iterdir()] == ["so_far"]


def test_the_full_report_reads_files_and_renders_nothing(tmp_path, monkeypatch):
    root = checkout(tmp_path)
    write_state_memory(root, "laptop")
    with pytest.raises(Failed, match="--so-far"):
        report.make(root, "laptop", {})
    exhibit.make(root, "lomo_table1", "laptop")
    claims.gather(root, "laptop")
    monkeypatch.setattr(exhibit, "make", None)
    page = report.make(root, "laptop", {}).read_text(encoding="utf-8")
    assert "12.55" in page and "not run: this exhibit was not made" in page


def rows(*verdicts, paper="lomo"):
    keys = {"paper": paper, "decides": ["paper"], "statement": "Water is wet."}
    return [{**keys, "verdict": verdict, "tier": "laptop"} for verdict in verdicts]


def test_summary_is_three_sentences_counted_from_the_verdicts():
    runs = [{"status": "done"}, {"status": "missing"}]
    found = report.summary(rows("reproduced", "same_direction", "contradicted", "not_run"), runs, "laptop")
    assert len(found) == 3
    assert (
        "4 claims, checked at tier laptop: " in found[0] and "1 reproduced" in found[0] and "1 contradicted" in found[0]
    )
    assert "LOMO: 1 of 4 hold and 1 in direction" in found[1] and "“Water is wet”" in found[1]
    lent = report.summary(rows("reproduced", "not_run"), runs, "overnight")[0]
    assert "checked at tier overnight (2 of them by runs of tier laptop, which it takes over)" in lent
    assert "1 of 2 planned runs" in found[2] and "tier paper" in found[2]
    assert "decides nothing" in report.summary(rows("inconclusive"), runs, "smoke")[2]
    assert "may decide every claim" in report.summary(rows("reproduced"), runs, "paper")[2]


def test_what_a_small_tier_finds_on_the_other_side_is_shown_and_called_no_contradiction(tmp_path):
    root = checkout(tmp_path)
    write_losses(root, "laptop", gap=0.5, early=0.6)
    page = page_of(root, "adam_mini_fig10")
    summary = re.search(r'id="summary">(.*?)</p>', page, flags=re.DOTALL)[1]
    assert "opposite here" in summary and "none is contradicted" in summary
    row = next(a for a in Elements(page).all("tr") if a.get("id") == "claim-adam_mini_gpt2_on_par")
    assert row["data-verdict"] == "opposite_here"
