"use strict";
// Curves of report.html: drawn as SVG from the numbers in #data; read by pointing, zoomed by dragging.
// Everything that was named by people goes through textContent, never through HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "1 4", "12 4", "5 2 1 2 1 2"];
const hidden = { model: new Set(), target: new Set() };
const charts = [];
const LISTED = 8; // series whose values are listed at once

function svg(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function html(name, className, parent, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

// A series is told apart by colour: by model where there are several, else by set; then the set is the dash.
const byModel = data.models.length > 1;
const colourOf = (one) => `var(--c${(byModel ? one.model : one.target) % 7})`;
const dashOf = (one) => (byModel ? DASHES[one.target % DASHES.length] : "");
function nameOf(one) {
  if (!byModel) return data.targets[one.target];
  return data.targets.length > 1 ? `${data.models[one.model]}, ${data.targets[one.target]}` : data.models[one.model];
}
function sample(parent, colour, dash) {
  const made = svg("svg", { width: 24, height: 4, "aria-hidden": true, class: "sample" }, parent);
  svg("line", { x1: 0, x2: 24, y1: 2, y2: 2, style: `stroke:${colour};stroke-width:2.5`, "stroke-dasharray": dash }, made);
}
const shown = (one) => !hidden.model.has(one.model) && !hidden.target.has(one.target);

// Numbers ---------------------------------------------------------------------------------------------------

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const power = (exponent) => exponent === 0 ? "1" : "10" + [...String(exponent)].map((sign) => RAISED[sign]).join("");
function rate(value) {
  if (value === 0) return "0";
  return value < 0.001 ? value.toExponential(2).replace("e-", "e−") : value.toFixed(5);
}
const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 2 : 1)} %`;

function linearTicks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * size >= rough) * size;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high * (1 + 1e-9); at++) {
    ticks.push({ at: at * step, text: (at * step).toFixed(digits) });
  }
  return ticks;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const ticks = [];
  for (let exponent = Math.floor(Math.log10(low)); exponent <= Math.ceil(Math.log10(high)); exponent++) {
    for (let factor = 1; factor < 10; factor++) {
      const at = factor * 10 ** exponent;
      if (at < low * (1 - 1e-9) || at > high * (1 + 1e-9)) continue;
      const labelled = factor === 1 || (decades < 1.5 && [2, 5].includes(factor));
      const text = factor === 1 ? power(exponent) : `${factor}·${power(exponent)}`;
      ticks.push({ at, text: labelled ? text : null });
    }
  }
  return ticks.filter((tick) => tick.text).length >= 2 ? ticks : linearTicks(low, high, 4).map(asShort);
}
const asShort = (tick) => ({ at: tick.at, text: String(Number(tick.at.toPrecision(4))) });

// A chart ---------------------------------------------------------------------------------------------------
// spec: x, y: {label, log, low, high, format}; series: [{one, x[], y[], kind: "steps" | "line" | "stairs"}];
// guides: [{x[], y[]}]; threshold; read(x) -> {title, rows: [{one, colour, name, value, more, y}]}; idle() -> rows.

class Chart {
  constructor(figure, spec) {
    this.figure = figure;
    this.spec = spec;
    this.place = html("div", "plot", figure);
    this.home = [spec.x.low, spec.x.high, spec.y.low, spec.y.high];
    this.view = [...this.home];
    this.readout = html("div", "readout", figure);
    this.readout.setAttribute("aria-live", "polite");
    const tools = html("div", "tools", this.place);
    for (const [sign, name, act] of [
      ["+", "Zoom in", () => this.zoom(0.5)],
      ["−", "Zoom out", () => this.zoom(2)],
      ["All", "Show all", () => this.reset()],
    ]) {
      const button = html("button", "", tools, sign);
      button.type = "button";
      button.title = name;
      button.setAttribute("aria-label", `${name}: ${spec.name}`);
      button.addEventListener("click", act);
    }
    charts.push(this);
    this.width = 0;
    new ResizeObserver(() => {
      const width = Math.round(this.place.clientWidth);
      if (width && width !== this.width && !matchMedia("print").matches) this.draw();
    }).observe(this.place);
  }

  scale(axis, low, high) {
    return axis.log
      ? (value) => Math.log(Math.max(value, 1e-12) / low) / Math.log(high / low)
      : (value) => (value - low) / (high - low);
  }

  invert(axis, low, high, share) {
    return axis.log ? low * (high / low) ** share : low + (high - low) * share;
  }

  draw() {
    const { spec } = this;
    const [x0, x1, y0, y1] = this.view;
    this.width = Math.max(240, Math.round(this.place.clientWidth));
    this.height = Math.round(Math.min(400, Math.max(260, this.width * (spec.tall ?? 0.78))));
    const box = (this.box = { left: 58, top: 46, right: this.width - 14, bottom: this.height - 46 });
    const sx = this.scale(spec.x, x0, x1), sy = this.scale(spec.y, y0, y1);
    this.px = (value) => box.left + sx(value) * (box.right - box.left);
    this.py = (value) => box.bottom - sy(value) * (box.bottom - box.top);
    this.root?.remove();
    const root = (this.root = svg("svg", {
      viewBox: `0 0 ${this.width} ${this.height}`, tabindex: 0, role: "img",
      "aria-label": `${spec.name}: ${spec.y.label} over ${spec.x.label}. Arrow keys read values, + and − zoom, 0 shows all.`,
    }));
    this.place.prepend(root);
    this.axes(root, box);
    const id = `clip${charts.indexOf(this)}`;
    const clip = svg("clipPath", { id }, svg("defs", {}, root));
    svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }, clip);
    const area = svg("g", { "clip-path": `url(#${id})` }, root);
    for (const guide of spec.guides ?? []) svg("path", { class: "guide", d: this.path(guide, "line") }, area);
    for (const one of spec.series) if (!one.one || shown(one.one)) this.series(area, one);
    if (spec.threshold != null) {
      const x = this.px(spec.threshold);
      svg("line", { class: "threshold", x1: x, x2: x, y1: box.top, y2: box.bottom }, area);
    }
    svg("rect", { class: "frame", x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }, root);
    this.over = svg("g", {}, root);
    this.listen(root);
    this.quiet();
    root.dataset.view = JSON.stringify(this.view);
  }

  axes(root, box) {
    const { spec } = this;
    const [x0, x1, y0, y1] = this.view;
    const room = Math.max(3, Math.floor((box.right - box.left) / 70));
    const xTicks = spec.x.ticks?.(x0, x1) ?? (spec.x.log ? logTicks(x0, x1) : linearTicks(x0, x1, room));
    let last = -Infinity;
    for (const { at, text } of xTicks) {
      const x = this.px(at);
      svg("line", { class: text ? "grid" : "minor", x1: x, x2: x, y1: box.top, y2: box.bottom }, root);
      if (!text || x - last < 9 + 7 * text.length) continue;
      last = x;
      svg("text", { x, y: box.bottom + 17, "text-anchor": "middle" }, root, text);
    }
    for (const { at, text } of spec.y.log ? logTicks(y0, y1) : linearTicks(y0, y1, 5)) {
      const y = this.py(at);
      svg("line", { class: text ? "grid" : "minor", x1: box.left, x2: box.right, y1: y, y2: y }, root);
      if (text) svg("text", { x: box.left - 7, y: y + 4, "text-anchor": "end" }, root, spec.y.percent ? percentTick(at) : text);
    }
    svg("text", { class: "axis", x: (box.left + box.right) / 2, y: this.height - 8, "text-anchor": "middle" }, root, spec.x.label);
    svg("text", { class: "axis", x: box.left - 44, y: box.top - 12 }, root, spec.y.label);
  }

  path({ x, y }, kind) {
    let d = "";
    for (let i = 0; i < x.length; i++) {
      const px = this.px(x[i]).toFixed(1), py = this.py(y[i]).toFixed(1);
      d += i === 0 ? `M${px} ${py}` : kind === "steps" ? `H${px}V${py}` : `L${px} ${py}`;
    }
    return d;
  }

  series(area, { one, x, y, kind, colour, dots, mark }) {
    const stroke = colour ?? colourOf(one);
    if (kind === "stairs") {
      const floor = this.py(0).toFixed(1);
      let d = `M${this.px(x[0]).toFixed(1)} ${floor}`;
      y.forEach((value, i) => (d += `V${this.py(value).toFixed(1)}H${this.px(x[i + 1]).toFixed(1)}`));
      svg("path", { d: `${d}V${floor}Z`, style: `fill:${stroke};fill-opacity:.22;stroke:${stroke};stroke-width:1.5` }, area);
      return;
    }
    const dashes = one ? dashOf(one) : "";
    svg("path", { class: "curve", d: this.path({ x, y }, kind), style: `stroke:${stroke}`, "stroke-dasharray": dashes }, area);
    if (mark) svg("rect", { class: "mark", x: this.px(mark[0]) - 4, y: this.py(mark[1]) - 4, width: 8, height: 8, style: `stroke:${stroke}` }, area);
    if (dots) x.forEach((at, i) => svg("circle", { cx: this.px(at), cy: this.py(y[i]), r: 3, style: `fill:${stroke}` }, area));
  }

  // Reading -------------------------------------------------------------------------------------------------

  read(x, pixelY) {
    const { box } = this;
    const { title, rows } = this.spec.read(x);
    this.cursor = x;
    this.over.replaceChildren();
    const px = this.px(x);
    svg("line", { class: "cross", x1: px, x2: px, y1: box.top, y2: box.bottom }, this.over);
    for (const { y, colour } of rows) {
      const py = y == null ? -1 : this.py(y);
      if (py >= box.top - 1 && py <= box.bottom + 1) svg("circle", { class: "dot", cx: px, cy: py, r: 4.5, style: `fill:${colour}` }, this.over);
    }
    this.list(title, rows, pixelY);
  }

  // Below the chart, where it hides nothing: what is drawn, and when something is pointed at, its values.
  list(title, rows, pixelY) {
    this.readout.replaceChildren();
    html("p", "place", this.readout, title || "\u00a0");
    const near = (row) => (row.y == null || pixelY == null ? 0 : Math.abs(this.py(row.y) - pixelY));
    const listed = [...rows].sort((a, b) => near(a) - near(b)).slice(0, LISTED);
    for (const row of rows.filter((one) => listed.includes(one))) {
      const line = html("div", "row", this.readout);
      if (row.one) sample(line, row.colour, dashOf(row.one));
      else html("span", "key", line).style.background = row.colour;
      for (const [part, text] of [["name", row.name], ["value", row.value], ["more", row.more]]) html("span", part, line, text);
    }
    if (rows.length > LISTED) html("p", "more", this.readout, `and ${rows.length - LISTED} more`);
  }

  quiet() {
    this.over.replaceChildren();
    this.list("", this.spec.idle());
  }

  // Zooming -------------------------------------------------------------------------------------------------

  show(view) {
    const [x0, x1, y0, y1] = view;
    const wide = this.spec.x.log ? x1 / x0 > 1.05 : x1 - x0 > (this.home[1] - this.home[0]) * 1e-3;
    const high = this.spec.y.log ? y1 / y0 > 1.05 : y1 - y0 > (this.home[3] - this.home[2]) * 1e-4;
    if (!wide || !high) return;
    this.view = [Math.max(x0, this.home[0]), Math.min(x1, this.home[1]), Math.max(y0, this.home[2]), Math.min(y1, this.home[3])];
    const focused = document.activeElement === this.root;
    this.draw();
    if (focused) this.root.focus({ preventScroll: true });
  }

  reset() {
    this.show([...this.home]);
  }

  // By a factor of the axes' lengths on the screen, about a place in shares of them.
  zoom(factor, shareX = 0.5, shareY = 0.5) {
    const [x0, x1, y0, y1] = this.view;
    const about = (axis, low, high, share) => [
      this.invert(axis, low, high, share - share * factor),
      this.invert(axis, low, high, share + (1 - share) * factor),
    ];
    this.show([...about(this.spec.x, x0, x1, shareX), ...(this.spec.flat ? [y0, y1] : about(this.spec.y, y0, y1, shareY))]);
  }

  listen(root) {
    const { box } = this;
    const place = (event) => {
      const area = root.getBoundingClientRect();
      const scale = this.width / area.width;
      return [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
    };
    const within = (value, low, high) => Math.min(high, Math.max(low, value));
    const shares = ([x, y]) => [
      within((x - box.left) / (box.right - box.left), 0, 1),
      within((box.bottom - y) / (box.bottom - box.top), 0, 1),
    ];
    const value = (share) => this.invert(this.spec.x, this.view[0], this.view[1], share);
    let from = null, band = null;
    root.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      from = place(event);
      root.setPointerCapture(event.pointerId);
    });
    root.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (from && Math.hypot(at[0] - from[0], at[1] - from[1]) > 6) {
        this.quiet();
        band = svg("rect", { class: "band" }, this.over);
        const edge = this.spec.flat ? [box.top, box.bottom] : [within(from[1], box.top, box.bottom), within(at[1], box.top, box.bottom)];
        const side = [within(from[0], box.left, box.right), within(at[0], box.left, box.right)];
        for (const [name, number] of [["x", Math.min(...side)], ["y", Math.min(...edge)], ["width", Math.abs(side[1] - side[0])], ["height", Math.abs(edge[1] - edge[0])]]) band.setAttribute(name, number);
        return;
      }
      if (at[0] < box.left - 8 || at[0] > box.right + 8) this.quiet();
      else this.read(value(shares(at)[0]), at[1]);
    });
    root.addEventListener("pointerup", (event) => {
      if (!from) return;
      const [ax, ay] = shares(from), [bx, by] = shares(place(event));
      from = null;
      if (!band) return;
      band = null;
      const [x0, x1, y0, y1] = this.view;
      const y = (share) => this.invert(this.spec.y, y0, y1, share);
      const high = this.spec.flat ? [y0, y1] : [y(Math.min(ay, by)), y(Math.max(ay, by))];
      this.show([this.invert(this.spec.x, x0, x1, Math.min(ax, bx)), this.invert(this.spec.x, x0, x1, Math.max(ax, bx)), ...high]);
    });
    root.addEventListener("pointerleave", () => from || this.quiet());
    root.addEventListener("blur", () => this.quiet());
    root.addEventListener("dblclick", () => this.reset());
    root.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 0.8 : 1.25, ...shares(place(event)));
    }, { passive: false });
    root.addEventListener("keydown", (event) => {
      const acts = { "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), 0: () => this.reset(),
        ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), Escape: () => this.quiet() };
      if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      acts[event.key]();
    });
  }

  step(by) {
    const [x0, x1] = this.view;
    const share = this.cursor == null || this.cursor < x0 || this.cursor > x1 ? 0.5 : this.scale(this.spec.x, x0, x1)(this.cursor);
    this.read(this.invert(this.spec.x, x0, x1, Math.min(1, Math.max(0, share + by / 40))));
  }
}

