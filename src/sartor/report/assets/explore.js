// The reader's choices: axes, filter, preset, network. One state, one `update` that redraws what depends on it.

const state = { selected: null, log: null, bounds: new Map(), reason: "" };
const find = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

function element(name, text, attributes = {}, children = []) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- filter -------------------------------------------------------------------------------------------------------------------------
// Bounds are kept in the unit shown. The tolerance forgives the rounding of a value that went through a text field.
function within(key, value) {
  const metric = METRICS.get(key);
  const bound = state.bounds.get(key);
  return metric.direction * (value * metric.scale - bound) <= 1e-9 * Math.abs(bound);
}
const netPasses = (net) => [...state.bounds.keys()].every((key) => known(net.values[key]) && within(key, net.values[key]));
const trialPasses = (read) => [...state.bounds.keys()].every((key) => !known(read(key)) || within(key, read(key)));

function stops(key) {
  const metric = METRICS.get(key);
  const values = [...new Set(DATA.nets.map((net) => net.values[key]).filter(known))];
  return values.sort((a, b) => metric.direction * (a - b)).map((value) => Number((value * metric.scale).toPrecision(12)));
}

function setBound(key, bound) {
  if (known(bound)) state.bounds.set(key, bound);
  else state.bounds.delete(key);
  const field = find(`filter-${key}`);
  if (Number(field.value || NaN) !== bound) field.value = known(bound) ? String(bound) : "";
  const slide = find(`slide-${key}`);
  const list = stops(key);
  const metric = METRICS.get(key);
  const place = known(bound) ? list.findLastIndex((stop) => metric.direction * (stop - bound) <= 1e-9 * Math.abs(bound)) : list.length - 1;
  slide.value = String(Math.max(place, 0));
  slide.setAttribute("aria-valuetext", known(bound) ? `${bound} ${metric.unit}` : "any");
}

function prepareFilter() {
  for (const slide of all("[data-slide]")) {
    const key = slide.dataset.slide;
    const list = stops(key);
    slide.max = String(Math.max(list.length - 1, 0));
    slide.disabled = list.length < 2;
    setBound(key, NaN);
    slide.addEventListener("input", () => {
      const place = Number(slide.value);
      setBound(key, place === list.length - 1 ? NaN : list[place]);
      update();
    });
    find(`filter-${key}`).addEventListener("input", (event) => {
      setBound(key, event.target.value === "" ? NaN : Number(event.target.value));
      update();
    });
  }
  find("filter-clear")?.addEventListener("click", () => {
    for (const key of METRICS.keys()) setBound(key, NaN);
    update();
  });
  find("filter-limits")?.addEventListener("click", () => {
    for (const { metric, bound } of DATA.limits) {
      if (METRICS.has(metric)) setBound(metric, Number((bound * METRICS.get(metric).scale).toPrecision(12)));
    }
    update();
  });
}

