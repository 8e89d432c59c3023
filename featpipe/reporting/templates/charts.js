// Charts from data: lines, intervals, scatter, matrix. Each returns nothing and fills its figure.

function drawLines(figure, spec) {
  const plot = figure.querySelector(".plot");
  const lines = spec.series;
  const wide = plot.clientWidth;
  const height = spec.square ? Math.min(wide * 0.9, 400) : Math.min(Math.max(wide * 0.6, 220), 320);
  const { canvas, width } = frame(plot, Math.round(height), plot.dataset.title);
  const xs = lines.flatMap((one) => one.x);
  const ys = lines.flatMap((one) => [...one.y, ...(one.low ?? []), ...(one.high ?? [])]);
  const box = { left: besideAxis(spec.y, ys), right: width - 22, top: 26, bottom: height - 44 };
  const x = scale(spec.x, xs, box.left, box.right);
  const y = scale(spec.y, ys, box.bottom, box.top);
  drawAxes(canvas, x, y, box);
  if (spec.diagonal) {
    canvas.append(shape("line",
      { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "diagonal" }));
  }
  const hidden = figure.hiddenSeries ??= new Set();
  const targets = [];
  const groups = lines.map((one) => drawOneLine({ one, spec, x, y, targets, hidden }));
  // Averages last, so that they are on top.
  const order = groups.map((_, i) => i).sort((a, b) => Number(!!lines[a].strong) - Number(!!lines[b].strong));
  canvas.append(...order.map((i) => groups[i]));
  watch(canvas, targets, 60);
  if (lines.length > 1) drawLegend(figure, lines, groups, hidden);
}

function colour(one, lines) {
  const weak = lines.filter((other) => !other.strong);
  if (weak.length && one.strong) return one.name.startsWith("macro") ? "ink dashed" : "ink";
  const place = (weak.length ? weak : lines).indexOf(one);
  return `k${place % 10} d${place % 4}`; // dashes distinguish what colours do not
}

function drawOneLine({ one, spec, x, y, targets, hidden }) {
  const kind = colour(one, spec.series);
  const group = shape("g", { class: `series ${kind}${one.strong ? " strong" : ""}` });
  if (hidden.has(one.name)) group.classList.add("off");
  const steps = spec.steps ? stepPath : linePath;
  if (one.low) group.append(shape("path", { d: bandPath(one, x, y), class: "band" }));
  if (!(spec.dots && one.size)) group.append(shape("path", { d: steps(one, x, y), class: "path" }));
  const largest = Math.max(...(one.size ?? [1]));
  one.x.forEach((value, i) => {
    if (one.y[i] === null) return;
    const cx = x(value);
    const cy = y(one.y[i]);
    const radius = one.size ? 3 + 9 * Math.sqrt(one.size[i] / largest) : 3.2;
    const nodes = [];
    if (spec.dots) {
      if (one.marked?.[i]) group.append(shape("circle", { cx, cy, r: 7, class: "ring" }));
      const dot = shape("circle", { cx, cy, r: radius, class: "dot" });
      group.append(dot);
      nodes.push(dot);
    }
    targets.push({
      x: cx, y: cy, nodes: [group, ...nodes], hidden: () => group.classList.contains("off"),
      show: () => [
        line(one.name + (one.value ? ` (${one.value})` : ""), true),
        line(`${spec.x.label}: ${text(value, spec.x)}`),
        line(`${spec.y.label}: ${text(one.y[i], spec.y)}`),
        ...(one.low ? [line(`${spec.band ?? "interval"}: ${text(one.low[i], spec.y)} to ${text(one.high[i], spec.y)}`)] : []),
        ...(one.size ? [line(`answers: ${text(one.size[i])}`)] : []),
        ...(one.marked?.[i] ? [line("chosen")] : []),
      ],
    });
  });
  return group;
}

function linePath(one, x, y) {
  let pen = "M";
  return one.x.map((value, i) => {
    if (one.y[i] === null) { pen = "M"; return ""; }
    const point = `${pen}${x(value)} ${y(one.y[i])}`;
    pen = "L";
    return point;
  }).join("");
}

// Between two recalls the precision is that of the right one.
function stepPath(one, x, y) {
  return one.x.map((value, i) =>
    i === 0 ? `M${x(value)} ${y(one.y[0])}` : `V${y(one.y[i])}H${x(value)}`).join("");
}

function bandPath(one, x, y) {
  const upper = one.x.map((value, i) => `${i ? "L" : "M"}${x(value)} ${y(one.high[i])}`);
  const lower = one.x.map((value, i) => `L${x(value)} ${y(one.low[i])}`).reverse();
  return `${upper.join("")}${lower.join("")}Z`;
}

