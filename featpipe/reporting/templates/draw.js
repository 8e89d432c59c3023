"use strict";
// Small helpers for drawing: elements, scales, axes, the value shown under the pointer.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function press(button, buttons) {
  for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
}

function round(value) {
  return Math.round(value * 100) / 100;
}

// -- numbers -----------------------------------------------------------------------------------

function text(value, axis = {}) {
  if (value == null) return "–"; // or undefined
  if (axis.names) return axis.names[value - 1];
  if (axis.format === "percent") return `${(100 * value).toFixed(axis.digits ?? 2)} %`;
  if (axis.format === "points") return signed((100 * value).toFixed(axis.digits ?? 2));
  if (value !== 0 && Math.abs(value) < 0.001) return exponential(value);
  const rounded = Number(value.toPrecision(5));
  const grouped = Math.abs(rounded) >= 10000
    ? Math.round(rounded).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f")
    : String(rounded);
  return grouped.replace("-", "−");
}

function signed(number) {
  return Number(number) > 0 ? `+${number}` : number.replace("-", "−");
}

function tickText(value, axis, step) {
  if (axis.format === "percent") {
    const digits = Math.max(0, -Math.floor(Math.log10(step * 100) + 1e-9));
    return `${(100 * value).toFixed(Math.min(digits, 2))} %`;
  }
  if (axis.format === "points") return signed(String(Number((100 * value).toPrecision(3))));
  if (axis.log && value > 0 && value < 0.001) return exponential(value);
  if (Math.abs(value) >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  return text(Number(value.toPrecision(10)));
}

function exponential(value) { // as the options are written: 1e-5
  return Number(value.toPrecision(3)).toExponential();
}

// -- scales ------------------------------------------------------------------------------------

function scale(axis, values, from, to) {
  const finite = values.filter(Number.isFinite);
  let low = axis.low ?? Math.min(...finite);
  let high = axis.high ?? Math.max(...finite);
  const warp = axis.log ? Math.log10 : (value) => value;
  if (axis.low == null) {
    const room = (warp(high) - warp(low)) * 0.06 || (axis.log ? 0.3 : Math.abs(high) * 0.05 || 1);
    low = axis.log ? 10 ** (warp(low) - room) : low - room;
    high = axis.log ? 10 ** (warp(high) + room) : high + room;
    if (!axis.log) low = Math.max(low, Math.min(0, ...finite)); // nothing here is negative unless its data is
    if (axis.format === "percent") high = Math.min(high, Math.max(1, ...finite));
  }
  const place = (value) =>
    round(from + ((warp(value) - warp(low)) / (warp(high) - warp(low))) * (to - from));
  place.low = low;
  place.high = high;
  place.axis = axis;
  return place;
}

function ticks(place, wanted) {
  const { low, high, axis } = place;
  if (axis.log) {
    const decades = Math.log10(high / low);
    const digits = [[1, 2, 5], [1, 3], [1]].find((some) => some.length * decades <= wanted) ?? [1];
    const every = Math.max(1, Math.ceil(decades / wanted));
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      if (power % every && digits.length === 1) continue;
      for (const digit of digits) {
        const value = Number((digit * 10 ** power).toPrecision(3));
        if (value >= low && value <= high) found.push(value);
      }
    }
    return { values: found, step: 1 };
  }
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const sizes = [0.2, 0.5, 1, 2, 5, 10].map((factor) => factor * power);
  let step = sizes.find((size) => size >= rough);
  const two = (size) => Math.floor(high / size) > Math.ceil(low / size); // one tick is no scale
  if (!two(step)) step = sizes.findLast((size) => size < step && two(size)) ?? step;
  if (axis.whole) step = Math.max(1, Math.round(step));
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) {
    values.push(Number((k * step).toPrecision(12)));
  }
  return { values, step };
}

// -- the frame of a chart ----------------------------------------------------------------------

function frame(plot, height, label) {
  const width = Math.max(240, Math.floor(plot.clientWidth));
  const canvas = shape("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0",
    "aria-label": `${label}. Arrow keys read the values; they are also in the table below.`,
  });
  plot.replaceChildren(canvas);
  return { canvas, width, height };
}

