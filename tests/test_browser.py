"""The page in headless Chromium: nothing is missing, and what a reader may do with it works, wide and on a phone."""

import functools
import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from synthetic import checkout, only, write_all
from test_report_parts import write_explorer

from lowmem import report
from lowmem.files import read_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IDS = ("adam_mini_table1", "adam_mini_fig10", "lomo_fig1", "lomo_table1", "extra_explorer", "extra_optimizers")
WIDTHS = (1200, 390)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

# Runs inside the page, uses it as a reader would, and tells the frame around it what it saw.
PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const find = (query) => document.querySelector(query), every = (query) => [...document.querySelectorAll(query)];
  const body = find("#verdicts tbody"), heads = every("#verdicts thead th");
  const visible = (rows) => [...rows].filter((row) => row.getBoundingClientRect().height > 0);
  const pick = (query, value) => { find(query).value = value; find(query).dispatchEvent(new Event("input")); };
  const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
  const found = {}, first = body.rows[0].id, numbers = () => [...body.rows].map((row) => row.cells[3].dataset.key);
  heads[3].firstChild.click();
  found.up = numbers(); found.upSays = heads[3].getAttribute("aria-sort");
  heads[3].firstChild.click();
  found.down = numbers(); found.downSays = heads[3].getAttribute("aria-sort");
  heads[0].firstChild.click();
  found.restored = body.rows[0].id === first && heads.filter((head) => head.hasAttribute("aria-sort")).length === 1;
  pick("[data-filter=paper]", "lomo"); found.lomo = visible(body.rows).map((row) => row.dataset.paper);
  pick("[data-filter=verdict]", "same_direction"); found.both = visible(body.rows).length;
  found.count = find("[data-count=verdicts]").textContent;
  pick("[data-filter=paper]", ""); pick("[data-filter=verdict]", "");
  pick("input[type=search]", "GPT-2 SIZE"); found.searched = visible(body.rows).map((row) => row.cells[0].textContent);
  pick("input[type=search]", "");
  find("button[data-paper=lomo][data-topic=cost]").click();
  found.glance = visible(body.rows).map((row) => `${row.dataset.paper} ${row.dataset.topic}`);
  pick("[data-filter=paper]", ""); pick("[data-filter=topic]", ""); found.all = visible(body.rows).length;

  const cells = () => visible(find("#extra_explorer-table tbody").rows);
  const shares = () => cells().map((row) => row.querySelector("[data-bar]").style.getPropertyValue("--share"));
  found.explorer = cells().map((row) => row.cells[0].textContent); found.shares = shares();
  found.hiddenColumn = find("#extra_explorer-table thead th:nth-child(2)").hidden;
  pick("[data-for=extra_explorer-table][data-filter=c1]", ""); found.moreModels = cells().length;
  found.shownColumn = !find("#extra_explorer-table thead th:nth-child(2)").hidden;
  found.optimizers = find("#extra_optimizers-table tbody").rows.length;

  found.pictures = every("figure svg").map((one) => [one.getBoundingClientRect().width, one.getBoundingClientRect().height]);
  const figure = find("#adam_mini_fig10 figure"), svg = figure.querySelector("svg"), tip = find("#tip");
  figure.focus(); press(figure, "ArrowRight"); press(figure, "ArrowRight"); found.tip = tip.textContent;
  const ring = svg.querySelector(".ring").getBoundingClientRect();
  press(figure, "ArrowDown"); found.otherTip = tip.textContent;
  const at = { clientX: ring.x + ring.width / 2, clientY: ring.y + ring.height / 2 };
  svg.dispatchEvent(new PointerEvent("pointermove", at)); found.pointed = tip.textContent;
  svg.dispatchEvent(new PointerEvent("pointerleave")); found.left = tip.textContent;
  find("#adam_mini_fig10 button.enlarge").click();
  found.large = find("dialog").open && find("dialog").contains(svg) && svg.getBoundingClientRect().width;
  find("dialog button").click();
  press(figure, "Enter"); found.target = decodeURIComponent(location.hash);
  found.opened = find("#runs").closest("details").open;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.width = innerWidth;
  found.unreachable = every("button, select, input, a[href], summary, figure").filter((one) => one.tabIndex < 0).length;
  setTimeout(() => { found.returned = figure.contains(svg); parent.postMessage(found, "*"); }, 50);
}, 50));
</script>
"""
FRAMES = """<!doctype html><title>[]</title>{frames}<script>
const found = [];
onmessage = ({{ data }}) => {{ found.push(data); document.title = JSON.stringify(found); }};
</script>"""


@functools.cache
def seen() -> tuple[str, dict[int, dict], list[dict]]:
    """(Chromium's messages, what the probe saw at each width, the claims), from one visit to a page of a few exhibits."""
    folder = Path(tempfile.mkdtemp(prefix="lowmem-browser-"))
    with pytest.MonkeyPatch.context() as patch:
        root = checkout(folder / "root")
        write_all(root)
        write_explorer(root)
        only(patch, *IDS)
        page = report.make(root, "laptop", {}, "so_far")
        claims = read_json(page.parent / "claims.json")
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frames = "".join(f'<iframe src="{probed}" width={width} height=900 style="border:0"></iframe>' for width in WIDTHS)
    (folder / "frames.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder}/profile", "--window-size=1400,2000", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=10000", "--dump-dom", f"file://{folder}/frames.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, flags=re.DOTALL)[1]
    found = {one["width"]: one for one in json.loads(html.unescape(title))}
    shutil.rmtree(folder, ignore_errors=True)
    return done.stderr, found, claims


@pytest.fixture(params=WIDTHS)
def page(request):
    messages, found, claims = seen()
    assert "CONSOLE" not in messages, messages
    assert sorted(found) == sorted(WIDTHS)
    return found[request.param], claims


def test_every_picture_is_there_and_nothing_runs_over_the_edge(page):
    found, _ = page
    assert len(found["pictures"]) == 2
    assert all(width > 300 and height > 100 for width, height in found["pictures"])
    assert found["overflow"] <= 0
    assert found["unreachable"] == 0  # by keyboard


def test_the_verdicts_are_sorted_and_say_how(page):
    found, _ = page
    numbers = [key for key in found["up"] if key]
    assert numbers == sorted(numbers, key=float) and len(numbers) > 3
    assert [key for key in found["down"] if key] == numbers[::-1]
    assert not any(found["up"][len(numbers) :]) and not any(found["down"][len(numbers) :])  # the empty ones come last
    assert (found["upSays"], found["downSays"], found["restored"]) == ("ascending", "descending", True)


def test_the_verdicts_are_filtered_by_paper_verdict_subject_and_word(page):
    found, claims = page
    lomo = [row for row in claims if row["paper"] == "lomo"]
    assert found["lomo"] == ["lomo"] * len(lomo)
    assert found["both"] == sum(row["verdict"] == "same_direction" for row in lomo)
    assert found["count"] == f"{found['both']} of {len(claims)} rows"
    assert found["searched"] and all("gpt-2 size" in text.lower() for text in found["searched"])
    assert len(found["searched"]) < len(claims)
    assert found["glance"] == ["lomo cost"] * len(lomo)  # both exhibits of LOMO here are about memory
    assert found["all"] == len(claims)


def test_the_explorer_shows_one_machine_and_its_bars_are_shares_of_the_largest(page):
    found, _ = page
    assert found["explorer"] == ["AdamW", "Adafactor", "Adam-mini", "Adam-mini in backward", "LOMO", "AdaLomo"]
    assert [round(float(share), 3) for share in found["shares"]] == [1, *[round(20 / 60, 3)] * 5]
    assert found["hiddenColumn"] and found["shownColumn"]  # what is chosen needs no column
    assert found["moreModels"] == 3 * len(found["explorer"])
    assert found["optimizers"] == 12


def test_points_are_read_by_keyboard_and_pointer_and_lead_to_their_run(page):
    found, _ = page
    name, x, y = found["tip"].split("\n")
    assert re.fullmatch(r".*: gpt2_sizes/\S+/seed\d", name)
    assert x.startswith("training tokens: ") and y.startswith("validation loss (nat per token): ")
    assert found["otherTip"] != found["tip"]
    assert found["pointed"] and found["left"] == ""
    assert re.fullmatch(r"#run-gpt2_sizes/\S+/seed\d", found["target"]) and found["opened"]


def test_a_figure_is_enlarged_and_put_back(page):
    found, _ = page
    assert found["large"] > 300 and found["returned"]
