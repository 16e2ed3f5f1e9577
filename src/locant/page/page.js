"use strict";
// Redraws the maps for the query that the reader picks. Without this script the page shows the default query.
(() => {
  const data = JSON.parse(document.getElementById("maps").textContent);
  const cards = new Map();
  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  const frames = (grid) => [1, 1, 1].slice(grid.length).concat(grid);
  const flat = (grid, at) => grid.reduce((sum, size, axis) => sum * size + at[axis], 0);
  const axes = { 1: ["token"], 2: ["row", "column"], 3: ["frame", "row", "column"] };
  const words = (at) => at.map((v, axis) => `${axes[at.length][axis]} ${v + 1}`).join(", ");
  const corner = (grid, at) => {
    const [, , columns] = frames(grid);
    const [t, row, column] = [0, 0, 0].slice(at.length).concat(at);
    return [t * (columns + data.gap) + column, row];
  };

  const bytes = (packed) => Int8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const colour = (level) => {
    const last = data.stops.length - 1;
    const at = ((level / 127 + 1) / 2) * last;
    const low = Math.min(Math.floor(at), last - 1);
    return data.stops[low].map((v, i) => Math.round(v + (data.stops[low + 1][i] - v) * (at - low)));
  };
  const canvas = document.createElement("canvas");
  const paint = (levels, rows, columns) => {
    canvas.width = columns;
    canvas.height = rows;
    const pixels = new ImageData(columns, rows);
    levels.forEach((level, i) => pixels.data.set([...colour(level), 255], 4 * i));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  };

  // Which cell of a grid lies under the pointer, or null between two frames.
  const cellAt = (drawing, grid, event) => {
    const box = drawing.getBoundingClientRect();
    const [count, rows, columns] = frames(grid);
    const width = count * (columns + data.gap) - data.gap;
    const x = ((event.clientX - box.left) / box.width) * width;
    const frame = Math.floor(x / (columns + data.gap));
    const column = Math.floor(x - frame * (columns + data.gap));
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    if (frame < 0 || frame >= count || column < 0 || column >= columns || row < 0 || row >= rows) return null;
    return [frame, row, column].slice(3 - grid.length);
  };

  const draw = (card, at) => {
    const [count, rows, columns] = frames(card.grid);
    const [x, y] = corner(card.grid, at);
    card.query = at;
    for (const { node, levels } of card.drawings) {
      const keys = count * rows * columns;
      const row = levels.subarray(flat(card.grid, at) * keys, (flat(card.grid, at) + 1) * keys);
      node.querySelectorAll("image").forEach((image, t) => {
        image.setAttribute("href", paint(row.subarray(t * rows * columns, (t + 1) * rows * columns), rows, columns));
      });
      for (const ring of node.querySelectorAll("rect")) {
        ring.setAttribute("x", x);
        ring.setAttribute("y", y);
      }
    }
  };

  const tell = (card, drawing, event) => {
    const at = cellAt(drawing.node, card.grid, event);
    if (!at) return;
    const keys = card.grid.reduce((a, b) => a * b, 1);
    const level = drawing.levels[flat(card.grid, card.query) * keys + flat(card.grid, at)];
    card.output.textContent = `key at ${words(at)}: ${((level / 127) * card.scale).toPrecision(2).replace("-", "−")}`;
  };

  for (const [key, entry] of Object.entries(data.maps)) {
    const node = document.querySelector(`[data-card="${key}"]`);
    const drawings = entry.maps.flatMap((layer, l) =>
      layer.map((packed, h) => ({ node: node.querySelector(`[data-map="${key}.${l}.${h}"]`), levels: bytes(packed) })));
    const output = node.querySelector("output");
    cards.set(key, { ...entry, drawings, output, name: output.textContent });
  }

  // The picker: an empty grid of the task's shape. Pointer: click a cell, here or on any map. Keys: the arrows.
  for (const place of document.querySelectorAll("[data-picker]")) {
    const mine = [...cards.values()].filter((card) => String(card.picker) === place.dataset.picker);
    if (!mine.length) continue;
    const { grid } = mine[0];
    mine.splice(0, mine.length, ...mine.filter((card) => String(card.grid) === String(grid)));
    const [count, rows, columns] = frames(grid);
    const spoken = place.querySelector("output");
    const board = svg("svg", {
      class: `board axes${grid.length}`, tabindex: 0, role: "application", "aria-roledescription": "query picker",
      viewBox: `0 0 ${count * (columns + data.gap) - data.gap} ${rows}`,
      "aria-label": "The query. The arrow keys move it; page up and page down change the frame.",
    });
    if (grid.length === 1) board.setAttribute("preserveAspectRatio", "none");
    for (let i = 0; i < count * rows * columns; i += 1) {
      const t = Math.floor(i / (rows * columns));
      const inside = i % (rows * columns);
      const x = t * (columns + data.gap) + (inside % columns);
      board.append(svg("rect", { class: "cell", x, y: Math.floor(inside / columns), width: 1, height: 1 }));
    }
    const pick = (at) => {
      board.querySelectorAll(".cell").forEach((cell, i) => cell.classList.toggle("on", i === flat(grid, at)));
      spoken.textContent = words(at);
      place.query = at;
      for (const card of mine) draw(card, at);
    };
    const steps = { ArrowLeft: [-1, -1], ArrowRight: [-1, 1], ArrowUp: [-2, -1], ArrowDown: [-2, 1],
      PageUp: [-3, -1], PageDown: [-3, 1] };
    board.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step || -step[0] > grid.length) return;
      event.preventDefault();
      const at = [...place.query];
      const axis = grid.length + step[0];
      at[axis] = Math.min(grid[axis] - 1, Math.max(0, at[axis] + step[1]));
      pick(at);
    });
    board.addEventListener("click", (event) => {
      const at = cellAt(board, grid, event);
      if (at) pick(at);
    });
    for (const card of mine) {
      for (const drawing of card.drawings) {
        drawing.node.addEventListener("click", (event) => {
          const at = cellAt(drawing.node, grid, event);
          if (at) pick(at);
        });
        drawing.node.addEventListener("pointermove", (event) => tell(card, drawing, event));
        drawing.node.addEventListener("pointerleave", () => { card.output.textContent = card.name; });
      }
    }
    place.querySelector("[data-board]").append(board);
    place.hidden = false;
    document.querySelector(`[data-static="${place.dataset.picker}"]`).hidden = true;
    pick(mine[0].query);
  }

  // Paper has nothing to unfold.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
})();
