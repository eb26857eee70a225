// Charts of the report. Everything shown comes from the page's JSON blocks; text from them reaches the page through textContent, or
// through `plain` where plotly would read it as its own markup.
"use strict";

const DATA = JSON.parse(document.getElementById("page-data").textContent);
const METRICS = new Map(DATA.metrics.map((metric) => [metric.key, metric]));
const NETS = new Map(DATA.nets.map((net) => [net.id, net]));
const MISSING = "not measured";
// Shape as well as colour tells the kinds apart; the colours are Okabe and Ito's, darkened or lightened to the page.
const KINDS = {
  search: { label: "searched", symbol: "circle", dash: "solid" },
  baseline: { label: "hand-designed", symbol: "diamond", dash: "dash" },
  control: { label: "random control", symbol: "square", dash: "dot" },
};

const known = (value) => typeof value === "number" && Number.isFinite(value);
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text) => (text.length > 40 ? `${text.slice(0, 39)}…` : text);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function significant(value, digits = 3) {
  if (value === 0) return "0";
  const decimals = Math.min(Math.max(digits - 1 - Math.floor(Math.log10(Math.abs(value))), 0), 20);
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function show(key, value) {
  if (!known(value)) return MISSING;
  const metric = METRICS.get(key) || { scale: 1, unit: "", decimals: null };
  const scaled = value * metric.scale;
  const text = metric.decimals === null ? significant(scaled) : scaled.toFixed(metric.decimals);
  return metric.unit ? `${text}\u00a0${metric.unit}` : text;
}

const axisTitle = (key) => {
  const metric = METRICS.get(key);
  return plain(metric.unit ? `${metric.label} (${metric.unit})` : metric.label);
};

function layout(extra) {
  const axis = { gridcolor: color("line"), zeroline: false, linecolor: color("line"), automargin: true, ticks: "outside", tickcolor: color("line") };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("text") },
    margin: { l: 60, r: 16, t: 10, b: 50 }, hovermode: "closest",
    hoverlabel: { bgcolor: color("panel"), bordercolor: color("line"), font: { color: color("text") }, align: "left" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function draw(element, traces, extra) {
  if (typeof Plotly === "undefined") {
    element.textContent = "This chart needs the file plotly.min.js beside the report; the tables hold the same figures.";
    element.classList.add("missing");
    return Promise.resolve();
  }
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  return Plotly.react(element, traces, layout(extra), config);
}

// Best attained `y` at every `x`: the non-dominated points from the best x on, drawn as steps ("hv": level until the next point, then up).
function staircase(nets, x, y) {
  const towards = [METRICS.get(x).direction, METRICS.get(y).direction];
  const points = nets.map((net) => net.values).filter((v) => known(v[x]) && known(v[y]));
  points.sort((a, b) => towards[0] * (a[x] - b[x]) || towards[1] * (a[y] - b[y]));
  const front = [];
  for (const point of points) {
    if (!front.length || towards[1] * (point[y] - front[front.length - 1][y]) < 0) front.push(point);
  }
  return front;
}

function hover(net, x, y) {
  const lines = [`<b>${plain(net.name)}</b> (${KINDS[net.kind].label})`];
  for (const key of new Set([y, x, "accuracy", "latency_ms", "peak_bytes", "file_bytes", "params", "macs"])) {
    if (!METRICS.has(key)) continue;
    let text = `${plain(METRICS.get(key).label)}: ${plain(show(key, net.values[key]))}`;
    if (key === "accuracy" && known(net.accuracyError)) text += ` ± ${(net.accuracyError * 100).toFixed(2)} (test sample)`;
    if (key === "latency_ms" && net.interval) text += ` [${net.interval.map((v) => significant(v)).join("–")}]`;
    lines.push(text);
  }
  return lines.join("<br>");
}

function errorBars(nets, key) {
  if (key !== "latency_ms") return undefined;
  const reach = (side) => nets.map((net) => (net.interval ? Math.max(side ? net.interval[1] - net.values[key] : net.values[key] - net.interval[0], 0) : 0));
  return { type: "data", symmetric: false, array: reach(1), arrayminus: reach(0), thickness: 1.5, width: 4 };
}

function rangeOf(values, log) {
  const list = values.map((v) => (log ? Math.log10(v) : v)).filter(Number.isFinite);
  if (!list.length) return undefined;
  const low = Math.min(...list);
  const high = Math.max(...list);
  const pad = (high - low || Math.abs(high) || 1) * 0.15;
  // A quantity that cannot be negative gets no negative half of an axis.
  return [log || low < 0 ? low - pad : Math.max(low - pad, 0), high + pad];
}

// Whether each point has room for its name: none of the names before it within a tenth of the width and a twentieth of the height.
function roomFor(points) {
  const span = [0, 1].map((axis) => Math.max(...points.map((p) => p[axis])) - Math.min(...points.map((p) => p[axis])) || 1);
  const named = [];
  return points.map((point) => {
    const free = named.every((other) => Math.abs(point[0] - other[0]) > span[0] / 10 || Math.abs(point[1] - other[1]) > span[1] / 20);
    if (free) named.push(point);
    return free;
  });
}

function netTraces(kind, nets, x, y, log) {
  const at = (points, key) => points.map((p) => (p.values || p)[key] * METRICS.get(key).scale);
  const look = { color: color(kind) };
  const front = staircase(nets, x, y);
  // Names stand on the better side of the front for searched networks, where nothing else can be, and on the other side for their rivals.
  const better = (kind === "search" ? 1 : -1);
  const side = [better * METRICS.get(y).direction > 0 ? "bottom" : "top", better * METRICS.get(x).direction > 0 ? "left" : "right"];
  const room = roomFor(nets.map((net) => [log ? Math.log10(net.values[x]) : net.values[x], net.values[y]]));
  const traces = [];
  if (kind !== "control") {
    traces.push({ type: "scatter", mode: "lines", x: at(front, x), y: at(front, y), line: { ...look, width: 2, shape: "hv", dash: KINDS[kind].dash },
      hoverinfo: "skip", showlegend: false });
  }
  const bars = (key) => {
    const found = errorBars(nets, key);
    return found ? { ...found, color: look.color } : undefined;
  };
  traces.push({
    type: "scatter", mode: "markers+text", name: KINDS[kind].label, x: at(nets, x), y: at(nets, y),
    customdata: nets.map((net) => net.id), text: nets.map((net, i) => (room[i] ? plain(short(net.name)) : "")), textposition: side.join(" "), textfont: { size: 11, color: look.color },
    hovertext: nets.map((net) => hover(net, x, y)), hovertemplate: "%{hovertext}<extra></extra>",
    marker: { ...look, size: 10, symbol: KINDS[kind].symbol, line: { color: color("page"), width: 1 } },
    error_x: bars(x), error_y: bars(y),
  });
  return traces;
}

function drawFront(element, { x, y, log, trials, selected, visible, passes }) {
  const traces = [];
  const [sx, sy] = [METRICS.get(x).scale, METRICS.get(y).scale];
  if (trials && DATA.trials.number.length) {
    const rows = DATA.trials.number.map((_, i) => i).filter((i) => passes((key) => DATA.trials.metrics[key][i]))
      .filter((i) => known(DATA.trials.metrics[x][i]) && known(DATA.trials.metrics[y][i]));
    if (rows.length) {
      traces.push({ type: "scatter", mode: "markers", name: "candidates tried (estimates)", x: rows.map((i) => DATA.trials.metrics[x][i] * sx),
        y: rows.map((i) => DATA.trials.metrics[y][i] * sy), text: rows.map((i) => `candidate ${plain(DATA.trials.number[i])}, estimate`),
        hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>", marker: { color: color("trial"), size: 5, opacity: 0.35 } });
    }
  }
  const drawn = DATA.nets.filter((net) => visible.has(net.id) && known(net.values[x]) && known(net.values[y]));
  for (const kind of ["baseline", "control", "search"]) {
    const nets = drawn.filter((net) => net.kind === kind);
    if (nets.length) traces.push(...netTraces(kind, nets, x, y, log));
  }
  const chosen = drawn.find((net) => net.id === selected);
  if (chosen) {
    traces.push({ type: "scatter", mode: "markers", x: [chosen.values[x] * sx], y: [chosen.values[y] * sy], hoverinfo: "skip", showlegend: false,
      marker: { symbol: "circle-open", size: 20, color: color("text"), line: { width: 2 } } });
  }
  const line = { color: color("bad"), width: 1.5, dash: "dot" };
  const shapes = [];
  const annotations = [];
  for (const { metric, bound } of DATA.limits) {
    const note = { text: plain(`limit ${show(metric, bound)}`), showarrow: false, font: { size: 11, color: color("bad") } };
    const across = bound * (METRICS.get(metric) || { scale: 1 }).scale;
    if (metric === x) {
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: across, x1: across, y0: 0, y1: 1, line });
      annotations.push({ ...note, xref: "x", yref: "paper", x: log ? Math.log10(across) : across, y: 0, xanchor: "right", yanchor: "bottom" });
    }
    if (metric === y) {
      shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: across, y1: across, line });
      annotations.push({ ...note, xref: "paper", yref: "y", x: 1, y: across, xanchor: "right", yanchor: "top" });
    }
  }
  const xaxis = { title: { text: axisTitle(x) }, type: log ? "log" : "linear", range: rangeOf(drawn.map((net) => net.values[x] * sx), log) };
  if (log) xaxis.dtick = "D2";
  return draw(element, traces, { xaxis, yaxis: { title: { text: axisTitle(y) }, range: rangeOf(drawn.map((net) => net.values[y] * sy), false) },
    shapes, annotations });
}