// Room for the numbers beside an axis: 54 pixels, or more for long ones.
function besideAxis(axis, values) {
  const place = scale(axis, values, 300, 0);
  const marks = ticks(place, 6);
  const longest = Math.max(...marks.values.map((value) => tickText(value, axis, marks.step).length));
  return Math.max(54, 14 + 7 * longest);
}

function drawAxes(canvas, x, y, box) {
  const group = shape("g", { class: "axes" });
  const across = ticks(x, Math.max(2, Math.floor((box.right - box.left) / 70)));
  for (const value of across.values) {
    const at = x(value);
    group.append(
      shape("line", { x1: at, x2: at, y1: box.top, y2: box.bottom, class: "grid" }),
      shape("text", { x: at, y: box.bottom + 18, "text-anchor": "middle" },
        tickText(value, x.axis, across.step)));
  }
  if (y) {
    const up = ticks(y, Math.max(2, Math.floor((box.bottom - box.top) / 48)));
    for (const value of up.values) {
      const at = y(value);
      group.append(
        shape("line", { x1: box.left, x2: box.right, y1: at, y2: at, class: "grid" }),
        shape("text", { x: box.left - 8, y: at + 4, "text-anchor": "end" },
          tickText(value, y.axis, up.step)));
    }
    group.append(shape("text", { x: 0, y: 12, class: "axis-name" }, y.axis.label));
  }
  group.append(shape("text",
    { x: box.right, y: box.bottom + 36, "text-anchor": "end", class: "axis-name" }, x.axis.label));
  canvas.append(group);
}

// -- the value under the pointer or the arrow keys ----------------------------------------------

const tip = document.querySelector(".tip");

function showTip(x, y, content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), document.documentElement.clientWidth - width - 8);
  const top = y - height - 12 < 8 ? y + 18 : y - height - 12;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

function hideTip() {
  tip.hidden = true;
}

// targets: [{x, y, show() → nodes, nodes, hidden() → boolean}], in reading order
function watch(canvas, targets, reach = 40) {
  let current = -1;
  let marked = [];
  const choose = (index, clientX, clientY) => {
    if (index !== current) {
      marked.forEach((node) => node.classList.remove("on"));
      current = index;
      marked = index < 0 ? [] : targets[index].nodes ?? [];
      marked.forEach((node) => node.classList.add("on"));
      canvas.classList.toggle("active", index >= 0);
      canvas.dispatchEvent(new CustomEvent("choose", { detail: index < 0 ? null : targets[index] }));
    }
    if (index < 0) return hideTip();
    const box = canvas.getBoundingClientRect();
    const ratio = box.width / canvas.viewBox.baseVal.width;
    return showTip(clientX ?? box.left + targets[index].x * ratio,
      clientY ?? box.top + targets[index].y * ratio, targets[index].show());
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const px = event.clientX - box.left;
    const py = event.clientY - box.top;
    let best = -1;
    let least = reach * reach;
    targets.forEach((target, index) => {
      if (target.hidden?.()) return;
      const away = (target.x - px) ** 2 + (target.y - py) ** 2;
      if (away < least) [best, least] = [index, away];
    });
    choose(best, event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => choose(-1));
  canvas.addEventListener("blur", () => choose(-1));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return choose(-1);
    if (!step || !targets.length) return undefined;
    event.preventDefault();
    let next = current;
    do next = (next + step + targets.length) % targets.length;
    while (targets[next].hidden?.() && next !== current);
    choose(next);
    announce(targets[next].show().map((node) => node.textContent).filter(Boolean).join(", "));
    return undefined;
  });
  return choose;
}

const announcer = make("div", { class: "announcer", "aria-live": "polite" });
document.body.append(announcer);

function announce(message) {
  announcer.textContent = message;
}

function line(words, strong = false) {
  return make(strong ? "strong" : "div", {}, words);
}

function tableOf(head, rows) {
  return make("table", { class: "numbers-table" },
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) =>
      make("tr", {}, ...row.map((cell, i) =>
        make("td", { class: i === 0 || Number.isNaN(Number.parseFloat(cell)) ? "text" : null }, String(cell)))))));
}
