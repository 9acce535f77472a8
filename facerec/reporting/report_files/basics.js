"use strict";
// The script of report.html is basics.js, chart.js and report.js, in this order: curves drawn as SVG from the
// numbers in #data, read by pointing and zoomed by dragging.
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
  return data.targets.length > 1
    ? `${data.models[one.model]}, ${data.targets[one.target]}`
    : data.models[one.model];
}
function sample(parent, colour, dash) {
  const made = svg("svg", { width: 24, height: 4, "aria-hidden": true, class: "sample" }, parent);
  svg(
    "line",
    { x1: 0, x2: 24, y1: 2, y2: 2, style: `stroke:${colour};stroke-width:2.5`, "stroke-dasharray": dash },
    made,
  );
}
const shown = (one) => !hidden.model.has(one.model) && !hidden.target.has(one.target);

// Numbers ---------------------------------------------------------------------------------------------------

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const power = (exponent) =>
  exponent === 0 ? "1" : "10" + [...String(exponent)].map((sign) => RAISED[sign]).join("");
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