function drawLayers(element, net) {
  const timed = net.layers.some((layer) => known(layer.latency_us));
  const cost = (layer) => (timed ? layer.latency_us : layer.macs);
  const layers = net.layers.filter((layer) => known(cost(layer)));
  element.style.height = `${Math.max(10, Math.min(layers.length * 1.35, 200) + 5)}rem`;
  // Numbered, because names may repeat and plotly would draw namesakes on one line.
  const names = layers.map((layer, i) => plain(short(`${i + 1}  ${layer.name || layer.kind || "layer"}`)));
  const unit = timed ? "µs" : "MACs";
  return draw(element, [{
    type: "bar", orientation: "h", y: names, x: layers.map(cost), marker: { color: color("search") },
    text: layers.map((layer) => significant(cost(layer), 3)), textposition: "auto", cliponaxis: false,
    hovertext: layers.map((layer) => `${plain(layer.kind)} ${plain(shape(layer.in))} → ${plain(shape(layer.out))}`),
    hovertemplate: `%{y}<br>%{hovertext}<br>%{x:.4g} ${unit}<extra></extra>`,
  }], { xaxis: { title: { text: timed ? "time (µs)" : "multiply-accumulates (time not measured)" }, rangemode: "tozero" },
    yaxis: { autorange: "reversed", showgrid: false, tickmode: "linear", ticks: "" }, bargap: 0.25, margin: { l: 60, r: 40, t: 5, b: 45 } });
}

