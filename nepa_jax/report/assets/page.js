"use strict";
// Puts the page together, and keeps it up to date where a server gives it.

let story = JSON.parse(document.getElementById("data").textContent);
const refreshEvery = 1000 * story.refresh_s; // 0: the page is a file
const MOST_AT_FIRST = 8; // runs that are shown until others are chosen
const COLORS = 8; // --run-0 …

// The runs that are shown, each with a colour of its own while there are enough.
const chosen = new Map();
let layerCharts = [];

function isShown(run) {
  return chosen.has(run.name);
}

function shownRuns() {
  return story.runs.filter(isShown);
}

function choose(run) {
  const taken = new Set(chosen.values());
  let slot = 0;
  while (taken.has(slot)) slot += 1;
  chosen.set(run.name, slot);
}

function toggle(run) {
  if (isShown(run)) chosen.delete(run.name);
  else choose(run);
  render();
}

function lookOf(run) {
  const slot = chosen.get(run.name) ?? 0;
  const color = getComputedStyle(document.documentElement).getPropertyValue(`--run-${slot % COLORS}`).trim();
  return { color, dash: slot < COLORS ? null : slot < 2 * COLORS ? [6, 3] : [2, 2] };
}

/** The newest runs that have something to show. */
function chooseAtFirst() {
  const able = story.runs.filter((run) => run.lines || story.runs.length === 1);
  [...able].sort((a, b) => (b.last || 0) - (a.last || 0)).slice(0, MOST_AT_FIRST)
    .sort((a, b) => able.indexOf(a) - able.indexOf(b)).forEach(choose);
}

// The parts, made anew when what they show is another

const parts = [
  ["head", heading], ["overview", overview], ["legend", legend], ["curves", curves], ["alarms", () => alarms(shownRuns())],
  ["time", () => time(shownRuns())], ["evaluations", () => evaluations(shownRuns())], ["pictures", () => pictures(shownRuns())],
  ["config", () => configs(shownRuns())], ["commands", () => commands(shownRuns())], ["notes", () => notes(story.runs)],
];

function render() {
  const page = document.getElementById("page");
  const open = [...page.querySelectorAll("details[open]")].map((details) => details.id);
  const focused = document.activeElement?.dataset?.run;
  const [scrollX, scrollY] = [window.scrollX, window.scrollY];
  layerCharts = [];
  page.replaceChildren(...parts.map(([, make]) => make()).filter(Boolean));
  open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
  if (focused) page.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  window.scrollTo(scrollX, scrollY);
  layerCharts.forEach((chart) => chart.again());
  redraw();
}

function heading() {
  const [only] = story.runs;
  const one = story.runs.length === 1;
  const links = [["curves", "Curves"], ["time", "Time"], ["evaluations", "Evaluations"], ["pictures", "Pictures"], ["config", "Config"], ["commands", "Do it again"]];
  const there = { time: "starts", evaluations: "evaluations", pictures: "pictures" };
  const linked = links.filter(([id]) => !there[id] || shownRuns().some((run) => run[there[id]].length));
  return el("header", {},
    el("div", { class: "top" },
      el("h1", {}, story.title, one ? [" ", stateOf(only)] : null),
      el("button", { type: "button", class: "quiet", id: "theme", onclick: nextTheme }, `Theme: ${theme}`)),
    el("p", { class: "muted" },
      one && only.method ? `${only.method.toUpperCase()} · ` : "", one ? `${only.path} · ` : `${story.runs.length} runs · `,
      el("span", { id: "made" }, madeText())),
    el("nav", { "aria-label": "parts of this page" }, linked.map(([id, title]) => el("a", { href: `#${id}` }, title))));
}

function madeText() {
  return `${refreshEvery ? "live, as of" : "made"} ${moment(story.made)}`;
}

function overview() {
  return story.runs.length > 1 ? runTable(story.runs) : tiles(story.runs[0]);
}

