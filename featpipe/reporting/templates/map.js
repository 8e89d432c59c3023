// The map of the features: every point an image, its neighbours beside it.

const SHAPES = ["circle", "square", "triangle", "diamond"];
const MOST_NAMED = 20;

function drawMap(figure, spec) {
  const state = figure.state ??= { view: 0, method: 0, only: "", errors: false };
  if (spec.sprite && !figure.sprite) {
    figure.sprite = new Image();
    figure.sprite.src = spec.sprite;
  }
  const plot = figure.querySelector(".plot");
  mapControls(figure, spec, state);
  const side = Math.min(plot.clientWidth, 640);
  const { xy } = spec.views[state.view];
  const heights = xy.filter((_, i) => i % 2);
  const top = Math.max(...heights);
  const room = side - 24;
  const height = Math.max(24 + ((top - Math.min(...heights)) / 1000) * room, side / 2);
  const { canvas } = frame(plot, Math.round(height), plot.dataset.title);
  canvas.setAttribute("width", side);
  canvas.setAttribute("viewBox", `0 0 ${side} ${Math.round(height)}`);
  const predicted = spec.methods[state.method].predicted;
  const targets = spec.ids.map((id, i) => {
    const wrong = predicted[i] !== spec.true[i];
    const cx = round(12 + (xy[2 * i] / 1000) * room);
    const cy = round(12 + ((top - xy[2 * i + 1]) / 1000) * room);
    const dimmed = (state.only !== "" && String(spec.true[i]) !== state.only) || (state.errors && !wrong);
    const node = mapPoint(cx, cy, spec.true[i], wrong, dimmed);
    return { i, x: cx, y: cy, wrong, node, nodes: [node], hidden: () => dimmed, show: () => [
      ...(figure.sprite ? [tile(figure, spec, i, 96)] : []),
      line(spec.classes[spec.true[i]], true),
      line(wrong ? `taken for ${spec.columns[predicted[i]]}` : "right"),
      line(id),
    ] };
  });
  // Errors are on top of what is right.
  const order = [...targets].sort((a, b) => Number(a.wrong) - Number(b.wrong));
  canvas.append(...order.map((target) => target.node));
  if (spec.classes.length <= MOST_NAMED) canvas.append(...classNames(spec, targets, side));
  watch(canvas, targets, 24);
  canvas.addEventListener("choose", (event) => {
    if (event.detail) inspect(figure, spec, event.detail.i, canvas, targets);
  });
  mapLegend(figure, spec);
  inspect(figure, spec, state.shown ?? 0, canvas, targets);
}

// The name of each class where most of its points are.
function classNames(spec, targets, side) {
  const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  return spec.classes.map((name, label) => {
    const mine = targets.filter(({ i }) => spec.true[i] === label);
    if (!mine.length) return null;
    const half = name.length * 4.2;
    const x = Math.min(Math.max(median(mine.map((one) => one.x)), half), side - half);
    return shape("text", { x, y: median(mine.map((one) => one.y)) + 4, "text-anchor": "middle", class: "class-name" }, name);
  }).filter(Boolean);
}

function mapPoint(cx, cy, label, wrong, dimmed) {
  // Neighbours in the list differ in shape as well: ten colours are five to some people.
  const kind = SHAPES[(label + Math.floor(label / 20)) % SHAPES.length];
  const r = 3.6;
  const look = { class: `point k${label % 10}${wrong ? " wrong" : ""}${dimmed ? " dimmed" : ""}` };
  if (kind === "circle") return shape("circle", { ...look, cx, cy, r });
  const paths = {
    square: `M${cx - r} ${cy - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${cx} ${cy - 4.6}l4.4 8h-8.8z`,
    diamond: `M${cx} ${cy - 5}l5 5l-5 5l-5 -5z`,
  };
  return shape("path", { ...look, d: paths[kind] });
}

