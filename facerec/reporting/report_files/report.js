"use strict";
// What Bokeh leaves to the page: boxes that hide a model or target in all charts, and scrolling by touch.

const plots = () => Bokeh.documents.flatMap((charts) => charts.roots());
const drawn = Promise.all(
  JSON.parse(document.getElementById("charts").textContent).map((item) => Bokeh.embed.embed_item(item)),
).then(() => {
  if (!matchMedia("(pointer: coarse)").matches) return;
  for (const plot of plots())
    for (const tool of plot.toolbar.tools) if (tool.type === "BoxZoomTool") tool.active = false;
});

const hidden = new Set();
const shown = (tags) => !tags.some((tag) => hidden.has(tag));
for (const box of document.querySelectorAll(".filters input"))
  box.addEventListener("change", () => {
    hidden[box.checked ? "delete" : "add"](box.value);
    for (const element of document.querySelectorAll("[data-tags]"))
      element.hidden = !shown(element.dataset.tags.split(" "));
    for (const plot of plots()) for (const line of plot.renderers) line.visible = shown(line.tags);
  });

// One heatmap at a time; without scripts all are there.
const axes = document.getElementById("axes");
if (axes) {
  const choose = () => document.querySelectorAll(".heat").forEach((table, at) => (table.hidden = at !== +axes.value));
  axes.addEventListener("change", choose);
  choose();
}