function curves() {
  const runs = shownRuns();
  const told = runs.filter((run) => Object.values(run.curves).some((curve) => curve.mean_x));
  return section("curves", "Curves", controls(),
    runs.some((run) => run.lines) ? curveGroups(runs) : el("p", {}, story.runs.length > 1 ? "Choose runs in the table above." : "No step is logged yet."),
    told.length ? el("p", { class: "still" }, `Long curves are drawn by the least and the greatest value of every ${told.map((run) => whole(run.lines / 1000)).join(", ")} lines or so, and smoothed by their means: no extreme is left out.`) : null);
}

/** The runs and their colours, always in sight. */
function legend() {
  const runs = shownRuns();
  if (story.runs.length < 2) return null;
  return el("div", { class: "chips", "aria-label": "runs that are shown" }, runs.map((run) =>
    el("button", { type: "button", class: "chip", title: "leave out", onclick: () => toggle(run) }, swatch(lookOf(run).color, lookOf(run).dash), run.name)));
}

function controls() {
  const told = el("output", {}, smoothingText());
  const slider = el("input", { type: "range", min: "0", max: "100", value: String(choice.smoothing), id: "smoothing" });
  slider.addEventListener("input", () => {
    choice.smoothing = Number(slider.value);
    told.textContent = smoothingText();
    redraw();
  });
  const axes = Object.entries(AXES).filter(([, { of }]) => shownRuns().every((run) => of(run)));
  const along = el("select", { id: "axis", onchange: () => { choice.axis = along.value; charts.zoom(null); } },
    axes.map(([value, { name }]) => el("option", { value, selected: value === choice.axis }, name)));
  if (!axes.some(([value]) => value === choice.axis)) choice.axis = "step";
  const box = (key, text, note) => el("label", { title: note }, el("input", { type: "checkbox", id: key, checked: choice[key], onchange: (event) => {
    choice[key] = event.target.checked;
    if (key === "logY") choice.own = {};
    redraw();
  } }), text);
  return el("div", { class: "controls" },
    el("label", {}, "Smoothing ", slider, told), el("label", {}, "along ", along),
    box("logX", "log x", ""), box("logY", "log y", ""), box("clip", "fit without outliers", "how many lie outside is told above each chart"),
    el("button", { type: "button", class: "quiet", id: "reset", hidden: !charts.view, onclick: () => charts.zoom(null) }, "Whole range"),
    el("span", { class: "hint" }, "drag across a chart to zoom, double-click to return"));
}

function smoothingText() {
  const width = smoothingWidth();
  return width ? `over ${whole(Math.max(1, width))} steps` : "off";
}

// Light and dark

const THEMES = ["auto", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  try {
    localStorage.setItem("nepa_jax-theme", theme);
  } catch { /* a page of a file may have no store */ }
  render();
}

function setTheme(name) {
  theme = THEMES.includes(name) ? name : "auto";
  const dark = theme === "dark" || (theme === "auto" && prefersDark.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

// Live

async function update() {
  try {
    if (!document.hidden) {
      const answer = await fetch("data", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const fresh = await answer.json();
      const known = new Set(story.runs.map((run) => run.name));
      if (fresh.made !== story.made) {
        story = fresh;
        fresh.runs.filter((run) => run.lines && !known.has(run.name) && chosen.size < MOST_AT_FIRST).forEach(choose);
        if (!chosen.size) chooseAtFirst();
        render();
      }
      document.body.classList.remove("gone");
      document.getElementById("made").textContent = madeText();
    }
  } catch {
    document.body.classList.add("gone");
    document.getElementById("made").textContent = `the server is gone; this is as of ${moment(story.made)}`;
  }
  setTimeout(update, refreshEvery);
}

function begin() {
  setTheme(theme);
  try {
    setTheme(localStorage.getItem("nepa_jax-theme"));
  } catch { /* none */ }
  chooseAtFirst();
  render();
  let resized = 0;
  new ResizeObserver(() => {
    cancelAnimationFrame(resized);
    resized = requestAnimationFrame(() => {
      layerCharts.forEach((chart) => chart.again());
      redraw();
    });
  }).observe(document.getElementById("page"));
  prefersDark.addEventListener("change", () => {
    setTheme(theme);
    render();
  });
  addEventListener("scroll", () => (document.getElementById("tip").hidden = true), { passive: true });
  if (refreshEvery) setTimeout(update, refreshEvery);
}

begin();
