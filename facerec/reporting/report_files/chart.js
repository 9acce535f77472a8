// One chart: axes, curves, reading, zooming. Needs basics.js.
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
    const sx = this.scale(spec.x, x0, x1),
      sy = this.scale(spec.y, y0, y1);
    this.px = (value) => box.left + sx(value) * (box.right - box.left);
    this.py = (value) => box.bottom - sy(value) * (box.bottom - box.top);
    this.root?.remove();
    const root = (this.root = svg("svg", {
      viewBox: `0 0 ${this.width} ${this.height}`,
      tabindex: 0,
      role: "img",
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
    svg(
      "rect",
      { class: "frame", x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top },
      root,
    );
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
      if (text)
        svg(
          "text",
          { x: box.left - 7, y: y + 4, "text-anchor": "end" },
          root,
          spec.y.percent ? percentTick(at) : text,
        );
    }
    svg(
      "text",
      { class: "axis", x: (box.left + box.right) / 2, y: this.height - 8, "text-anchor": "middle" },
      root,
      spec.x.label,
    );
    svg("text", { class: "axis", x: box.left - 44, y: box.top - 12 }, root, spec.y.label);
  }

  path({ x, y }, kind) {
    let d = "";
    for (let i = 0; i < x.length; i++) {
      const px = this.px(x[i]).toFixed(1),
        py = this.py(y[i]).toFixed(1);
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
      svg(
        "path",
        { d: `${d}V${floor}Z`, style: `fill:${stroke};fill-opacity:.22;stroke:${stroke};stroke-width:1.5` },
        area,
      );
      return;
    }
    const dashes = one ? dashOf(one) : "";
    svg(
      "path",
      { class: "curve", d: this.path({ x, y }, kind), style: `stroke:${stroke}`, "stroke-dasharray": dashes },
      area,
    );
    if (mark)
      svg(
        "rect",
        {
          class: "mark",
          x: this.px(mark[0]) - 4,
          y: this.py(mark[1]) - 4,
          width: 8,
          height: 8,
          style: `stroke:${stroke}`,
        },
        area,
      );
    if (dots)
      x.forEach((at, i) =>
        svg("circle", { cx: this.px(at), cy: this.py(y[i]), r: 3, style: `fill:${stroke}` }, area),
      );
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
      if (py >= box.top - 1 && py <= box.bottom + 1)
        svg("circle", { class: "dot", cx: px, cy: py, r: 4.5, style: `fill:${colour}` }, this.over);
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
      for (const [part, text] of [
        ["name", row.name],
        ["value", row.value],
        ["more", row.more],
      ])
        html("span", part, line, text);
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
    this.view = [
      Math.max(x0, this.home[0]),
      Math.min(x1, this.home[1]),
      Math.max(y0, this.home[2]),
      Math.min(y1, this.home[3]),
    ];
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
    this.show([
      ...about(this.spec.x, x0, x1, shareX),
      ...(this.spec.flat ? [y0, y1] : about(this.spec.y, y0, y1, shareY)),
    ]);
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
    let from = null,
      band = null;
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
        const edge = this.spec.flat
          ? [box.top, box.bottom]
          : [within(from[1], box.top, box.bottom), within(at[1], box.top, box.bottom)];
        const side = [within(from[0], box.left, box.right), within(at[0], box.left, box.right)];
        for (const [name, number] of [
          ["x", Math.min(...side)],
          ["y", Math.min(...edge)],
          ["width", Math.abs(side[1] - side[0])],
          ["height", Math.abs(edge[1] - edge[0])],
        ])
          band.setAttribute(name, number);
        return;
      }
      if (at[0] < box.left - 8 || at[0] > box.right + 8) this.quiet();
      else this.read(value(shares(at)[0]), at[1]);
    });
    root.addEventListener("pointerup", (event) => {
      if (!from) return;
      const [ax, ay] = shares(from),
        [bx, by] = shares(place(event));
      from = null;
      if (!band) return;
      band = null;
      const [x0, x1, y0, y1] = this.view;
      const y = (share) => this.invert(this.spec.y, y0, y1, share);
      const high = this.spec.flat ? [y0, y1] : [y(Math.min(ay, by)), y(Math.max(ay, by))];
      this.show([
        this.invert(this.spec.x, x0, x1, Math.min(ax, bx)),
        this.invert(this.spec.x, x0, x1, Math.max(ax, bx)),
        ...high,
      ]);
    });
    root.addEventListener("pointerleave", () => from || this.quiet());
    root.addEventListener("blur", () => this.quiet());
    root.addEventListener("dblclick", () => this.reset());
    root.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? 0.8 : 1.25, ...shares(place(event)));
      },
      { passive: false },
    );
    root.addEventListener("keydown", (event) => {
      const acts = {
        "+": () => this.zoom(0.5),
        "=": () => this.zoom(0.5),
        "-": () => this.zoom(2),
        0: () => this.reset(),
        ArrowLeft: () => this.step(-1),
        ArrowRight: () => this.step(1),
        Escape: () => this.quiet(),
      };
      if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      acts[event.key]();
    });
  }

  step(by) {
    const [x0, x1] = this.view;
    const share =
      this.cursor == null || this.cursor < x0 || this.cursor > x1
        ? 0.5
        : this.scale(this.spec.x, x0, x1)(this.cursor);
    this.read(this.invert(this.spec.x, x0, x1, Math.min(1, Math.max(0, share + by / 40))));
  }
}

const percentTick = (value) => `${Number((100 * value).toPrecision(3))} %`;