function drawLegend(figure, lines, groups, hidden) {
  const legend = figure.querySelector(".legend");
  legend.replaceChildren(...lines.map((one, index) => {
    const button = make("button", {
      type: "button", class: groups[index].getAttribute("class").replace("series", "key"),
      "aria-pressed": String(!hidden.has(one.name)),
    }, shape("svg", { class: "swatch", viewBox: "0 0 30 4", "aria-hidden": "true" },
      shape("line", { x1: 0, x2: 30, y1: 2, y2: 2 })), one.name, ...(one.value ? [make("b", {}, one.value)] : []));
    button.addEventListener("click", () => {
      const off = groups[index].classList.toggle("off");
      button.setAttribute("aria-pressed", String(!off));
      if (off) hidden.add(one.name); else hidden.delete(one.name);
    });
    const light = (on) => {
      groups[index].classList.toggle("on", on);
      groups[index].ownerSVGElement?.classList.toggle("active", on);
    };
    button.addEventListener("pointerenter", () => light(true));
    button.addEventListener("pointerleave", () => light(false));
    return button;
  }));
}

function numbersOfLines(spec) {
  const rows = spec.series.flatMap((one) => one.x.map((value, i) => [
    one.name, text(value, spec.x), text(one.y[i], spec.y),
    ...(one.low ? [text(one.low[i], spec.y), text(one.high[i], spec.y)] : []),
    ...(one.size ? [text(one.size[i])] : []),
  ]));
  const first = spec.series[0];
  return tableOf(["series", spec.x.label, spec.y.label,
    ...(first.low ? [`${spec.band ?? "interval"}, from`, "to"] : []), ...(first.size ? ["answers"] : [])], rows);
}

// -- intervals ---------------------------------------------------------------------------------

function drawIntervals(figure, spec) {
  const plot = figure.querySelector(".plot");
  const beside = 24 + 7.2 * Math.max(...spec.entries.map((entry) => entry.label.length));
  const narrow = beside > 0.42 * plot.clientWidth || plot.clientWidth < 520; // names above the lines
  const rowHeight = narrow ? 44 : 34;
  const height = spec.entries.length * rowHeight + 56;
  const { canvas, width } = frame(plot, height, plot.dataset.title);
  const left = narrow ? 12 : beside;
  const box = { left, right: width - 22, top: 8, bottom: height - 46 };
  const values = spec.entries.flatMap((entry) =>
    [entry.value, entry.low ?? null, entry.high ?? null, ...(entry.dots ?? [])]);
  const around = spec.zero ? [-spec.margin, spec.margin] : [];
  const x = scale(spec.x, [...values, ...around], box.left, box.right);
  if (spec.zero) {
    canvas.append(shape("rect", { x: x(-spec.margin), y: box.top, width: x(spec.margin) - x(-spec.margin),
      height: box.bottom - box.top, class: "margin" }));
  }
  drawAxes(canvas, x, null, box);
  if (spec.zero) {
    canvas.append(shape("line", { x1: x(0), x2: x(0), y1: box.top, y2: box.bottom, class: "zero-line" }));
  }
  const targets = [];
  spec.entries.forEach((entry, index) => {
    const at = box.top + (index + (narrow ? 0.68 : 0.5)) * rowHeight;
    const kind = `interval${entry.published ? " published" : ""}${entry.best ? " best" : ""}${entry.open ? " open" : ""}`;
    const group = shape("g", { class: kind });
    canvas.append(group);
    const name = shape("text", narrow
      ? { x: 12, y: at - 13, class: "row-name" }
      : { x: left - 14, y: at + 4, "text-anchor": "end", class: "row-name" }, entry.label);
    group.append(name);
    const room = narrow ? width - 24 : left - 16;
    for (let end = entry.label.length - 1; end > 0 && name.getComputedTextLength() > room; end -= 1) {
      name.textContent = `${entry.label.slice(0, end)}…`;
    }
    if (entry.low != null) {
      group.append(shape("line", { x1: x(entry.low), x2: x(entry.high), y1: at, y2: at, class: "range" }));
    }
    const dots = (entry.dots ?? []).map((value, i) => {
      const dot = shape("circle", { cx: x(value), cy: at, r: 3.4, class: "model" });
      targets.push({
        x: x(value), y: at, nodes: [dot],
        show: () => [line(entry.label, true), line(`${entry.names[i]}: ${text(value, spec.x)}`)],
      });
      return dot;
    });
    const mark = entry.published
      ? shape("rect", { x: x(entry.value) - 4.5, y: at - 4.5, width: 9, height: 9,
        transform: `rotate(45 ${x(entry.value)} ${at})`, class: "value" })
      : shape("circle", { cx: x(entry.value), cy: at, r: 5.5, class: "value" });
    group.append(...dots, mark);
    targets.push({ x: x(entry.value), y: at, nodes: [group], show: () => [
      line(entry.label, true),
      line(`${entry.dots ? "mean" : spec.x.label}: ${text(entry.value, spec.x)}`),
      ...(entry.low != null
        ? [line(`${spec.zero ? "" : "95 % "}interval: ${text(entry.low, spec.x)} to ${text(entry.high, spec.x)}`)] : []),
      ...(entry.sd != null ? [line(`standard deviation: ${text(entry.sd, spec.x)}`)] : []),
      ...(entry.note ?? entry.tag ? [line(entry.note ?? entry.tag)] : []),
    ] });
  });
  watch(canvas, targets, 34);
}