const percentTick = (value) => `${Number((100 * value).toPrecision(3))} %`;

// The charts of this report -----------------------------------------------------------------------------------

// The last place of an ascending list at or before a value; -1 where there is none.
function lastWithin(list, value) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function rocSpec(series, { name, det, x, y }) {
  const least = Math.min(...series.map((one) => 1 / one.impostor));
  const leastMissed = Math.min(...series.map((one) => 1 / one.genuine));
  const lowest = Math.min(...series.map((one) => one.tar[Math.max(0, lastWithin(one.far, 1 / one.impostor))] ?? 0));
  const spec = {
    name,
    x: { label: x, log: true, low: least, high: 1 },
    y: det ? { label: y, log: true, low: leastMissed / 1.5, high: 1 } : { label: y, low: Math.max(0, Math.floor(20 * lowest - 0.5) / 20), high: 1 },
    series: series.map((one) => ({ one, kind: "steps", x: [least / 10, ...one.far], y: [0, ...one.tar].map((tar) => (det ? 1 - tar : tar)),
      mark: one.eer ? [one.eer, det ? one.eer : 1 - one.eer] : null })),
    guides: [],
    read: (far) => ({
      title: `${x.replace(" (log)", "")} ≤ ${rate(far)}`,
      rows: series.filter(shown).map((one) => {
        const at = lastWithin(one.far, far * (1 + 1e-9));
        const tar = at < 0 ? 0 : one.tar[at];
        const more = at < 0 ? "" : `${one.scale} ${one.threshold[at].toFixed(3)}`;
        return { one, y: det ? Math.max(1 - tar, 1e-12) : tar, colour: colourOf(one), name: nameOf(one), value: rate(det ? 1 - tar : tar), more };
      }),
    }),
    idle: () => series.filter(shown).map((one) => ({
      one, colour: colourOf(one), name: nameOf(one), value: "", more: one.eer == null ? "" : `EER ${rate(one.eer)}`,
    })),
  };
  const line = Array.from({ length: 60 }, (_, i) => least ** (1 - i / 59));
  if (det) spec.guides.push({ x: line, y: line });
  return spec;
}