function mapControls(figure, spec, state) {
  const controls = figure.querySelector(".controls");
  if (controls.firstChild) return;
  const again = () => drawMap(figure, spec);
  const views = make("div", { class: "switch", role: "group", "aria-label": "Projection" },
    ...spec.views.map((view, i) => {
      const button = make("button", { type: "button", "aria-pressed": String(i === 0) }, view.name);
      button.addEventListener("click", () => {
        state.view = i;
        press(button, views.children);
        again();
      });
      return button;
    }));
  const choose = (label, options, key) => {
    const select = make("select", {}, ...options.map(([value, name]) => make("option", { value }, name)));
    select.addEventListener("change", () => { state[key] = select.value; again(); });
    return make("label", {}, `${label} `, select);
  };
  const box = make("input", { type: "checkbox" });
  box.addEventListener("change", () => { state.errors = box.checked; again(); });
  controls.append(views,
    choose("Class", [["", "all"], ...spec.classes.map((name, i) => [String(i), name])], "only"),
    choose("Errors of", spec.methods.map((method, i) => [String(i), method.name]), "method"),
    make("label", {}, box, " only errors"));
}

function mapLegend(figure, spec) {
  const legend = figure.querySelector(".legend");
  if (spec.classes.length > 40) {
    legend.replaceChildren(make("span", { class: "small" },
      `${spec.classes.length} classes share ten colours and four shapes: choose one above.`));
    return;
  }
  const icon = (label) => shape("svg", { width: 12, height: 12, "aria-hidden": "true" }, mapPoint(6, 6, label, false, false));
  legend.replaceChildren(
    ...spec.classes.map((name, i) => make("span", { class: "key" }, icon(i), name)),
    make("span", { class: "key" }, shape("svg", { width: 12, height: 12, "aria-hidden": "true" },
      shape("circle", { class: "point wrong plain", cx: 6, cy: 6, r: 3.6 })), "ringed: misclassified; black ring: shown beside; dashed: its neighbours"));
}

function inspect(figure, spec, i, canvas, targets) {
  figure.state.shown = i;
  const predicted = spec.methods[figure.state.method].predicted;
  const wrong = predicted[i] !== spec.true[i];
  for (const target of targets) target.node.classList.remove("chosen", "near");
  targets[i].node.classList.add("chosen");
  const nearest = spec.neighbours[i];
  for (const j of nearest) targets[j].node.classList.add("near");
  const goTo = (j) => inspect(figure, spec, (j + spec.ids.length) % spec.ids.length, canvas, targets);
  const step = (words, by) => {
    const button = make("button", { type: "button" }, words);
    button.addEventListener("click", () => {
      goTo(i + by);
      figure.querySelector(`.inspector .steps button:nth-child(${by < 0 ? 1 : 2})`).focus();
    });
    return button;
  };
  figure.querySelector(".inspector").replaceChildren(
    make("div", { class: "inspected" },
      ...(figure.sprite ? [tile(figure, spec, i, 120)] : []),
      make("div", {},
        make("strong", {}, spec.classes[spec.true[i]]),
        make("div", { class: wrong ? "is-wrong" : "is-right" }, wrong ? `taken for ${spec.columns[predicted[i]]}` : "classified correctly"),
        make("div", { class: "small" }, spec.ids[i]),
        make("div", { class: "steps" }, step("Previous", -1), step("Next", 1)))),
    make("p", { class: "small" }, "Nearest neighbours"),
    make("ol", { class: "near-list" }, ...nearest.map((j) => {
      const button = make("button", { type: "button", title: spec.ids[j] },
        ...(figure.sprite ? [tile(figure, spec, j, 56)] : []),
        make("span", { class: spec.true[j] === spec.true[i] ? "" : "is-wrong" }, spec.classes[spec.true[j]]));
      button.addEventListener("click", () => goTo(j));
      return make("li", {}, button);
    })));
}

function tile(figure, spec, i, size) {
  const node = make("canvas", { width: size * 2, height: size * 2, class: `tile t${size}`, role: "img",
    "aria-label": `image ${spec.ids[i]}` });
  const paint = () => {
    const pen = node.getContext("2d");
    const { tile: side, tile_columns: columns } = spec;
    pen.drawImage(figure.sprite, (i % columns) * side, Math.floor(i / columns) * side, side, side,
      0, 0, size * 2, size * 2);
  };
  if (figure.sprite.complete && figure.sprite.naturalWidth) paint();
  else figure.sprite.addEventListener("load", paint, { once: true });
  return node;
}

function numbersOfMap(spec) {
  const { xy, name } = spec.views[0];
  return tableOf(["image", "true class", ...spec.methods.map((m) => m.name), `${name} x`, `${name} y`],
    spec.ids.map((id, i) => [id, spec.classes[spec.true[i]],
      ...spec.methods.map((m) => spec.columns[m.predicted[i]]), String(xy[2 * i]), String(xy[2 * i + 1])]));
}
