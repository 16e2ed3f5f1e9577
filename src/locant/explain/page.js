"use strict";
// Draws what any query of any head meets. Everything is in one deflated block: JSON, and levels that it points into.
(async () => {
  const given = JSON.parse(document.getElementById("maps").textContent);
  const stage = document.getElementById("stage");
  const inflate = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  if (!window.DecompressionStream) return;
  const block = await inflate(given.block);
  const start = 4 + new DataView(block.buffer).getUint32(0, true);
  const models = JSON.parse(new TextDecoder().decode(block.subarray(4, start)));
  const MEASURE = { bias: "added to the logit", rotate: "mean cosine", gate: "logit of the gate's own map" };

  const { product, read, value, COLOURS, make, draw, frames, flat, placeOf, signed, share, known, words, sheet,
    ramp, save, saver, figure } = makeSheets(given, block, start);

  // --- state, and its address ---------------------------------------------------------------------------------------
  const state = { panes: [{ m: 0, l: 0, h: 0 }], where: null, token: null, sort: "index" };
  const layerOf = (pane) => models[pane.m].layers[pane.l];
  const clamp = (pane) => {
    pane.m = Math.max(0, Math.min(models.length - 1, pane.m || 0));
    pane.l = Math.max(0, Math.min(models[pane.m].layers.length - 1, pane.l || 0));
    pane.h = Math.max(0, Math.min(layerOf(pane).heads.length - 1, pane.h || 0));
    return pane;
  };
  const cellOf = (shape) => (state.where && state.where.length === shape.length
    ? shape.map((size, axis) => Math.min(size - 1, Math.floor(state.where[axis] * size)))
    : shape.map((size) => Math.floor(size / 2)));
  const rowOf = (pane) => {
    const { input } = models[pane.m];
    const { rows, shape } = layerOf(pane);
    if (!input || !rows.length) return null;
    if (state.token !== null && rows[state.token]) return rows[state.token];
    const cell = cellOf(shape);
    let best = null;
    for (const row of rows) {
      const far = row.query.length ? Math.hypot(...row.query.map((v, axis) => v - cell[axis])) : Infinity;
      if (!best || far < best.far) best = { row, far };
    }
    return best.row;
  };
  const address = () => {
    const [one, two] = state.panes;
    const query = state.token === null ? cellOf(layerOf(one).shape).join(",") : `t${state.token}`;
    const parts = [`layer=${layerOf(one).index}`, `head=${one.h}`, `query=${query}`];
    if (one.m) parts.unshift(`model=${one.m}`);
    if (two) parts.push(`with=${two.m}.${two.l}.${two.h}`);
    if (state.sort !== "index") parts.push(`sort=${state.sort}`);
    return `#${parts.join("&")}`;
  };
  const parse = (hash) => {
    const asked = new URLSearchParams(hash.replace(/^#/, ""));
    if (!asked.has("layer")) return false;
    const number = (name) => Number.parseInt(asked.get(name), 10) || 0;
    const m = number("model");
    const l = Math.max(0, (models[m] || models[0]).layers.findIndex((layer) => layer.index === number("layer")));
    const first = clamp({ m, l, h: number("head") });
    const other = (asked.get("with") || "").split(".").map(Number);
    state.panes = [first];
    if (other.length === 3 && other.every(Number.isInteger)) state.panes.push(clamp({ m: other[0], l: other[1], h: other[2] }));
    else if (models.length > 1) state.panes.push(clamp({ ...first, m: 1 - first.m }));
    const query = asked.get("query");
    if (query && /^t\d+$/.test(query)) state.token = Number(query.slice(1));
    else if (query) {
      const { shape } = layerOf(first);
      const at = query.split(",").map(Number);
      if (at.length === shape.length && at.every((v, axis) => Number.isInteger(v) && v >= 0 && v < shape[axis])) {
        state.where = at.map((v, axis) => (v + 0.5) / shape[axis]);
        state.token = null;
      }
    }
    if (ORDER[asked.get("sort")]) state.sort = asked.get("sort");
    return true;
  };

  // --- heads --------------------------------------------------------------------------------------------------------
  const ORDER = {
    index: ["number", (head) => head.index],
    locality: ["nearest first", (head) => head.locality ?? Infinity],
    anisotropy: ["most along one axis first", (head) => -(head.anisotropy ?? -Infinity)],
    direction: ["most to one side first", (head) => -Math.hypot(...head.direction.map((v) => v ?? 0))],
    position: ["most position first", (head) => -(head.position_share ?? -Infinity)],
  };
  const sorted = (layer) => [...layer.heads].sort((a, b) => ORDER[state.sort][1](a) - ORDER[state.sort][1](b) || a.index - b.index);
  const plainMap = (map, extra) => sheet({
    shape: map.shape, tell: () => "", cells: (i) => [value(map, i) / (map.scale || 1), 1], ...extra });
  const thumbnail = (layer, head, row) => {
    const shown = read(head.map) || (row ? read(row.both, head.index) : null);
    if (!shown) return make("span", { class: "blank" }, "–");
    return plainMap(shown, { name: `layer ${layer.index}, head ${head.index}` }).svg;
  };
  const strip = (pane, number) => {
    const layer = layerOf(pane);
    const row = rowOf(pane);
    return make("div", { class: "strip", role: "radiogroup", "aria-label": "Heads of the layer. Arrows left and right change the head, up and down the layer.",
      onkeydown: (event) => {
        const order = sorted(layer).map((head) => head.index);
        const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        const climb = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (!turn && !climb) return;
        event.preventDefault();
        if (turn) choose(number, { h: order[(order.indexOf(pane.h) + turn + order.length) % order.length] });
        else choose(number, { l: pane.l + climb });
      } },
    ...sorted(layer).map((head) => make("button", {
      type: "button", role: "radio", "aria-checked": head.index === pane.h, tabindex: head.index === pane.h ? 0 : -1,
      "data-head": head.index, "aria-label": `head ${head.index}`, onclick: () => choose(number, { h: head.index }),
    }, thumbnail(layer, head, row), make("small", {}, `${head.index}`))));
  };

  // --- the figures of a head ----------------------------------------------------------------------------------------
  const mod = (a, n) => ((a % n) + n) % n;
  const sees = (sight, query, key) => {
    const at = query.map((v, axis) => sight.origin[axis] + sight.stride[axis] * v);
    for (const [size, shift] of sight.windows) {
      for (let axis = 0; axis < at.length; axis += 1) {
        const cell = (v) => (v - shift[axis] - mod(v - shift[axis], size[axis])) / size[axis];
        if (cell(at[axis]) !== cell(key[axis])) return false;
      }
    }
    for (const axis of sight.causal) {
      if (axis === null ? flat(sight.key_shape, key) > flat(sight.key_shape, at) : key[axis] > at[axis]) return false;
    }
    const hidden = read(sight.hidden);
    return !(hidden && hidden.levels[flat(sight.key_shape, key)]);
  };
  const mover = (shape) => (event) => {
    const axis = { ArrowLeft: -1, ArrowRight: -1, ArrowUp: -2, ArrowDown: -2, PageUp: -3, PageDown: -3 }[event.key];
    if (!axis || -axis > shape.length) return;
    event.preventDefault();
    const at = cellOf(shape);
    const turn = /Right|Down/.test(event.key) ? 1 : -1;
    at[shape.length + axis] = Math.max(0, Math.min(shape[shape.length + axis] - 1, at[shape.length + axis] + turn));
    pick(shape, at);
  };
  const pick = (shape, at) => {
    state.where = at.map((v, axis) => (v + 0.5) / shape[axis]);
    state.token = null;
    render();
  };
  const sightFigure = (pane, head) => {
    const layer = layerOf(pane);
    const { sight } = layer;
    if (!sight || !sight.shape.length) return null;
    const query = cellOf(sight.shape);
    const at = query.map((v, axis) => sight.origin[axis] + sight.stride[axis] * v);
    const map = head && read(head.map);
    const cells = product(sight.key_shape);
    const biases = Array.from({ length: cells }, (_, i) => {
      const key = placeOf(sight.key_shape, i);
      if (!sees(sight, query, key)) return null;
      if (!map) return 0;
      const offset = at.map((v, axis) => v - key[axis] + (map.shape[axis] - 1) / 2);
      return offset.every((v, axis) => v >= 0 && v < map.shape[axis]) ? value(map, flat(map.shape, offset)) : 0;
    });
    const drawn = sheet({
      shape: sight.key_shape, ring: at, name: `what the query at ${words(query)} may see`,
      cells: (i) => (biases[i] === null ? [0, 0] : [biases[i] / (map ? map.scale || 1 : 1), 1]),
      tell: (key) => {
        const one = biases[flat(sight.key_shape, key)];
        return one === null ? `${words(key)}: not seen` : map ? `${words(key)}: ${signed(one)}` : `${words(key)}: seen`;
      },
      pick: (key) => pick(sight.shape, key.map((v, axis) => Math.max(0, Math.min(sight.shape[axis] - 1,
        Math.floor((v - sight.origin[axis]) / sight.stride[axis]))))),
      move: mover(sight.shape),
    });
    const count = biases.filter((one) => one !== null).length;
    const below = `${sight.words} The query at ${words(query)} sees ${count.toLocaleString("en")} of ${cells.toLocaleString("en")} keys. Click a cell to move it.`;
    return figure("What the query may see", drawn, below, `layer-${layer.index}-sight`, "sight");
  };
  const offsets = (pane, head) => {
    const layer = layerOf(pane);
    const map = read(head.map);
    if (!map) return lineFigure(pane, head);
    const centre = map.shape.map((size) => (size - 1) / 2);
    const drawn = plainMap(map, {
      ring: centre, name: `layer ${layer.index}, head ${head.index}: map over offsets`,
      tell: (at) => `offset (${at.map((v, axis) => signed(v - centre[axis], 3)).join(", ")}): ${signed(value(map, flat(map.shape, at)))}`,
    });
    const below = make("span", {}, "query − key, zero outlined ", ramp(signed(-map.scale), signed(map.scale), true));
    const prefix = head.prefix ? ` With tokens without a place: ${head.prefix.map((v) => known(v)).join(", ")} (query, key, both).` : "";
    return figure(`By offset: ${MEASURE[layer.entrance] || "position's part"}`, drawn, make("span", {}, below, prefix),
      `layer-${layer.index}-head-${head.index}`);
  };
  const curve = (name, x, y, low, high, shown) => {
    const [wide, tall, left] = [320, 120, 40];
    const most = Math.max(...x) || 1;
    const px = (v) => left + ((wide - left - 6) * v) / most;
    const py = (v) => 8 + (tall - 30) * (1 - (v - low) / (high - low || 1));
    const parts = [low, high].map((v) => draw("line", { class: "rule", x1: left, x2: wide, y1: py(v), y2: py(v) }));
    for (const v of [low, high]) parts.push(draw("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, shown(Math.abs(v) < 1e-3 * (high - low) ? 0 : v)));
    parts.push(draw("text", { x: left, y: tall - 4 }, "0"), draw("text", { x: wide, y: tall - 4, "text-anchor": "end" }, `${most.toFixed(0)} cells`));
    parts.push(draw("polyline", { class: "line", points: x.map((v, i) => [v, y[i]]).filter(([, v]) => v !== null)
      .map(([a, b]) => `${px(a).toFixed(1)},${py(b).toFixed(1)}`).join(" ") }));
    return { svg: draw("svg", { class: "curve", viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": name }, ...parts), said: "" };
  };
  const lineFigure = (pane, head) => {
    if (!head.lines.length) return null;
    const lines = head.lines.map((ref) => read(ref));
    const y = Array.from(lines[lines.length - 1].levels, (_, i) => value(lines[lines.length - 1], i));
    const drawn = curve(`lengths of the vectors of head ${head.index}`, y.map((_, i) => i), y, 0, Math.max(...y), (v) => signed(v));
    return figure("Lengths of the vectors by offset", drawn, "What a query of length 1 meets at most, along the last axis.", `layer-${pane.l}-head-${head.index}-lines`);
  };
  const profile = (pane, head) => {
    if (!head.profile) return null;
    const { radius, mean, mass } = head.profile;
    const numbers = mean.filter((v) => v !== null);
    if (!numbers.length) return null;
    const bias = curve(`mean by distance, head ${head.index}`, radius, mean, Math.min(0, ...numbers), Math.max(0, ...numbers), (v) => signed(v));
    const within = curve(`share within a distance, head ${head.index}`, radius, mass, 0, 1, share);
    const name = `layer-${layerOf(pane).index}-head-${head.index}`;
    return make("div", { class: "profiles" }, figure("Mean by distance", bias, "", `${name}-distance`),
      figure("Share of a flat attention within", within, "", `${name}-within`));
  };
  const PARTS = [["both", "As the model attends"], ["content", "Content alone"], ["position", "Position alone"]];
  const attended = (pane, head) => {
    const row = rowOf(pane);
    if (!row) return [];
    const layer = layerOf(pane);
    const { input } = models[pane.m];
    const shape = layer.sight ? layer.sight.key_shape : layer.shape;
    const maps = PARTS.map(([part]) => read(row[part], head.index));
    const top = Math.max(...maps.filter(Boolean).map((map) => map.scale), 1e-9);
    return PARTS.map(([part, title], p) => {
      const map = maps[p];
      if (!map) return make("figure", {}, make("h4", {}, title), make("p", { class: "instead" }, "It can't be told apart in this head."));
      const at = (key) => {
        const inside = key.map((v, axis) => v - row.origin[axis]);
        return inside.every((v, axis) => v >= 0 && v < map.shape[axis]) ? value(map, flat(map.shape, inside)) : null;
      };
      const tokens = row.prefix[p][head.index];
      const rest = tokens.length ? ` Tokens without a place have ${share(tokens.reduce((a, b) => a + b, 0))}.` : "";
      const name = `layer-${layer.index}-head-${head.index}-${part}`;
      if (input.words.length && shape.length === 1 && input.words.length === shape[0]) {
        return make("figure", { class: "text" }, make("h4", {}, title), make("p", { class: "words" },
          ...input.words.map((word, i) => {
            const weight = at([i]) ?? 0;
            const node = make("button", { type: "button", title: share(weight), onclick: () => pick(shape, [i]),
              "aria-pressed": row.query[0] === i, class: row.query[0] === i ? "asked" : "" }, word);
            const colour = COLOURS[127 + Math.round((127 * weight) / top)];
            node.style.background = Number.isNaN(weight) ? "none" : `rgb(${colour.join(" ")})`;
            node.style.color = weight / top > 0.55 ? "#fff" : "#1d1f21";
            return node;
          })), make("figcaption", {}, ramp("0 %", share(top), false), rest));
      }
      const ring = row.query.length && layer.sight
        ? row.query.map((v, axis) => layer.sight.origin[axis] + layer.sight.stride[axis] * v) : row.query;
      const drawn = sheet({
        shape, under: given.frames[pane.m], ring: ring.length ? ring : null, name: `${title}, layer ${layer.index}, head ${head.index}`,
        dots: layer.rows.map((one) => one.query).filter((one) => one.length === shape.length && one.length > 1).map((one) => (
          layer.sight ? one.map((v, axis) => layer.sight.origin[axis] + layer.sight.stride[axis] * v) : one)),
        box: { at: row.origin, rows: frames(map.shape)[1], columns: frames(map.shape)[2] },
        cells: (i) => {
          const weight = at(placeOf(shape, i));
          if (!given.frames[pane.m].length) return weight === null ? [0, 0] : [weight / top, 1];
          return weight === null ? [0, 0.5] : [weight / top, Number.isNaN(weight) ? 1 : 0.12 + 0.8 * Math.sqrt(Math.abs(weight) / top)];
        },
        tell: (key) => { const weight = at(key); return `${words(key)}: ${weight === null ? "not seen" : share(weight)}`; },
        pick: (key) => pick(shape, key), move: mover(shape),
      });
      return figure(title, drawn, make("span", {}, ramp("0 %", share(top), false), rest), name);
    });
  };
  const nearest = (pane) => {
    const row = rowOf(pane);
    if (!row || !row.query.length || String(row.query) === String(cellOf(layerOf(pane).shape))) return "";
    const count = layerOf(pane).rows.length;
    return make("p", { class: "note" }, `Weights were recorded for ${count} queries, the dots; below is the nearest to the chosen cell, ${words(row.query)}.`);
  };
  const facts = (pane, head) => {
    const sides = { 1: [["back", "ahead"]], 2: [["up", "down"], ["left", "right"]], 3: [["back", "ahead"], ["up", "down"], ["left", "right"]] };
    const looks = head.direction.map((v, axis) => (v === null || Math.abs(v) < 0.005 ? null
      : `${Math.abs(v).toFixed(2)} ${sides[head.direction.length][axis][v < 0 ? 0 : 1]}`)).filter(Boolean).join(", ");
    const rows = [
      ["position explains", share(head.position_share)], ["content explains", share(head.content_share)],
      ["correlation of both", known(head.correlation)], ["weights that position moves", share(head.variation)],
      ["gate", head.gate === null ? "–" : share(head.gate)], ["looks, flat content", head.locality === null ? "–" : `${known(head.locality)} cells`],
      ["looks, this input", head.nonlocality === null ? "–" : `${known(head.nonlocality)} cells`],
      ["along one axis", known(head.anisotropy)], ["leans", looks || "–"],
    ].filter(([, said]) => said !== "–");
    return rows.length ? make("dl", {}, ...rows.flatMap(([name, said]) => [make("div", {}, make("dt", {}, name), make("dd", {}, said))])) : null;
  };

  // --- the whole ----------------------------------------------------------------------------------------------------
  const select = (name, options, chosen, change) => make("label", {}, `${name} `, make("select", { name, onchange: (event) => change(event.target.value) },
    ...options.map(([key, label]) => make("option", { value: key, selected: String(key) === String(chosen) }, label))));
  const choose = (number, change) => {
    const follow = state.panes.length > 1 && state.panes[0].m !== state.panes[1].m && !("m" in change);
    state.panes.forEach((pane, i) => {
      if (i === number || follow) clamp(Object.assign(pane, change));
    });
    render();
  };
  const paneNode = (pane, number) => {
    const layer = layerOf(pane);
    const head = layer.heads.find((one) => one.index === pane.h) || layer.heads[0] || null;
    const step = (turn) => make("button", { type: "button", "aria-label": turn < 0 ? "layer before" : "next layer",
      disabled: !models[pane.m].layers[pane.l + turn], onclick: () => choose(number, { l: pane.l + turn }) }, turn < 0 ? "‹" : "›");
    return make("div", { class: "pane", "data-pane": number },
      make("div", { class: "bar" },
        models.length > 1 ? select("model", models.map((one, i) => [i, one.title]), pane.m, (m) => choose(number, { m: Number(m) })) : "",
        make("span", { class: "steps" }, step(-1),
          select("layer", models[pane.m].layers.map((one, i) => [i, `${one.index}  ${one.name}`]), pane.l, (l) => choose(number, { l: Number(l) })), step(1)),
        number || !layer.heads.length ? "" : select("heads by", Object.entries(ORDER).map(([key, [label]]) => [key, label]), state.sort, (key) => { state.sort = key; render(); })),
      make("p", { class: "scheme" }, make("b", {}, layer.scheme), layer.reason ? ` ${layer.reason}` : ""),
      layer.heads.length ? strip(pane, number) : "",
      head ? make("h3", { "aria-live": "polite" }, `Layer ${layer.index}, head ${head.index}`) : "",
      head ? facts(pane, head) || "" : "",
      head ? nearest(pane) : "",
      make("div", { class: "split" }, ...(head ? attended(pane, head) : [])),
      make("div", { class: "figures" }, ...[head && offsets(pane, head), sightFigure(pane, head)].filter(Boolean)),
      (head && profile(pane, head)) || "");
  };
  const tokens = () => {
    const { input } = models[state.panes[0].m];
    const buttons = (input ? input.queries : []).map((query, i) => [query, i]).filter(([query]) => !query.where.length);
    return buttons.length ? make("p", { class: "tokens" }, "Query: ", ...buttons.map(([query, i]) => make("button", {
      type: "button", "aria-pressed": state.token === i, onclick: () => { state.token = state.token === i ? null : i; render(); } }, query.label))) : "";
  };
  // Everything is drawn anew, so the focus goes to what stands in the place of what had it.
  const holder = () => {
    const held = document.activeElement;
    const pane = held.closest(".pane")?.dataset.pane;
    const radio = held.getAttribute("role") === "radio";
    const like = radio ? '[aria-checked="true"]' : held.tagName;
    const at = radio ? 0 : [...(held.closest(".pane") || stage).querySelectorAll(like)].indexOf(held);
    return () => (pane ? stage.querySelector(`[data-pane="${pane}"]`) : stage)?.querySelectorAll(like)[at]?.focus();
  };
  const render = () => {
    const refocus = stage.contains(document.activeElement) ? holder() : null;
    const beside = make("button", { type: "button", class: "beside", "aria-pressed": state.panes.length > 1, onclick: () => {
      if (state.panes.length > 1) state.panes.pop();
      else state.panes.push(clamp({ ...state.panes[0], h: (state.panes[0].h + 1) % Math.max(1, layerOf(state.panes[0]).heads.length) }));
      render();
    } }, state.panes.length > 1 ? "One head" : "Two heads side by side");
    const note = models[state.panes[0].m].input ? models[state.panes[0].m].input.note : "";
    stage.replaceChildren(make("div", { class: "top" }, beside, tokens(), note ? make("small", {}, `The input: ${note}`) : ""),
      make("div", { class: `panes panes${state.panes.length}` }, ...state.panes.map(paneNode)));
    refocus?.();
    try { history.replaceState(null, "", address()); } catch { /* a frame without an address */ }
  };
  const go = () => {
    if (!parse(location.hash)) return;
    render();
    stage.scrollIntoView({ block: "start" });
  };
  if (models.length > 1) state.panes.push(clamp({ m: 1, l: 0, h: 0 }));
  const first = models[0].findings.find((one) => one.layer !== null && one.head !== null);
  if (first) {
    const l = models[0].layers.findIndex((layer) => layer.index === first.layer);
    state.panes.forEach((pane) => clamp(Object.assign(pane, { l: Math.max(0, l), h: first.head })));
  }
  const places = (models[0].input?.queries ?? []).filter((query) => query.where.length);
  const asked = places[Math.floor(places.length / 2)];
  if (asked) state.where = asked.where;
  for (const drawn of document.querySelectorAll("figure[data-save]")) {
    const svg = drawn.querySelector("svg");
    drawn.prepend(saver(svg, drawn.dataset.save));
  }
  document.querySelector("[data-without]").hidden = true;
  stage.hidden = false;
  if (location.hash.includes("layer=")) go();
  else {
    const address_before = location.hash;
    render();
    if (address_before) document.querySelector(CSS.escape ? `#${CSS.escape(address_before.slice(1))}` : "main")?.scrollIntoView();
  }
  addEventListener("hashchange", go);
  let folded = [];
  addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("header details:not([open])")]; for (const one of folded) one.open = true; });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
  stage.dataset.ready = "yes";
})();
