// Which charts the report has, and what they show. Needs chart.js.

// The last place of an ascending list at or before a value; -1 where there is none.
function lastWithin(list, value) {
  let low = 0,
    high = list.length;
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
  const lowest = Math.min(
    ...series.map((one) => one.tar[Math.max(0, lastWithin(one.far, 1 / one.impostor))] ?? 0),
  );
  const spec = {
    name,
    x: { label: x, log: true, low: least, high: 1 },
    y: det
      ? { label: y, log: true, low: leastMissed / 1.5, high: 1 }
      : { label: y, low: Math.max(0, Math.floor(20 * lowest - 0.5) / 20), high: 1 },
    series: series.map((one) => ({
      one,
      kind: "steps",
      x: [least / 10, ...one.far],
      y: [0, ...one.tar].map((tar) => (det ? 1 - tar : tar)),
      mark: one.eer ? [one.eer, det ? one.eer : 1 - one.eer] : null,
    })),
    guides: [],
    read: (far) => ({
      title: `${x.replace(" (log)", "")} ≤ ${rate(far)}`,
      rows: series.filter(shown).map((one) => {
        const at = lastWithin(one.far, far * (1 + 1e-9));
        const tar = at < 0 ? 0 : one.tar[at];
        const more = at < 0 ? "" : `${one.scale} ${one.threshold[at].toFixed(3)}`;
        return {
          one,
          y: det ? Math.max(1 - tar, 1e-12) : tar,
          colour: colourOf(one),
          name: nameOf(one),
          value: rate(det ? 1 - tar : tar),
          more,
        };
      }),
    }),
    idle: () =>
      series.filter(shown).map((one) => ({
        one,
        colour: colourOf(one),
        name: nameOf(one),
        value: "",
        more: one.eer == null ? "" : `EER ${rate(one.eer)}`,
      })),
  };
  const line = Array.from({ length: 60 }, (_, i) => least ** (1 - i / 59));
  if (det) spec.guides.push({ x: line, y: line });
  return spec;
}

function listSpec(series, { name, x, y, log, title }) {
  const places = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const nearest = (value) =>
    places.reduce((best, one) => {
      const far = (place) => (log ? Math.abs(Math.log(place / value)) : Math.abs(place - value));
      return far(one) < far(best) ? one : best;
    });
  return {
    name,
    x: {
      label: x,
      log,
      low: log ? places[0] / 1.4 : places[0] - 0.5,
      high: log ? places.at(-1) * 1.4 : places.at(-1) + 0.5,
    },
    y: {
      label: y,
      low: Math.max(0, Math.floor(20 * Math.min(...series.flatMap((one) => one.y)) - 0.5) / 20),
      high: 1,
    },
    series: series.map((one) => ({ one, kind: "line", dots: true, x: one.x, y: one.y })),
    read: (value) => {
      const place = nearest(value);
      return {
        title: title(place),
        rows: series
          .filter((one) => shown(one) && one.x.includes(place))
          .map((one) => {
            const share = one.y[one.x.indexOf(place)];
            return { one, y: share, colour: colourOf(one), name: nameOf(one), value: rate(share), more: "" };
          }),
      };
    },
    idle: () =>
      series
        .filter(shown)
        .map((one) => ({ one, colour: colourOf(one), name: nameOf(one), value: "", more: "" })),
  };
}

function histogramSpec(one) {
  const total = { genuine: 0, impostor: 0 };
  for (const kind of ["genuine", "impostor"]) total[kind] = one[kind].reduce((sum, count) => sum + count, 0);
  const share = (kind) => one[kind].map((count) => count / Math.max(1, total[kind]));
  const kinds = ["genuine", "impostor"].filter((kind) => total[kind]);
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
          y: share(kind)[at],
          colour: `var(--${kind})`,
          name: kind,
          value: percent(share(kind)[at]),
          more: `${one[kind][at].toLocaleString("en")} of ${total[kind].toLocaleString("en")}`,
        })),
      };
    },
    idle: () =>
      kinds.map((kind) => ({
        colour: `var(--${kind})`,
        name: kind,
        value: "",
        more: `${total[kind].toLocaleString("en")} pairs`,
      })),
  };
}

const SPECS = {
  roc: () => rocSpec(data.roc, { name: "ROC", x: "false accept rate (log)", y: "true accept rate" }),
  det: () =>
    rocSpec(data.roc, { name: "DET", det: true, x: "false accept rate (log)", y: "false reject rate (log)" }),
  tpir: () => rocSpec(data.tpir, { name: "Open set", x: "FPIR (log)", y: "TPIR" }),
  cmc: () =>
    listSpec(data.cmc, {
      name: "CMC",
      x: "rank",
      y: "share identified",
      title: (rank) => `within rank ${rank}`,
    }),
  distractors: () =>
    listSpec(data.distractors, {
      name: "Rank 1",
      x: "distractors (log)",
      y: "rank-1 rate",
      log: true,
      title: (n) => `${n.toLocaleString("en")} distractors`,
    }),
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
      for (const figure of document.querySelectorAll("[data-chart=histogram]"))
        figure.hidden = !shown(data.histograms[figure.dataset.at]);
      for (const chart of charts) if (!chart.figure.hidden) chart.draw();
    });
  });
}

for (const place of document.querySelectorAll("[data-filters]")) {
  filter(place, "model", "Models", data.models);
  filter(place, "target", "Sets", data.targets);
  if (!place.childElementCount) place.remove();
}
