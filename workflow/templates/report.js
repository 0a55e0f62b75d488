"use strict";
// Links the table of cells, the charts and the records. The page contains all data and loads nothing.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
// Numbers in ascending or descending order; missing ones are always last.
const ordered = (sign) => (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : sign * (a - b));
DataTable.type("measured", "order", { asc: ordered(1), desc: ordered(-1) });

const rows = [...$("cells").tBodies[0].rows];
const table = new DataTable("#cells", {
  order: [],
  autoWidth: false,
  pageLength: 25,
  paging: rows.length > 25,
  columnDefs: [{ targets: ".number", type: "measured" }, { targets: "_all", type: "string" }],
  layout: { topStart: "search", topEnd: "info", bottomStart: "paging", bottomEnd: rows.length > 25 ? "pageLength" : null },
  language: {
    search: "Filter",
    searchPlaceholder: $("cells").dataset.example,
    info: "_TOTAL_ of _MAX_ cells",
    infoEmpty: "0 of _MAX_ cells",
    infoFiltered: "",
    zeroRecords: "No cell has all these words.",
    lengthMenu: "_MENU_ cells a page",
  },
});

// currentColor follows the page's light or dark colours.
const lines = { domainColor: "currentColor", gridColor: "currentColor", tickColor: "currentColor" };
const words = { labelColor: "currentColor", titleColor: "currentColor", titleFontWeight: "normal" };
const config = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: { ...lines, ...words, gridOpacity: 0.15, domainOpacity: 0.4, tickOpacity: 0.4, labelFontSize: 12, titleFontSize: 12 },
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
  if (section !== "gains" && shown && !spec.data.values.some((row) => shown[row.id])) {
    figure.hidden = true;
    return;
  }
  if (figure.hidden) {
    await draw(chart);
    return;
  }
  await view.signal("shown", shown).signal("chosen", chosen).runAsync();
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

table.on("draw", () => {
  const ids = table.rows({ search: "applied" }).nodes().toArray().map((row) => row.dataset.id);
  shown = Object.fromEntries(ids.map((id) => [id, true]));
  update();
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