function numbersOfIntervals(spec) {
  const rows = spec.entries.map((entry) => [
    entry.label, text(entry.value, spec.x),
    entry.dots ? entry.dots.map((value) => text(value, spec.x)).join(", ")
      : `${text(entry.low, spec.x)} to ${text(entry.high, spec.x)}`,
    entry.note ?? entry.tag ?? (entry.sd === undefined ? "" : text(entry.sd, spec.x)),
  ]);
  const models = spec.entries.some((entry) => entry.dots);
  return tableOf(models ? ["method", "mean", "models", "standard deviation"]
    : ["method", spec.x.label, "interval", "verdict"], rows);
}

// -- scatter -----------------------------------------------------------------------------------

function drawScatter(figure, spec) {
  const plot = figure.querySelector(".plot");
  const controls = figure.querySelector(".controls");
  if (!controls.firstChild && spec.choices.length > 1) {
    const select = make("select", { "aria-label": "Cost" },
      ...spec.choices.map((choice, i) => make("option", { value: i }, choice.x.label)));
    select.addEventListener("change", () => {
      figure.choice = Number(select.value);
      drawScatter(figure, spec);
    });
    controls.append(make("label", {}, "Cost: ", select));
  }
  const choice = spec.choices[figure.choice ?? 0];
  const height = Math.round(Math.min(Math.max(plot.clientWidth * 0.62, 240), 340));
  const { canvas, width } = frame(plot, height, `${plot.dataset.title}: ${choice.x.label}`);
  const box = { left: 54, right: width - 18, top: 26, bottom: height - 44 };
  const x = scale(choice.x, choice.points.map((point) => point.x), box.left, box.right);
  const y = scale(spec.y, choice.points.flatMap((point) => [point.low, point.high]), box.bottom, box.top);
  drawAxes(canvas, x, y, box);
  const marks = choice.points.map((point) =>
    ({ cx: x(point.x), cy: y(point.y), top: y(point.high), bottom: y(point.low) }));
  const named = choice.points.map((point) => point.label);
  let labels = placed(named, marks, box);
  const numbered = !labels; // where not every name has room, the points are numbered
  labels ??= numberedDiscs(marks, box);
  figure.querySelector(".legend").replaceChildren(...(numbered
    ? named.map((name, i) => make("span", { class: "key" }, make("b", {}, String(i + 1)), name)) : []));
  const targets = choice.points.map((point, index) => {
    const { cx, cy, top, bottom } = marks[index];
    const group = shape("g", { class: `cost${index === 0 ? " best" : ""}` },
      shape("line", { x1: cx, x2: cx, y1: bottom, y2: top, class: "range" }),
      shape("circle", { cx, cy, r: numbered ? 3.5 : 5.5, class: "value" }));
    canvas.append(group);
    return { x: cx, y: cy, nodes: [group], show: () => [
      line(point.label, true),
      line(`${spec.y.label}: ${text(point.y, spec.y)} (${text(point.low, spec.y)} to ${text(point.high, spec.y)})`),
      line(`${choice.x.label}: ${text(point.x, choice.x)}`),
    ] };
  });
  labels.forEach((label, index) => { // above the lines of all points
    canvas.append(...label);
    targets[index].nodes.push(...label);
  });
  watch(canvas, targets, 50);
}

function overlap(a, b) {
  return a.right >= b.left && a.left <= b.right && a.bottom >= b.top && a.top <= b.bottom;
}

// A name beside every point, where it covers no other name, point or interval; null if one has no room.
function placed(names, marks, box) {
  const taken = marks.flatMap(({ cx, cy, top, bottom }) => [
    { left: cx - 7, right: cx + 7, top: cy - 7, bottom: cy + 7 },
    { left: cx - 2, right: cx + 2, top, bottom }]);
  const found = [];
  for (const [index, name] of names.entries()) {
    const { cx, cy } = marks[index];
    const wide = name.length * 6.9 + 4;
    const area = [[10, 0], [-10, 0], [10, -16], [-10, -16], [10, 16], [-10, 16]].map(([dx, dy]) => {
      const left = dx > 0 ? cx + dx : cx + dx - wide;
      return { left, right: left + wide, top: cy + dy - 8, bottom: cy + dy + 8 };
    }).find((one) => one.left >= box.left && one.right <= box.right + 14 && one.top >= 14
      && one.bottom <= box.bottom && !taken.some((other) => overlap(one, other)));
    if (!area) return null;
    taken.push(area);
    found.push([shape("text", { x: area.left + 2, y: area.bottom - 4, class: "point-name" }, name)]);
  }
  return found;
}