function listSpec(series, { name, x, y, log, title }) {
  const places = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const nearest = (value) => places.reduce((best, one) => {
    const far = (place) => (log ? Math.abs(Math.log(place / value)) : Math.abs(place - value));
    return far(one) < far(best) ? one : best;
  });
  return {
    name,
    x: { label: x, log, low: log ? places[0] / 1.4 : places[0] - 0.5, high: log ? places.at(-1) * 1.4 : places.at(-1) + 0.5 },
    y: { label: y, low: Math.max(0, Math.floor(20 * Math.min(...series.flatMap((one) => one.y)) - 0.5) / 20), high: 1 },
    series: series.map((one) => ({ one, kind: "line", dots: true, x: one.x, y: one.y })),
    read: (value) => {
      const place = nearest(value);
      return {
        title: title(place),
        rows: series.filter((one) => shown(one) && one.x.includes(place)).map((one) => {
          const share = one.y[one.x.indexOf(place)];
          return { one, y: share, colour: colourOf(one), name: nameOf(one), value: rate(share), more: "" };
        }),
      };
    },
    idle: () => series.filter(shown).map((one) => ({ one, colour: colourOf(one), name: nameOf(one), value: "", more: "" })),
  };
}

function histogramSpec(one) {
  const total = { genuine: 0, impostor: 0 };
  for (const kind of ["genuine", "impostor"]) total[kind] = one[kind].reduce((sum, count) => sum + count, 0);
  const share = (kind) => one[kind].map((count) => count / Math.max(1, total[kind]));
  const kinds = ["impostor", "genuine"].filter((kind) => total[kind]);
  const [low, high] = [one.edges[0], one.edges.at(-1)];
  return {
    name: `Scores, ${nameOf(one)}`,
    flat: true,
    tall: 0.62,
    x: { label: one.scale === "distance" ? "squared distance" : "cosine", low, high },
    y: { label: "share of pairs", percent: true, low: 0, high: 1.06 * Math.max(...kinds.flatMap(share)) },
    series: kinds.map((kind) => ({ kind: "stairs", colour: `var(--${kind})`, x: one.edges, y: share(kind) })),
    threshold: one.threshold,
    read: (value) => {
      const at = Math.min(one.edges.length - 2, Math.max(0, lastWithin(one.edges, value)));
      return {
        title: `${one.scale} ${one.edges[at].toFixed(3)} to ${one.edges[at + 1].toFixed(3)}`,
        rows: kinds.map((kind) => ({
          y: share(kind)[at], colour: `var(--${kind})`, name: kind, value: percent(share(kind)[at]),
          more: `${one[kind][at].toLocaleString("en")} of ${total[kind].toLocaleString("en")}`,
        })),
      };
    },
    idle: () => kinds.map((kind) => ({ colour: `var(--${kind})`, name: kind, value: "", more: `${total[kind].toLocaleString("en")} pairs` })),
  };
}

