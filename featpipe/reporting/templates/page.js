// What ties the page together: drawing, switches, theme, printing.

const KINDS = {
  lines: [drawLines, numbersOfLines],
  intervals: [drawIntervals, numbersOfIntervals],
  scatter: [drawScatter, numbersOfScatter],
  matrix: [drawMatrix, numbersOfMatrix],
  map: [drawMap, numbersOfMap],
};

const figures = [...document.querySelectorAll("figure.chart")];

function specOf(figure) {
  if (figure.spec) return figure.spec;
  const spec = JSON.parse(figure.querySelector("script").textContent);
  for (const one of spec.unit ? spec.series : []) { // whole numbers are half the bytes of decimals
    for (const key of ["x", "y"]) one[key] = one[key].map((value) => value / spec.unit);
  }
  figure.spec = spec;
  return spec;
}

function draw(figure) {
  const width = figure.querySelector(".plot").clientWidth;
  if (!width || figure.drawnAt === width) return;
  figure.drawnAt = width;
  KINDS[figure.dataset.kind][0](figure, specOf(figure));
  figure.dataset.drawn = "yes";
}

// Everything outside closed parts at once: a chart drawn later would move what is below it.
figures.forEach(draw);
document.addEventListener("toggle", (event) => {
  if (event.target.open) figures.filter((figure) => event.target.contains(figure)).forEach(draw);
}, true);

for (const figure of figures) {
  const numbers = figure.querySelector("details.numbers");
  numbers.addEventListener("toggle", () => {
    const room = numbers.querySelector(".scroll");
    if (numbers.open && !room.firstChild) room.append(KINDS[figure.dataset.kind][1](specOf(figure)));
  });
}

let waiting = 0;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => figures.filter((figure) => figure.dataset.drawn).forEach(draw), 120);
});

// -- switches ----------------------------------------------------------------------------------

for (const block of document.querySelectorAll(".confusion")) {
  const buttons = [...block.querySelectorAll("[data-show]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      block.dataset.mode = button.dataset.show;
      press(button, buttons);
    });
  }
}

// -- links into closed parts, and where the reader is ---------------------------------------------

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    figures.forEach(draw);
  }
  target?.scrollIntoView({ behavior: "instant" });
}
window.addEventListener("hashchange", openTarget);
openTarget();

const contents = document.querySelector("nav.contents");
if (contents) {
  const links = new Map([...contents.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
  const reader = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("main section[id]").forEach((section) => reader.observe(section));
  const small = matchMedia("(max-width: 68rem)");
  const fold = () => { contents.querySelector("details").open = !small.matches; };
  small.addEventListener("change", fold);
  fold();
}

// -- light and dark ----------------------------------------------------------------------------

const theme = document.querySelector("button.theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
}

function nameTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", isDark() ? "Show in light colours" : "Show in dark colours");
}

theme.hidden = false;
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
prefersDark.addEventListener("change", nameTheme);
nameTheme();

// -- paper -------------------------------------------------------------------------------------

let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("main details:not(.numbers)")].filter((part) => !part.open);
  for (const part of closed) part.open = true;
  for (const figure of figures) draw(figure);
});
window.addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