const shape = (sizes) => (Array.isArray(sizes) ? sizes.join("×") : MISSING);

function drawPrediction(element, key) {
  const points = DATA.predictions.filter((p) => p.metric === key && known(p.measured));
  const { scale } = METRICS.get(key) || { scale: 1 };
  const values = points.flatMap((p) => [p.predicted * scale, p.measured * scale]);
  const ends = rangeOf(values, false);
  return draw(element, [
    { type: "scatter", mode: "lines", x: ends, y: ends, line: { color: color("trial"), dash: "dash", width: 1.5 }, name: "exact", hoverinfo: "skip" },
    { type: "scatter", mode: "markers", x: points.map((p) => p.predicted * scale), y: points.map((p) => p.measured * scale), name: "network",
      text: points.map((p) => plain(p.model)), hovertemplate: "%{text}<br>predicted %{x:.4g}<br>measured %{y:.4g}<extra></extra>",
      marker: { color: color("search"), size: 9 } },
  ], { xaxis: { title: { text: "predicted" }, range: ends }, yaxis: { range: ends, title: { text: METRICS.has(key) ? `measured: ${axisTitle(key)}` : "measured" } } });
}

function drawSearch(element) {
  if (!DATA.curve) {
    element.textContent = "The trials give no hypervolume to draw.";
    element.classList.add("missing");
    return Promise.resolve();
  }
  return draw(element, [{
    type: "scatter", mode: "lines", x: DATA.curve.trials, y: DATA.curve.share.map((v) => v * 100), line: { color: color("search"), width: 2, shape: "hv" },
    hovertemplate: "after %{x} candidates: %{y:.1f} %<extra></extra>",
  }], { xaxis: { title: { text: "candidates tried" } }, yaxis: { title: { text: "hypervolume (% of last)" }, rangemode: "tozero" } });
}