const SPECS = {
  roc: () => rocSpec(data.roc, { name: "ROC", x: "false accept rate (log)", y: "true accept rate" }),
  det: () => rocSpec(data.roc, { name: "DET", det: true, x: "false accept rate (log)", y: "false reject rate (log)" }),
  tpir: () => rocSpec(data.tpir, { name: "Open set", x: "FPIR (log)", y: "TPIR" }),
  cmc: () => listSpec(data.cmc, { name: "CMC", x: "rank", y: "share identified", title: (rank) => `within rank ${rank}` }),
  distractors: () => listSpec(data.distractors, { name: "Rank 1", x: "distractors (log)", y: "rank-1 rate", log: true, title: (n) => `${n.toLocaleString("en")} distractors` }),
  histogram: (figure) => histogramSpec(data.histograms[figure.dataset.at]),
};

for (const figure of document.querySelectorAll("[data-chart]")) {
  new Chart(figure, SPECS[figure.dataset.chart](figure)).draw();
}

function filter(place, kind, title, names) {
  if (names.length < 2) return;
  const set = html("fieldset", "", place);
  html("legend", "", set, title);
  names.forEach((name, number) => {
    const label = html("label", "", set);
    const box = html("input", "", label);
    box.type = "checkbox";
    box.checked = true;
    if ((kind === "model") === byModel) html("span", `key k${number % 7}`, label);
    else {
      sample(label, "currentColor", DASHES[number % DASHES.length]);
    }
    label.append(name);
    box.addEventListener("change", () => {
      hidden[kind][box.checked ? "delete" : "add"](number);
      for (const figure of document.querySelectorAll("[data-chart=histogram]")) figure.hidden = !shown(data.histograms[figure.dataset.at]);
      for (const chart of charts) if (!chart.figure.hidden) chart.draw();
    });
  });
}

for (const place of document.querySelectorAll("[data-filters]")) {
  filter(place, "model", "Models", data.models);
  filter(place, "target", "Sets", data.targets);
  if (!place.childElementCount) place.remove();
}