// ---- one network --------------------------------------------------------------------------------------------------------------------
function layerTable(net) {
  const total = net.layers.reduce((sum, layer) => sum + (known(layer.latency_us) ? layer.latency_us : 0), 0);
  const figure = (value, digits) => (known(value) ? significant(value, digits) : MISSING);
  const whole = (value) => (known(value) ? value.toLocaleString("en-US") : MISSING);
  const columns = [
    ["#", (_, i) => String(i + 1)], ["Layer", (l) => l.name || MISSING], ["Kind", (l) => l.kind || MISSING], ["In", (l) => shape(l.in)],
    ["Out", (l) => shape(l.out)], ["Kernel", (l) => whole(l.kernel)], ["Stride", (l) => whole(l.stride)], ["Groups", (l) => whole(l.groups)],
    ["Activation", (l) => l.act || "none"], ["MACs", (l) => whole(l.macs)], ["Parameters", (l) => whole(l.params)],
    ["Time (µs)", (l) => figure(l.latency_us, 3)], ["Share", (l) => (known(l.latency_us) && total ? `${((100 * l.latency_us) / total).toFixed(1)} %` : MISSING)],
  ];
  const textual = new Set(["Layer", "Kind", "Activation"]);
  const side = (title) => (textual.has(title) ? {} : { class: "number" });
  const head = element("tr", null, {}, columns.map(([title]) => element("th", title, { scope: "col", ...side(title) })));
  const rows = net.layers.map((layer, i) => element("tr", null, {}, columns.map(([title, read]) => element("td", read(layer, i), side(title)))));
  const label = `Layers of ${net.name}`;
  const table = element("table", null, {}, [element("caption", label), element("thead", null, {}, [head]), element("tbody", null, {}, rows)]);
  return element("div", null, { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, [table]);
}

function timeWords(net) {
  if (!net.layers.length) return "Its layers were not recorded.";
  const times = net.layers.map((layer) => layer.latency_us).filter(known);
  if (!times.length) return `${net.layers.length} layers; their times were not measured, so the chart shows multiply-accumulates.`;
  const sum = times.reduce((a, b) => a + b, 0) / 1000;
  const measured = net.values.latency_ms;
  const heaviest = net.layers.filter((l) => known(l.latency_us)).reduce((a, b) => (b.latency_us > a.latency_us ? b : a));
  const gap = known(measured) ? ` The whole network measured ${show("latency_ms", measured)}: layers are timed alone, so the sum differs.` : "";
  return `${net.layers.length} layers; their times sum to ${significant(sum)} ms. The slowest is ${heaviest.name || heaviest.kind}, `
    + `with ${((heaviest.latency_us / 10) / sum).toFixed(0)} % of it.${gap}`;
}

function details(net) {
  const facts = [];
  const fact = (title, text) => facts.push(element("dt", title), element("dd", text));
  for (const [key, metric] of METRICS) {
    let text = show(key, net.values[key]);
    if (key === "accuracy" && !net.tested) text += " on validation data; not tested yet";
    else if (key === "accuracy" && known(net.accuracyError)) text += ` (± ${(net.accuracyError * 100).toFixed(2)} points, 95 % interval of the test sample)`;
    if (key === "latency_ms" && net.interval) text += ` (interval of the median ${net.interval.map((v) => significant(v)).join("–")} ms)`;
    fact(metric.label, text);
  }
  if (net.training.from) {
    let epochs = known(net.training.epochs) ? `, ${net.training.epochs} epochs` : "";
    if (net.training.arithmetic === "bf16") epochs += ", products in bf16";
    fact("Trained", `${net.training.from === "supernet" ? "weights taken from the supernet" : `from ${net.training.from}`}${epochs}`);
  }
  const parts = [element("h3", `${net.name} (${KINDS[net.kind].label})`)];
  if (!netPasses(net)) parts.push(element("p", "The filter hides this network.", { class: "banner" }));
  parts.push(element("dl", null, { class: "facts figures" }, facts));
  const files = net.links.flatMap(({ label, title, href }) => [element("a", label, { href, title }), " "]);
  parts.push(element("p", files.length ? "Files: " : "Files: none beside this report.", {}, files));
  const choices = Object.entries(net.arch);
  if (choices.length) {
    const rows = choices.map(([name, value]) => element("tr", null, {}, [element("th", name, { scope: "row" }), element("td", value)]));
    parts.push(element("details", null, {}, [element("summary", `Architecture: ${choices.length} choices`),
      element("div", null, { class: "scroll" }, [element("table", null, {}, [element("tbody", null, {}, rows)])])]));
  }
  parts.push(element("p", timeWords(net)));
  const chart = element("div", null, { class: "chart", role: "img", "aria-label": `Time of each layer of ${net.name}; the table below holds the same figures` });
  if (net.layers.length) parts.push(chart, layerTable(net));
  find("details").replaceChildren(...parts);
  if (net.layers.length) drawLayers(chart, net);
}

// ---- state to page ------------------------------------------------------------------------------------------------------------------
function update({ redrawDetails = true } = {}) {
  if (!find("front")) return Promise.resolve();
  const visible = new Set(DATA.nets.filter(netPasses).map((net) => net.id));
  const [x, y] = [find("across-axis").value, find("up-axis").value];
  for (const row of all("tr[data-net]")) row.hidden = !visible.has(row.dataset.net);
  for (const button of all("[data-pick]")) button.setAttribute("aria-pressed", String(button.dataset.pick === state.selected));
  find("why").textContent = state.reason;
  find("see").hidden = !state.selected;
  const count = find("filter-count");
  count.textContent = state.bounds.size ? `${visible.size} of ${DATA.nets.length} networks pass.` : `All ${DATA.nets.length} networks are shown.`;
  if (redrawDetails && state.selected) details(NETS.get(state.selected));
  const log = find("log-x").checked;
  return drawFront(find("front"), { x, y, log, trials: find("show-trials").checked, selected: state.selected, visible, passes: trialPasses });
}

function select(id, { reason = "", preset = null } = {}) {
  state.selected = id;
  state.reason = reason || `${NETS.get(id).name} is chosen.`;
  for (const button of all("[data-preset]")) button.setAttribute("aria-pressed", String(button.dataset.preset === preset));
  return update();
}

function choose(preset) {
  const { ranking } = DATA.decisions.find((decision) => decision.key === preset);
  const left = ranking.find(({ net }) => netPasses(NETS.get(net)));
  if (!left) return select(null, { reason: "The filter hides every network that this rule may choose.", preset });
  const hidden = ranking.indexOf(left);
  const note = hidden ? ` (The filter hides ${hidden === 1 ? "the one" : `the ${hidden}`} before it.)` : "";
  return select(left.net, { reason: `${NETS.get(left.net).name}. ${left.reason}${note}`, preset });
}

function sortTable(button) {
  const header = button.closest("th");
  const falling = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const body = button.closest("table").tBodies[0];
  const value = (row) => NETS.get(row.dataset.net).values[button.dataset.sort];
  const order = (a, b) => (known(a) && known(b) ? (falling ? b - a : a - b) : Number(known(b)) - Number(known(a)));
  body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
}

// A metric that spans more than a factor of 30 is unreadable on a linear axis.
function suggestLog() {
  const values = DATA.nets.map((net) => net.values[find("across-axis").value]).filter(known);
  find("log-x").checked = values.length > 1 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 30;
}

function drawAll() {
  for (const chart of all('[data-chart="prediction"]')) drawPrediction(chart, chart.dataset.metric);
  for (const chart of all('[data-chart="search"]')) drawSearch(chart);
  return update();
}

function first() {
  if (!find("front")) return null;
  return DATA.decisions.some((decision) => decision.key === "balanced" && decision.ranking.length) ? choose("balanced") : select(DATA.nets[0].id);
}

function start() {
  if (find("front")) {
    prepareFilter();
    suggestLog();
    find("across-axis").addEventListener("change", () => { suggestLog(); update({ redrawDetails: false }); });
    for (const id of ["up-axis", "log-x", "show-trials"]) find(id).addEventListener("change", () => update({ redrawDetails: false }));
    for (const button of all("[data-preset]")) button.addEventListener("click", () => choose(button.dataset.preset));
    for (const button of all("[data-pick]")) button.addEventListener("click", () => select(button.dataset.pick));
    for (const button of all("[data-sort]")) button.addEventListener("click", () => sortTable(button));
  }
  drawAll().then(first).then(() => {
    const front = find("front");
    if (front && front.on) front.on("plotly_click", ({ points }) => { if (NETS.has(points[0].customdata)) select(points[0].customdata); });
    document.documentElement.dataset.ready = "true";
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}

start();
