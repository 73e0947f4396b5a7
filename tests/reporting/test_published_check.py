"""`lowmem published check` on pages made for the test and served here: what stands in them is known."""

import functools
import http.server
import threading

import pytest
from synthetic import ROOT

from lowmem.cli import main
from lowmem.errors import Failed, Misuse
from lowmem.files import read_yaml
from lowmem.reporting import published_check

TABLE4 = read_yaml(ROOT / "data/published/adam_mini.yaml")["items"]["adam_mini.table4"]
CELLS = {(v["at"]["size"], v["at"]["optimizer"]): v["value"] for v in TABLE4["values"] if v["what"] == "perplexity"}


def page(cells: dict, label: str = "Table 4", more: str = "") -> str:
    """A paper with one table of perplexities in the form that arXiv gives its HTML."""
    rows = "".join(
        f"<tr><th>{size}</th><td>{optimizer}</td><td>{value:,.3f}</td></tr>"
        for (size, optimizer), value in cells.items()
    )
    return (
        f"<html><head><script>let tokens = [40.795]</script></head><body><p>Some words. {more}</p>"
        f'<figure class="ltx_table"><figcaption><span>{label}: </span>Perplexity of six models.</figcaption>'
        f"<table><thead><tr><th>size</th><th>optimizer</th><th>perplexity</th></tr></thead>{rows}</table></figure>"
        "</body></html>"
    )


@pytest.fixture
def served(tmp_path):
    """A function text -> address of a server on this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def put(text: str) -> str:
        (tmp_path / "paper.html").write_text(text, encoding="utf-8")
        return f"http://127.0.0.1:{server.server_port}/paper.html"

    yield put
    server.shutdown()
    server.server_close()


def verdicts(address: str) -> dict[str, tuple[str, str]]:
    """{what: (verdict, detail)} of the perplexities of Table 4."""
    found = published_check.check(ROOT, "adam_mini", address)
    return {what: (verdict, detail) for verdict, what, detail in found if ", perplexity =" in what}


def test_every_cell_that_stands_in_its_row_is_confirmed(served):
    found = verdicts(served(page(CELLS)))
    assert len(found) == len(CELLS) == 12
    assert {verdict for verdict, _ in found.values()} == {"confirmed"}
    assert all("its row" in detail for _, detail in found.values())


def test_a_cell_with_another_number_is_told_with_the_row_that_stands_there(served):
    found = verdicts(served(page({**CELLS, ("39M", "AdamW"): 41.5})))
    wrong = {what: detail for what, (verdict, detail) in found.items() if verdict != "confirmed"}
    assert list(wrong) == ["Table 4: 39M, 1.02, AdamW, perplexity = 40.795"]
    assert "41.5" in next(iter(wrong.values()))
    assert next(verdict for what, (verdict, _) in found.items() if what in wrong) == "other"


def test_a_number_in_the_row_of_another_optimizer_does_not_confirm(served):
    turned = {(size, {"AdamW": "Adam-mini", "Adam-mini": "AdamW"}[o]): value for (size, o), value in CELLS.items()}
    assert {verdict for verdict, _ in verdicts(served(page(turned))).values()} == {"other"}


def test_without_the_table_nothing_is_confirmed_by_scripts_or_by_a_number_that_looks_alike(served):
    found = verdicts(served(page({("39M", "AdamW"): 140.795}, label="Table 9")))
    assert {verdict for verdict, _ in found.values()} == {"not found"}
    assert all("no Table 4 on the page" in detail for _, detail in found.values())


def test_a_number_that_moved_to_another_table_is_said_to_stand_in_the_text(served):
    found = verdicts(served(page(CELLS, label="Table 9")))
    assert {verdict for verdict, _ in found.values()} == {"confirmed"}
    assert all("may be another number" in detail for _, detail in found.values())


def test_the_command_prints_a_line_for_each_number_and_the_counts(served, capsys):
    assert main(["published", "check", "adam_mini", "--page", served(page(CELLS))]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("adam_mini: ") and last.endswith(f"of {len(lines)} numbers")
    counted = sum(line.startswith("confirmed") for line in lines)
    assert f"{counted} confirmed" in last and counted >= 12


def test_words_and_the_numbers_of_others_are_not_looked_for():
    for paper, (name, prefix) in published_check.PAPERS.items():
        items = read_yaml(ROOT / f"data/published/{name}.yaml")["items"]
        values = [v for id, item in items.items() if id.startswith(prefix) for v in item["values"]]
        kept = [value for value in values if published_check.sought(value)]
        assert kept, paper
        assert all(value["origin"] == "paper" for value in kept)


def test_numbers_are_read_with_separators_signs_and_exponents():
    assert published_check.numbers_in("1,234.5 and −0.02, 6e-4; v1.1; Llama2") == {1234.5, -0.02, 6e-4}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("adam_minni", None), Misuse, "did you mean 'adam_mini'"),
        (("adam_mini", "nothing.html"), Misuse, "no file nothing.html"),
        (("adam_mini", "http://127.0.0.1:9/paper.html"), Failed, "cannot read http://127.0.0.1:9/paper.html"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        published_check.check(ROOT, *arguments)
    assert "\n" not in str(caught.value)


def test_a_page_without_tables_is_refused(served):
    with pytest.raises(Failed, match="no table or figure on this page"):
        published_check.check(ROOT, "lomo", served("<html><body>Please log in.</body></html>"))


def test_where_optimizers_are_columns_a_cell_is_looked_for_under_its_own(served):
    def table(adamw: str, mini: str) -> str:
        head = "<tr><th>Model</th><th>AdamW</th><th>Adam-mini</th></tr>"
        return (
            "<figure><figcaption>Table 1: Memory.</figcaption><table>"
            f"{head}<tr><td>Llama2-7B</td><td>{adamw}</td><td>{mini}</td></tr></table></figure>"
        )

    def found(text):
        rows = published_check.check(ROOT, "adam_mini", served(text))
        wanted = [("7B, AdamW, state_memory = 53.92", "7B, v1.0"), ("7B, Adam-mini, state_memory = 26.96", "7B, v1.0")]
        return [next(v for v, what, _ in rows if name in what and old not in what) for name, old in wanted]

    assert found(table("53.92GB", "26.96 GB")) == ["confirmed", "confirmed"]
    assert found(table("26.96", "53.92")) == ["other", "other"]


def test_adalomos_tables_are_looked_for_by_their_number(served):
    text = "<figure><figcaption>Table 2: Tests.</figcaption><table><tr><td>LoRA</td><td>99.9</td></tr></table></figure>33.5"
    rows = published_check.check(ROOT, "adalomo", served(text))
    assert next(v for v, what, _ in rows if "7B, LoRA, MMLU" in what) == "other"
