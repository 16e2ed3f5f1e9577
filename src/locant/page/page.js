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
      for (const ring of node.querySelectorAll(".halo, .query")) {
        ring.setAttribute("x", x);
        ring.setAttribute("y", y);
      }
    }
  };

  const signed = (value) => `${value < 0 ? "−" : value > 0 ? "+" : ""}${Math.abs(value)}`;

  // Says and frames one key of one map: its place, its offset from the query, and the value.
  const tell = (card, drawing, at) => {
    if (!at) return;
    const keys = card.grid.reduce((a, b) => a * b, 1);
    const level = drawing.levels[flat(card.grid, card.query) * keys + flat(card.grid, at)];
    const offset = card.query.map((place, axis) => signed(place - at[axis])).join(", ");
    const value = ((level / 127) * card.scale).toPrecision(2).replace("-", "−");
    card.output.textContent = `key at ${words(at)}, offset ${offset}: ${value}`;
    card.probe = at;
    const [x, y] = corner(card.grid, at);
    if (!drawing.probe) {
      drawing.probe = svg("rect", { class: "probe", width: 1, height: 1 });
      drawing.node.append(drawing.probe);
    }
    drawing.probe.setAttribute("x", x);
    drawing.probe.setAttribute("y", y);
    drawing.probe.removeAttribute("hidden");
  };
  const hush = (card, drawing) => {
    if (drawing.probe) drawing.probe.setAttribute("hidden", "");
    card.output.textContent = card.name;
  };

  for (const [key, entry] of Object.entries(data.maps)) {
    const node = document.querySelector(`[data-group="${key}"]`);
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
    const moved = (from, event) => {
      const step = steps[event.key];
      if (!step || -step[0] > grid.length) return null;
      event.preventDefault();
      const at = [...from];
      const axis = grid.length + step[0];
      at[axis] = Math.min(grid[axis] - 1, Math.max(0, at[axis] + step[1]));
      return at;
    };
    board.addEventListener("keydown", (event) => {
      const at = moved(place.query, event);
      if (at) pick(at);
    });
    board.addEventListener("click", (event) => {
      const at = cellAt(board, grid, event);
      if (at) pick(at);
    });
    // The maps: one stop of the tab key per group. Arrows move the key, Enter makes it the query, N and P change the map.
    for (const card of mine) {
      const enter = (number) => {
        card.drawings.forEach(({ node }, i) => node.setAttribute("tabindex", i === number ? 0 : -1));
        card.drawings[number].node.focus();
      };
      card.drawings.forEach((drawing, number) => {
        drawing.node.setAttribute("tabindex", number ? -1 : 0);
        drawing.node.setAttribute("role", "application");
        drawing.node.addEventListener("focus", () => {
          if (drawing.node.matches(":focus-visible")) tell(card, drawing, card.probe || card.query);
        });
        drawing.node.addEventListener("blur", () => hush(card, drawing));
        drawing.node.addEventListener("keydown", (event) => {
          const at = moved(card.probe || card.query, event);
          const turn = { n: 1, p: -1 }[event.key.toLowerCase()];
          if (at) tell(card, drawing, at);
          else if (event.key === "Enter" && card.probe) {
            pick(card.probe);
            tell(card, drawing, card.probe);
          } else if (turn && card.drawings[number + turn]) enter(number + turn);
        });
        drawing.node.addEventListener("click", (event) => {
          const at = cellAt(drawing.node, grid, event);
          if (at) pick(at);
        });
        drawing.node.addEventListener("pointermove", (event) => {
          tell(card, drawing, cellAt(drawing.node, card.grid, event));
        });
        drawing.node.addEventListener("pointerleave", () => hush(card, drawing));
      });
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
