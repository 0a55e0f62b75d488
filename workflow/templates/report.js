"use strict";
// A table of the study's cells to sort and filter, their curves, accuracy against cost, and the record
// of each. The page contains all data and loads nothing.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = [
  "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#666666", "#000000",
  "#9467bd", "#bcbd22", "#17becf", "#e377c2", "#2f4b7c", "#a05195", "#ff7c43", "#7f9c3f", "#b15928",
];
const attentions = [...new Set(data.cells.map((cell) => cell.attention))];
const colour = (cell) => COLOURS[attentions.indexOf(cell.attention) % COLOURS.length];
const state = { sort: "", down: false, shown: data.cells, open: null };

const text = (value, decimals) =>
  value === null || value === undefined || value === "" ? "--"
    : typeof decimals !== "number" ? String(value) : Number(value).toFixed(decimals);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Missing values are always last.
function compare(a, b) {
  const [x, y] = [a[state.sort], b[state.sort]];
  if (x === y) return 0;
  if (x === null) return 1;
  if (y === null) return -1;
  const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
  return state.down ? -order : order;
}

function matches(cell) {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = data.columns.map((column) => text(cell[column.key])).join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}

function drawTable() {
  state.shown = data.cells.filter(matches);
  if (state.sort) state.shown.sort(compare);
  $("count").textContent = `${state.shown.length} of ${data.cells.length} cells`;
  for (const head of document.querySelectorAll("#cells th")) {
    const sorted = head.dataset.key === state.sort;
    head.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
  }
  $("cells").tBodies[0].replaceChildren(...state.shown.map((cell) => {
    const row = element("tr", { "data-key": cell.key });
    row.classList.toggle("open", cell === state.open);
    data.columns.forEach((column, place) => {
      const value = text(cell[column.key], column.decimals);
      const content = place ? value : element("button", { type: "button" }, value);
      row.append(element("td", {}, content));
    });
    row.addEventListener("click", () => open(cell));
    return row;
  }));
}

// Draw axes with round numbers; return the functions from values to positions in the plot.
function frame(drawing, xs, ys, titles, log) {
  const [width, height, left, right, top, bottom] = [560, 320, 52, 12, 10, 42];
  const range = (values, pad) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const more = pad * (high - low || Math.abs(high) || 1);
    return [low - more, high + more];
  };
  const scaled = (value) => (log ? Math.log10(value) : value);
  const [x0, x1] = range(xs.map(scaled), 0.04);
  const [y0, y1] = range(ys, 0.06);
  const x = (value) => left + ((scaled(value) - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
  const step = (low, high) => {
    const raw = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(raw));
    return [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  };
  const ticks = (low, high) => {
    const by = step(low, high);
    const first = Math.ceil(low / by);
    return Array.from({ length: Math.floor(high / by) - first + 1 }, (_, k) => (first + k) * by);
  };
  const label = (value) => String(Number(value.toPrecision(6)));
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.replaceChildren();
  for (const tick of ticks(y0, y1)) {
    drawing.append(shape("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }));
    drawing.append(shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, label(tick)));
  }
  const powers = ticks(x0, x1).map((t) => (log ? Number((10 ** t).toPrecision(2)) : t));
  for (const tick of powers) {
    drawing.append(shape("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, label(tick)));
  }
  drawing.append(shape("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, titles[0]));
  drawing.append(shape("text", {
    transform: `translate(12 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle",
  }, titles[1]));
  return { x, y };
}

function drawPoints() {
  const cost = $("cost").value;
  const measured = state.shown.filter((cell) => cell.top1_error !== null && cell[cost] !== null);
  const drawing = $("points");
  if (!measured.length) {
    drawing.replaceChildren(shape("text", { x: 20, y: 40 }, "nothing measured"));
    return;
  }
  const title = cost === "macs" ? "multiply-accumulates (millions)" : "parameters (millions)";
  const at = frame(drawing, measured.map((cell) => cell[cost] / 1e6),
    measured.map((cell) => 100 - cell.top1_error), [title, "top-1 accuracy (%)"], true);
  for (const cell of measured) {
    const point = shape("circle", {
      cx: at.x(cell[cost] / 1e6), cy: at.y(100 - cell.top1_error), r: cell === state.open ? 8 : 5,
      fill: colour(cell), tabindex: 0, role: "button", "data-key": cell.key,
      "aria-label": `${cell.model}, seed ${cell.seed}`,
    }, shape("title", {}, `${cell.model}, seed ${cell.seed}: ${(100 - cell.top1_error).toFixed(2)} %`));
    point.addEventListener("click", () => open(cell));
    point.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open(cell);
      }
    });
    drawing.append(point);
  }
}

function drawCurves() {
  const metric = $("metric").value;
  const shown = state.shown.filter((cell) => data.curves[cell.id]);
  const drawing = $("curves");
  if (!shown.length) {
    drawing.replaceChildren(shape("text", { x: 20, y: 40 }, "nothing measured"));
    return;
  }
  const curves = shown.map((cell) => data.curves[cell.id]);
  const at = frame(drawing, curves.flatMap((curve) => curve.epoch),
    curves.flatMap((curve) => curve[metric]), ["epoch", $("metric").selectedOptions[0].text], false);
  shown.forEach((cell, place) => {
    const { epoch, [metric]: values } = curves[place];
    const points = epoch.map((e, k) => `${at.x(e)},${at.y(values[k])}`).join(" ");
    const line = shape("polyline", {
      points, fill: "none", stroke: colour(cell), "stroke-width": cell === state.open ? 4 : 1.5,
      opacity: state.open && cell !== state.open ? 0.35 : 0.9, "data-key": cell.key,
    }, shape("title", {}, `${cell.model}, seed ${cell.seed}`));
    line.addEventListener("click", () => open(cell));
    drawing.append(line);
  });
}

function drawLegend() {
  const shown = new Set(state.shown.map((cell) => cell.attention));
  $("legend").replaceChildren(...attentions.filter((name) => shown.has(name)).map((name) => {
    const cell = data.cells.find((other) => other.attention === name);
    const dot = element("span", { class: "dot", style: `background: ${colour(cell)}` });
    return element("span", {}, dot, cell.attention_label);
  }));
}

function open(cell) {
  state.open = cell;
  const record = data.records[cell.id];
  $("record").hidden = false;
  $("record-title").textContent = `${cell.model}, seed ${cell.seed}: ${cell.condition}`;
  $("record-file").textContent = record ? record.file : `no record: ${cell.state.replace("_", " ")}`;
  $("record-body").textContent = [cell.message, record && JSON.stringify(record.content, null, 1)].filter(Boolean).join("\n\n");
  draw();
}

function draw() {
  drawTable();
  drawPoints();
  drawCurves();
  drawLegend();
}

for (const head of document.querySelectorAll("#cells th")) {
  head.querySelector("button").addEventListener("click", () => {
    state.down = state.sort === head.dataset.key && !state.down;
    state.sort = head.dataset.key;
    drawTable();
  });
}
$("filter").addEventListener("input", draw);
$("cost").addEventListener("change", drawPoints);
$("metric").addEventListener("change", drawCurves);
$("close").addEventListener("click", () => {
  state.open = null;
  $("record").hidden = true;
  draw();
});
draw();
