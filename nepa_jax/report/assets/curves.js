"use strict";
// The curves of the runs that are chosen, metric by metric.

const TITLES = {
  "train/loss": "Loss",
  "train/lr": "Learning rate",
  "train/grad_norm": "Gradient norm",
  "train/param_norm": "Norm of the weights",
  "train/update_norm": "Norm of the update",
  "train/skipped_steps": "Steps thrown away",
  "train/skipped_in_a_row": "Steps thrown away in a row",
  "train/cos_copy": "Cosine of copying",
  "train/target_std": "Spread of targets",
  "train/pred_std": "Spread of predictions",
  "train/loss_mean_patch": "Loss of the mean patch",
  "train/loss_visible": "Loss on visible patches",
  "perf/images_per_s": "Images per second",
  "perf/mfu": "MFU",
  "time/step_s": "Step time, s",
  "time/data_wait_s": "Data wait, s a step",
  "data/substitutes": "Bad records replaced",
  "data/read_mb": "Megabytes read",
  "data/queue": "Batches ready",
};
const OPTIMISER = ["train/lr", "train/grad_norm", "train/update_norm", "train/param_norm"];
// Title, what belongs there, and which come first.
const GROUPS = [
  ["Learning", (key) => key.startsWith("train/") && !OPTIMISER.includes(key), ["train/loss"]],
  ["Optimiser", (key) => OPTIMISER.includes(key), OPTIMISER],
  ["Speed", (key) => /^(perf|time)\//.test(key), ["perf/images_per_s", "perf/mfu", "time/data_wait_s"]],
  ["Evaluations while it trains", (key) => key.startsWith("eval/"), []],
  ["Time by use", (key) => key.startsWith("goodput/"), ["goodput/steps"]],
  ["Other", () => true, []],
];
// What a trivial answer would get, beside the loss: the metric, its sign there, and in words.
const TRIVIAL = [["train/loss_mean_patch", 1, "the mean patch"], ["train/cos_copy", -1, "copying the patch before"]];
const MOST_TRIVIAL = 3; // runs with them
const FOLDED = ["Time by use", "Other"]; // closed until asked for
const AXES = {
  step: { name: "step", of: () => (step) => step },
  images: { name: "images", of: (run) => run.batch_size && ((step) => step * run.batch_size) },
  hours: { name: "hours in steps", of: (run) => clock(run.curves["time/step_s"]) },
};

/** What the controls say of all curves. */
const choice = { axis: "step", smoothing: 30, logX: false, logY: false, clip: false, own: {} };

/** The charts that are on the page, and what they share. */
const charts = {
  byKey: new Map(),
  view: null,
  zoom(view) {
    charts.view = view;
    document.getElementById("reset").hidden = !view;
    redraw();
  },
  hover(x, chart) {
    for (const { chart: other } of charts.byKey.values()) if (other !== chart && other.seen) other.hover(x);
    showTip(chart, chart.hover(x));
  },
};

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const chart = target.chart;
    chart.seen = isIntersecting;
    if (isIntersecting && chart.stale) refresh(chart);
  }
}, { rootMargin: "200px" });

/** Which metrics go where: [title, keys], and the keys whose value never changes. */
function grouped(runs) {
  const left = new Set(runs.flatMap((run) => Object.keys(run.curves)));
  const groups = [];
  for (const [title, belongs, first] of GROUPS) {
    const keys = [...left].filter(belongs);
    keys.forEach((key) => left.delete(key));
    const place = (key) => (first.includes(key) ? first.indexOf(key) : first.length);
    keys.sort((a, b) => place(a) - place(b) || a.localeCompare(b, "en", { numeric: true }));
    if (keys.length) groups.push([title, keys]);
  }
  return groups;
}

/** The one value that a metric has in all runs; undefined if it changes. */
function constant(runs, key) {
  const curves = runs.map((run) => run.curves[key]).filter(Boolean);
  if (curves.some((curve) => curve.lost_count)) return undefined;
  const all = ends(curves.flatMap((curve) => ends(curve.y) || []));
  return all && all[0] === all[1] && curves.some((curve) => curve.count > 1) ? all[0] : undefined;
}

/** The groups of charts, as elements. */
function curveGroups(runs) {
  for (const { chart } of charts.byKey.values()) watcher.unobserve(chart.root);
  charts.byKey.clear();
  return grouped(runs).map(([title, keys]) => {
    const still = keys.filter((key) => key !== "train/loss" && constant(runs, key) !== undefined);
    const moving = keys.filter((key) => !still.includes(key));
    const words = still.map((key) => `${key} ${shown(constant(runs, key))}`).join(" · ");
    const inside = [
      el("div", { class: "charts" }, moving.map((key) => chartOf(key))),
      words ? el("p", { class: "still" }, "Never changes: ", words) : null,
    ];
    const id = `group-${title.toLowerCase().replaceAll(" ", "-")}`;
    return FOLDED.includes(title) ? more(id, title, ...inside)
      : el("div", { class: "group", id }, el("h3", {}, title), ...inside);
  });
}

