"use strict";
// Links the table of cells, the charts and the records. The page contains all data and loads nothing.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const rows = [...$("cells").tBodies[0].rows];

// Texts in the order of a dictionary, with numbers in them by their size; missing values are always last.
const { compare } = new Intl.Collator("en", { numeric: true });
function sort(head) {
  const ascending = head.ariaSort !== "ascending";
  const sign = ascending ? 1 : -1;
  const key = (row) => row.cells[head.cellIndex].dataset.order;
  const order = "number" in head.dataset ? (a, b) => a - b : compare;
  for (const other of head.parentElement.cells) other.ariaSort = null;
  head.ariaSort = ascending ? "ascending" : "descending";
  rows.sort((a, b) => (key(a) && key(b) ? sign * order(key(a), key(b)) : !key(a) - !key(b)));
  $("cells").tBodies[0].append(...rows);
}

// Shows the rows with all words, and in the charts the same cells.
function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/);
  for (const row of rows) row.hidden = !words.every((word) => row.dataset.words.includes(word));
  const visible = rows.filter((row) => !row.hidden);
  $("count").textContent = `${visible.length} of ${rows.length} cells`;
  $("none").hidden = visible.length > 0;
  shown = Object.fromEntries(visible.map((row) => [row.dataset.id, true]));
  update();
}

// currentColor follows the page's light or dark colours.
const lines = { domainColor: "currentColor", gridColor: "currentColor", tickColor: "currentColor" };
const words = { labelColor: "currentColor", titleColor: "currentColor", titleFontWeight: "normal" };
const config = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: { ...lines, ...words, gridOpacity: 0.15, domainOpacity: 0.4, tickOpacity: 0.4, labelFontSize: 12, titleFontSize: 12, titlePadding: 8 },
  legend: { ...words, labelFontSize: 12 },
};
let shown = null;
let chosen = null;

function open(id) {
  const record = data.records[id];
  chosen = id;
  for (const row of rows) row.classList.toggle("open", row.dataset.id === id);
  $("record-title").textContent = `${record.title}: ${record.condition}`;
  $("record-file").textContent = record.file;
  $("record-body").textContent = [record.message, record.content && JSON.stringify(record.content, null, 1)]
    .filter(Boolean).join("\n\n");
  $("record").showModal();
  update();
}

async function draw(chart) {
  chart.element.parentElement.hidden = false; // Vega measures the width
  const axis = chart.spec.encoding[{ curves: "y", cost: "x" }[chart.section]];
  if (axis) {
    const choice = $(chart.section);
    Object.assign(axis, { field: choice.value, title: choice.selectedOptions[0].text });
  }
  // An interpreter evaluates Vega's expressions, because the page forbids eval. Vega warns of scales
  // with one value, which are no fault here.
  const { view } = await vegaEmbed(chart.element, chart.spec, {
    mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, config, logLevel: vega.Error,
  });
  view.addEventListener("click", (event, item) => item?.datum?.id && open(item.datum.id));
  chart.view = view;
  await show(chart);
}

async function show(chart) {
  const { element, section, spec, view } = chart;
  const figure = element.parentElement;
  figure.hidden = section !== "gains" && shown && !spec.data.values.some((row) => shown[row.id]);
  if (figure.hidden) return;
  await view.signal("width", element.clientWidth).signal("shown", shown).signal("chosen", chosen).runAsync();
  for (const point of element.querySelectorAll("path[aria-label]")) {
    if (point.__data__?.datum?.id) {
      point.setAttribute("tabindex", 0);
      point.setAttribute("role", "button");
    }
  }
}

const charts = data.charts.map((chart, place) => ({ ...chart, element: $(`chart-${place}`) }));
const update = () => charts.filter((chart) => chart.view).forEach(show);
const ready = Promise.all(charts.map(draw));

$("filter").addEventListener("input", filter);
$("cells").tHead.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (head) sort(head);
});
$("cells").tBodies[0].addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-id]");
  if (row) open(row.dataset.id);
});
document.addEventListener("keydown", (event) => {
  const id = event.target.__data__?.datum?.id;
  if (id && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    open(id);
  }
});
for (const section of ["curves", "cost"]) {
  $(section)?.addEventListener("change", () => charts.filter((chart) => chart.section === section).forEach(draw));
}
$("close").addEventListener("click", () => $("record").close());
