"use strict";
// What figures are made of: levels read from the block, colours, nodes, and one map as SVG.
const makeSheets = (given, block, start) => {
  const AXES = { 1: ["token"], 2: ["row", "column"], 3: ["time", "row", "column"] };
  // --- levels, colours, nodes ---------------------------------------------------------------------------------------
  const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
  const read = (ref, head = 0) => {
    if (!ref || !ref.shape) return null;
    const size = product(ref.shape);
    const at = start + ref.at + head * size;
    return { shape: ref.shape, scale: ref.scale[head], levels: new Int8Array(block.buffer, at, size) };
  };
  const value = (map, i) => (map.levels[i] === given.lost ? NaN : (map.levels[i] / 127) * map.scale);
  const COLOURS = Array.from({ length: 255 }, (_, i) => {
    const last = given.stops.length - 1;
    const at = (i / 254) * last;
    const low = Math.min(Math.floor(at), last - 1);
    return given.stops[low].map((v, c) => Math.round(v + (given.stops[low + 1][c] - v) * (at - low)));
  });
  const make = (name, attributes = {}, ...inside) => {
    const node = document.createElement(name);
    for (const [key, one] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), one);
      else if (key.startsWith("aria-")) node.setAttribute(key, `${one}`); // there false is a word
      else if (one !== null && one !== false) node.setAttribute(key, one === true ? "" : one);
    }
    node.append(...inside.filter((one) => one !== null && one !== ""));
    return node;
  };
  const draw = (name, attributes = {}, ...inside) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, one] of Object.entries(attributes)) node.setAttribute(key, one);
    node.append(...inside);
    return node;
  };
  const canvas = document.createElement("canvas");
  // A picture of cells: `shade` gives the value of cell i in -1..1 (NaN: no colour) and how opaque it is.
  const paint = (rows, columns, shade) => {
    canvas.width = columns;
    canvas.height = rows;
    const pixels = new ImageData(columns, rows);
    for (let i = 0; i < rows * columns; i += 1) {
      const [at, cover] = shade(i);
      if (!Number.isNaN(at)) {
        const level = Math.round(Math.max(-1, Math.min(1, at)) * 127) + 127;
        pixels.data.set([...COLOURS[level], Math.round(255 * cover)], 4 * i);
      }
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  };
  const frames = (shape) => [1, 1, 1].slice(shape.length).concat(shape);
  const flat = (shape, at) => shape.reduce((sum, size, axis) => sum * size + at[axis], 0);
  const placeOf = (shape, i) => {
    const at = [];
    for (let axis = shape.length - 1; axis >= 0; axis -= 1) {
      at[axis] = i % shape[axis];
      i = Math.floor(i / shape[axis]);
    }
    return at;
  };
  const signed = (v, digits = 2) => (Number.isNaN(v) ? "not a number" : v.toPrecision(digits).replace("-", "−"));
  const share = (v) => {
    if (v === null || Number.isNaN(v)) return "–";
    const tenths = Math.round(1000 * v) / 10 || 0; // what is shown as 0 has no sign
    return `${tenths.toFixed(tenths && Math.abs(v) < 0.1 ? 1 : 0)} %`.replace("-", "−");
  };
  const known = (v, digits = 2) => (v === null || v === undefined ? "–" : (Number(v.toFixed(digits)) || 0).toFixed(digits).replace("-", "−"));
  const words = (at) => at.map((v, axis) => `${AXES[at.length][axis]} ${v}`).join(", ");

  // --- one map as SVG -----------------------------------------------------------------------------------------------
  // cells(i) is [value in -1..1, cover]; `under` are addresses of the frames of the input; `tell(i)` words for a cell.
  const sheet = ({ shape, cells, under = [], ring = null, box = null, dots = [], name, tell, pick, move }) => {
    const [count, rows, columns] = frames(shape);
    const step = columns + given.gap;
    const svg = draw("svg", {
      class: `sheet axes${shape.length}`, viewBox: `0 0 ${count * step - given.gap} ${rows}`, "aria-label": name,
      role: pick ? "application" : "img", ...(pick ? { tabindex: 0 } : {}),
      ...(shape.length === 1 ? { preserveAspectRatio: "none" } : {}),
    });
    const lost = [];
    for (let t = 0; t < count; t += 1) {
      const one = { x: t * step, y: 0, width: columns, height: rows, preserveAspectRatio: "none" };
      if (under.length) svg.append(draw("image", { ...one, href: under[Math.floor(((t + 0.5) * under.length) / count)] }));
      const from = t * rows * columns;
      const image = paint(rows, columns, (i) => {
        const [at, cover] = cells(from + i);
        if (Number.isNaN(at) && cover) lost.push([t * step + (i % columns), Math.floor(i / columns)]);
        return [at, cover];
      });
      svg.append(draw("image", { ...one, href: image, class: "cells", "image-rendering": "pixelated" }));
    }
    const place = (at) => {
      const [t, y, x] = [0, 0, 0].slice(at.length).concat(at);
      return { x: t * step + x, y };
    };
    if (lost.length) {
      const d = lost.map(([x, y]) => `M${x} ${y}l1 1m-1 0l1-1`).join("");
      svg.append(draw("path", { d, class: "lost", fill: "none", stroke: "#808080", "vector-effect": "non-scaling-stroke" }));
    }
    const frame = (at, width, height, stroke, wide) => draw("rect", {
      ...place(at), width, height, fill: "none", stroke, "stroke-width": wide, "vector-effect": "non-scaling-stroke" });
    if (box) svg.append(frame(box.at, box.columns, box.rows, "#808080", 1));
    for (const at of dots) {
      const { x, y } = place(at);
      svg.append(draw("circle", { cx: x + 0.5, cy: y + 0.5, r: rows / 110, fill: "#fff", stroke: "#111", "stroke-width": 1, "vector-effect": "non-scaling-stroke" }));
    }
    if (ring) svg.append(frame(ring, 1, 1, "#fff", 4), frame(ring, 1, 1, "#111", 1.8));
    const under_pointer = (event) => {
      const area = svg.getBoundingClientRect();
      const x = ((event.clientX - area.left) / area.width) * (count * step - given.gap);
      const t = Math.floor(x / step);
      const column = Math.floor(x - t * step);
      const row = Math.floor(((event.clientY - area.top) / area.height) * rows);
      if (t < 0 || t >= count || column < 0 || column >= columns || row < 0 || row >= rows) return null;
      return [t, row, column].slice(3 - shape.length);
    };
    const said = make("output", {});
    svg.addEventListener("pointermove", (event) => {
      const at = under_pointer(event);
      said.textContent = at ? tell(at) : "";
    });
    svg.addEventListener("pointerleave", () => { said.textContent = ""; });
    if (pick) {
      svg.addEventListener("click", (event) => {
        const at = under_pointer(event);
        if (at) pick(at);
      });
      svg.addEventListener("keydown", (event) => move(event));
    }
    return { svg, said };
  };
  const ramp = (low, high, both) => {
    const image = paint(1, 127, (i) => [both ? (i - 63) / 63 : i / 126, 1]);
    return make("span", { class: "ramp" }, make("span", {}, low),
      draw("svg", { viewBox: "0 0 127 1", preserveAspectRatio: "none", "aria-hidden": "true" },
        draw("image", { href: image, width: 127, height: 1, preserveAspectRatio: "none" })), make("span", {}, high));
  };
  const save = (svg, name) => {
    const copy = svg.cloneNode(true);
    const area = svg.getBoundingClientRect();
    for (const [key, one] of [["xmlns", "http://www.w3.org/2000/svg"], ["width", Math.round(area.width)],
      ["height", Math.round(area.height)]]) copy.setAttribute(key, one);
    const rules = "text{font:12px sans-serif;fill:#5b5f63}.rule{stroke:#dedad1}.mean,.line{fill:none;stroke:#8a3b12;"
      + "stroke-width:1.6}.head{fill:#2a6cb0;fill-opacity:.6}";
    copy.prepend(draw("style", {}, rules));
    const address = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    make("a", { href: address, download: `${name}.svg` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  const saver = (svg, name) => make("button", {
    type: "button", class: "save", title: "Download as SVG", "aria-label": `Download ${name} as SVG`, onclick: () => save(svg, name),
  }, "SVG");
  const figure = (title, { svg, said }, below, name, extra = "") => make("figure", { class: extra },
    make("h4", {}, title, saver(svg, name)), svg, make("figcaption", {}, below, said));
  return { product, read, value, COLOURS, make, draw, frames, flat, placeOf, signed, share, known, words, sheet, ramp, save, saver, figure };
};