// A numbered disc for every point: on it, or else as near as there is room, with a line to it.
function numberedDiscs(marks, box) {
  const taken = [];
  return marks.map(({ cx, cy }, index) => {
    const places = [[cx, cy]];
    for (let away = 14; away < 90; away += 8) {
      for (let turn = 0; turn < 12; turn += 1) {
        const angle = (turn * Math.PI) / 6;
        places.push([cx + away * Math.cos(angle), cy + away * Math.sin(angle)]);
      }
    }
    const [px, py] = places.find(([px, py]) => px >= box.left + 9 && px <= box.right + 9 && py >= box.top - 4
      && py <= box.bottom - 9 && taken.every(([qx, qy]) => Math.hypot(px - qx, py - qy) > 19)) ?? places[0];
    taken.push([px, py]);
    return [
      ...(px === cx && py === cy ? [] : [shape("line", { x1: cx, y1: cy, x2: px, y2: py, class: "leader" })]),
      shape("circle", { cx: px, cy: py, r: 8.5, class: `disc${index === 0 ? " best" : ""}` }),
      shape("text", { x: px, y: py + 4, "text-anchor": "middle", class: "disc-number" }, String(index + 1))];
  });
}

function numbersOfScatter(spec) {
  const names = spec.choices[0].points.map((point) => point.label);
  const all = [...new Set([...names, ...spec.choices.flatMap((c) => c.points.map((p) => p.label))])];
  return tableOf(["method", spec.y.label, ...spec.choices.map((choice) => choice.x.label)],
    all.map((name) => {
      const found = spec.choices.map((choice) => choice.points.find((point) => point.label === name));
      return [name, text(found.find(Boolean).y, spec.y), ...found.map((point) => text(point?.x))];
    }));
}

// -- matrix: more classes than a table can show ------------------------------------------------

function drawMatrix(figure, spec) {
  const plot = figure.querySelector(".plot");
  const side = Math.min(plot.clientWidth, 820);
  const most = Math.max(spec.classes.length, spec.columns.length);
  const named = (side - 96) / most >= 9.5; // else names would be too small to read
  const margin = named ? 96 : 0;
  const { canvas } = frame(plot, side, plot.dataset.title);
  canvas.setAttribute("width", side);
  canvas.setAttribute("viewBox", `${-margin} ${-margin} ${side} ${side}`);
  const cell = (side - margin) / most;
  const short = (name) => (name.length > 15 ? `${name.slice(0, 14)}…` : name);
  (named ? spec.classes : []).forEach((name, i) => canvas.append(shape("text",
    { x: -5, y: (i + 0.5) * cell + 3.5, "text-anchor": "end", class: "cell-name" }, short(name))));
  (named ? spec.columns : []).forEach((name, i) => canvas.append(shape("text",
    { x: 0, y: 0, transform: `translate(${(i + 0.5) * cell + 3.5} -5) rotate(-90)`, class: "cell-name" }, short(name))));
  const totals = spec.classes.map(() => 0);
  spec.cells.forEach(([row, , count]) => { totals[row] += count; });
  canvas.append(shape("rect",
    { width: spec.columns.length * cell, height: spec.classes.length * cell, class: "ground" }));
  const targets = spec.cells.map(([row, column, count]) => {
    const level = Math.ceil(10 * Math.sqrt(count / totals[row]));
    canvas.append(shape("rect", {
      x: round(column * cell), y: round(row * cell), width: round(cell), height: round(cell),
      class: `cell h${level}${row === column ? " right" : ""}`,
    }));
    return { x: (column + 0.5) * cell, y: (row + 0.5) * cell, show: () => [
      line(`${spec.classes[row]} → ${spec.columns[column]}`, true),
      line(`${count} of ${totals[row]}, ${((100 * count) / totals[row]).toFixed(1)} %`),
    ] };
  });
  watch(canvas, targets, Math.max(12, cell));
}

function numbersOfMatrix(spec) {
  const errors = spec.cells.filter(([row, column]) => row !== column)
    .sort((a, b) => b[2] - a[2]).slice(0, 200);
  return tableOf(["true class", "answer", "images"],
    errors.map(([row, column, count]) => [spec.classes[row], spec.columns[column], String(count)]));
}
