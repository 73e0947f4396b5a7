"use strict";
// What the page does beyond showing: tables are sorted and filtered, figures enlarged and their points read.
// Without this script everything can still be read.
const all = (query, root = document) => [...root.querySelectorAll(query)];
document.documentElement.classList.add("scripted");

// -- tables: a button in each header sorts, the controls above choose rows, some numbers are drawn as bars --
const key = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
const number = (text) => parseFloat(text.replaceAll(",", "").replace("−", "-"));
function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
}
function sort(table, column, down) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows], empty = (row) => key(row, column) === "";
  const filled = rows.filter((row) => !empty(row)).sort((a, b) => compare(key(a, column), key(b, column)));
  table.tBodies[0].append(...(down ? filled.reverse() : filled), ...rows.filter(empty));
}
function filter(table, controls) {
  let visible = 0;
  for (const row of table.tBodies[0].rows) {
    row.hidden = controls.some(({ value, dataset }) => value && (dataset.filter
      ? row.dataset[dataset.filter] !== value
      : !row.textContent.toLowerCase().includes(value.toLowerCase())));
    visible += !row.hidden;
  }
  for (const { value, dataset } of controls.filter(({ dataset }) => /^c\d+$/.test(dataset.filter))) {
    for (const row of table.rows) row.cells[dataset.filter.slice(1)].hidden = value !== ""; // the control says it already
  }
  const count = document.querySelector(`[data-count="${table.id}"]`);
  count.textContent = visible === table.tBodies[0].rows.length ? "" : `${visible} of ${table.tBodies[0].rows.length} rows`;
  bars(table);
}
function bars(table) { // by column, as a share of the largest that is shown
  const most = {};
  const cells = all("td[data-bar]", table).filter((cell) => !cell.parentElement.hidden && cell.textContent.trim());
  const size = (cell) => number(cell.textContent) || 0;
  for (const cell of cells) most[cell.cellIndex] = Math.max(most[cell.cellIndex] ?? 0, size(cell));
  for (const cell of cells) cell.style.setProperty("--share", size(cell) / (most[cell.cellIndex] || 1));
}
for (const table of all("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, column, head.getAttribute("aria-sort") === "ascending"));
  });
  const controls = all(`[data-for="${table.id}"]`);
  controls.forEach((control) => control.addEventListener("input", () => filter(table, controls)));
  if (controls.length) filter(table, controls);
  else bars(table);
}
const verdicts = document.getElementById("verdicts");
document.getElementById("sort").addEventListener("change", ({ target }) => sort(verdicts, target.value, false));
for (const button of all("[data-paper][data-topic]:is(button)")) {
  button.addEventListener("click", () => { // from "at a glance" to its rows
    for (const control of all('[data-for="verdicts"]')) control.value = button.dataset[control.dataset.filter] ?? "";
    filter(verdicts, all('[data-for="verdicts"]'));
    document.getElementById("board").scrollIntoView();
    document.querySelector('[data-for="verdicts"]').focus({ preventScroll: true });
  });
}

// -- figures: point at a mark, or step through them with the arrow keys, to read its values and its run --
const tip = document.getElementById("tip"), ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
ring.setAttribute("class", "ring");
ring.setAttribute("r", 5);
function points(figure) { // [[{left, top, text, run}, ...] for each line]
  return JSON.parse(figure.dataset.points).map((line) => line.at.map((point) => {
    const [place, x, y] = point.split("|"), [left, top] = place.split(" ").map(Number);
    const text = [line.name, `${line.x || "x"}: ${x}`, `${line.y || "y"}: ${y}`].filter(Boolean).join("\n");
    return { left, top, text, run: line.name.match(/[\w.+]+\/[\w.+-]+(\/seed\d+)?$/)?.[0] };
  }));
}
function show(svg, point) {
  ring.remove();
  tip.textContent = point?.text ?? "";
  if (!point) return;
  ring.setAttribute("cx", point.left);
  ring.setAttribute("cy", point.top);
  svg.append(ring);
  (svg.closest("dialog") ?? document.body).append(tip);
  const at = new DOMPoint(point.left, point.top).matrixTransform(svg.getScreenCTM());
  tip.style.left = `${Math.max(4, Math.min(at.x + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${at.y + 14 + tip.offsetHeight > innerHeight ? at.y - tip.offsetHeight - 12 : at.y + 14}px`;
}
function goTo(run) { // its row in the list of runs
  const row = all("#runs tr[id]").find((one) => one.id === `run-${run}` || one.id.startsWith(`run-${run}/`));
  if (!row) return false;
  dialog.close();
  row.closest("details").open = true;
  location.hash = row.id;
  return true;
}
const dialog = document.getElementById("large");
for (const figure of all("figure[data-points]")) {
  const svg = figure.querySelector("svg"), lines = points(figure);
  let line = 0, at = -1, near;
  const nearest = ({ clientX, clientY }) => {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());
    const distance = (point) => Math.hypot(point.left - x, point.top - y);
    return lines.flat().reduce((best, point) => distance(point) < (best ? distance(best) : 12) ? point : best, undefined);
  };
  svg.addEventListener("pointermove", (event) => { near = nearest(event); show(svg, near); });
  svg.addEventListener("pointerleave", () => show(svg));
  figure.addEventListener("blur", () => show(svg));
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Enter" && lines[line]?.[at]?.run) goTo(lines[line][at].run);
    if (!step || !lines.length) return;
    event.preventDefault();
    line = (line + step[0] + lines.length) % lines.length;
    at = Math.max(0, Math.min(at + step[1], lines[line].length - 1));
    show(svg, lines[line][at]);
  });
  const enlarge = () => {
    document.getElementById("large-title").textContent = figure.closest("article").querySelector("h3").textContent;
    dialog.append(svg);
    dialog.showModal();
    dialog.addEventListener("close", () => { show(svg); figure.append(svg); }, { once: true });
  };
  svg.addEventListener("click", (event) => {
    near = nearest(event);
    if (!(near?.run && goTo(near.run)) && !dialog.open) enlarge();
  });
  figure.closest("article").querySelector("button.enlarge").addEventListener("click", enlarge);
}
dialog.querySelector("button").addEventListener("click", () => dialog.close());
addEventListener("beforeprint", () => all("article details").forEach((one) => { one.open = true; }));