function chartOf(key) {
  const log = el("button", { type: "button", class: "quiet", "aria-pressed": "false", title: "logarithmic height" }, "log");
  const chart = new Chart({
    title: TITLES[key] || key, note: TITLES[key] ? key : "", wide: key === "train/loss", shared: charts, tools: [log],
  });
  log.addEventListener("click", () => {
    choice.own[key] = !logarithmic(key);
    refresh(chart);
  });
  Object.assign(chart, { key, log, stale: true, seen: false });
  chart.root.chart = chart;
  chart.root.dataset.metric = key;
  charts.byKey.set(key, { chart });
  watcher.observe(chart.root);
  return chart.root;
}

function logarithmic(key) {
  return choice.own[key] ?? choice.logY;
}

/** Draws those in sight at once, the others when they come there. */
function redraw() {
  for (const { chart } of charts.byKey.values()) {
    chart.stale = true;
    if (chart.seen) refresh(chart);
  }
}

function refresh(chart) {
  chart.stale = false;
  chart.log.setAttribute("aria-pressed", String(logarithmic(chart.key)));
  const runs = shownRuns().filter((run) => run.curves[chart.key]);
  const width = smoothingWidth();
  const lines = runs.map((run) => lineOf(run, run.curves[chart.key], width)).filter(Boolean);
  if (chart.key === "train/loss" && runs.length <= MOST_TRIVIAL) lines.push(...runs.flatMap((run) => trivial(run, width)));
  const marks = runs.flatMap((run) => marksOf(run));
  chart.show({
    lines, marks, span: wholeSpan(), logX: choice.logX, logY: logarithmic(chart.key), clip: choice.clip,
  });
}

/** Steps over which curves are smoothed: a share of the longest run; 0: not at all. */
function smoothingWidth() {
  const longest = Math.max(1, ...shownRuns().map((run) => run.step));
  return choice.smoothing ? longest * (choice.smoothing / 100) ** 2 * 0.1 : 0;
}

function lineOf(run, curve, width) {
  const along = AXES[choice.axis].of(run);
  if (!along) return null;
  const smooth = width && curve.x.length > 2 ? smoothLine(curve, width) : null;
  return {
    ...lookOf(run), name: run.name, x: curve.x.map(along), y: curve.y, lost: curve.lost.map(along),
    smooth: smooth && { x: smooth.x.map(along), y: smooth.y },
  };
}

function trivial(run, width) {
  return TRIVIAL.filter(([key]) => run.curves[key]).map(([key, sign, words]) => {
    const signed = (values) => values && values.map((value) => sign * value);
    const { x, y, mean_x, mean_y } = run.curves[key];
    const line = lineOf(run, { x, y: signed(y), mean_x, mean_y: signed(mean_y), lost: [] }, width);
    return line && { ...line, ...(line.smooth || {}), smooth: null, faint: true, dash: [5, 4], name: `${run.name}: ${words}` };
  }).filter(Boolean);
}

/** From the first to the last step of the runs that are shown: the same for all charts. */
function wholeSpan() {
  return ends(shownRuns().flatMap((run) => {
    const along = AXES[choice.axis].of(run);
    const first = Math.min(...Object.values(run.curves).map((curve) => curve.x[0] ?? Infinity));
    return along && first <= run.step ? [first, run.step].map(along) : [];
  }));
}

function marksOf(run) {
  const along = AXES[choice.axis].of(run);
  if (!along) return [];
  return run.restarts.filter(({ step }) => step > 0).map((restart) => ({
    x: along(restart.step), color: lookOf(run).color, text: `${run.name}: ${restartText(restart)}`,
  }));
}

function restartText({ step, again, away_s }) {
  const parts = [`restarted at step ${whole(step)}`];
  if (again) parts.push(`${whole(again)} done again`);
  if (away_s >= 1) parts.push(`${duration(away_s)} away`);
  return parts.join(", ");
}

/** The values under the pointer, beside it. */
function showTip(chart, found) {
  const tip = document.getElementById("tip");
  tip.hidden = !found || (!found.rows.length && !found.notes.length);
  if (tip.hidden) return;
  const name = chart.content.xName || AXES[choice.axis].name;
  const at = name === "step" || name === "images" ? whole(found.x) : shown(found.x);
  tip.replaceChildren(
    el("div", { class: "at" }, `${name} ${at}`),
    ...found.rows.slice(0, 16).map((row) => el("div", { class: "row" },
      swatch(row.color, row.dash), el("span", { class: "name" }, row.name),
      el("span", { class: "value" }, (chart.content.yText || shown)(row.y)),
      el("span", { class: "smooth" }, row.smooth === null ? "" : `≈ ${shown(row.smooth)}`))),
    ...found.notes.map((note) => el("div", { class: "note" }, note)),
  );
  const box = chart.canvas.getBoundingClientRect();
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const right = box.left + found.px + 14;
  const left = right + width > document.documentElement.clientWidth - 8 ? box.left + found.px - width - 14 : right;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(box.top + 12, window.innerHeight - height - 8))}px`;
}

function swatch(color, dash) {
  return el("span", { class: dash ? "swatch dashed" : "swatch", style: { "--color": color } });
}
