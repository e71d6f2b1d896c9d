"use strict";
// The parts of the page beside its curves.

const STATES = {
  done: ["done", "its last step is done"],
  running: ["running", "it gave a sign of life a moment ago"],
  quiet: ["stale", "it lives, but writes no lines any more"],
  lost: ["stale", "no sign of life: it was killed, or its machine is away"],
  stopped: ["stopped", "it ended before its last step; the same command goes on"],
};
const USES = [
  ["steps", "steps that count"], ["data", "waiting for data"], ["checkpoint", "checkpoints"], ["evaluation", "evaluations"],
  ["compile", "compiling"], ["start", "starting"], ["restore", "restoring"], ["lost", "steps done again"], ["away", "no process ran"],
];

function stateOf(run) {
  const [word, meaning] = STATES[run.state];
  const last = run.last && run.state !== "done" ? `; last line ${duration(Math.max(0, story.made - run.last))} before this page was made` : "";
  return el("span", { class: `state ${word}`, title: meaning + last }, word);
}

function progressOf(run) {
  const share = run.total ? Math.min(1, run.step / run.total) : null;
  return el("span", { class: "progress" }, whole(run.step), run.total ? ` / ${whole(run.total)}` : "",
    share === null ? null : el("span", { class: "bar" }, el("span", { style: { width: `${100 * share}%` } })));
}

/** The number of each probe that any run has: [probe, per run]. */
function probes(runs) {
  return [...new Set(runs.flatMap((run) => run.evaluations.map((report) => report.probe)))];
}

/** All runs, to sort and to choose from. */
function runTable(runs) {
  const latest = (key) => (run) => run.latest[key];
  const wall = (run) => (run.starts.length ? run.starts[run.starts.length - 1].ended - run.starts[0].began : null);
  const columns = [
    { title: "Run", value: (run) => run.name, cell: chooser },
    { title: "State", value: (run) => STATES[run.state][0], cell: stateOf },
    { title: "Method", value: (run) => run.method, cell: (run) => run.method || MISSING },
    { title: "Step", right: true, value: (run) => run.step, cell: progressOf },
    { title: "Loss", right: true, value: latest("train/loss"), cell: (run) => shown(run.latest["train/loss"]) },
    { title: "Images/s", right: true, value: latest("perf/images_per_s"), cell: (run) => shown(run.latest["perf/images_per_s"]) },
    { title: "MFU", right: true, value: latest("perf/mfu"), cell: (run) => percent(run.latest["perf/mfu"]) },
    { title: "Goodput", right: true, note: "share of the time spent in steps that count", value: (run) => run.shares.steps, cell: (run) => percent(run.shares.steps) },
    { title: "Time", right: true, note: "since its first start", value: wall, cell: (run) => duration(wall(run)) },
    ...probes(runs).map((probe) => {
      const report = (run) => run.evaluations.find((found) => found.probe === probe);
      return { title: probe, right: true, value: (run) => report(run)?.number, cell: (run) => (report(run) ? score(report(run).number, report(run).per_cent) : MISSING) };
    }),
    { title: "Last line", right: true, value: (run) => run.last, cell: (run) => moment(run.last) },
  ].filter((column) => column.title !== "MFU" || runs.some((run) => run.latest["perf/mfu"]));
  return section("runs", "Runs", table("run-table", columns, runs));
}

function chooser(run) {
  const box = el("input", { type: "checkbox", checked: isShown(run), onchange: () => toggle(run) });
  box.dataset.run = run.name;
  return el("label", { class: "choose" }, box, isShown(run) ? swatch(lookOf(run).color, lookOf(run).dash) : el("span", { class: "swatch none" }), run.name);
}

/** The few numbers of one run that are looked for first. */
function tiles(run) {
  const facts = [
    ["Loss", shown(run.latest["train/loss"]), ""],
    ["Step", whole(run.step), run.total ? `of ${whole(run.total)}` : ""],
    ["Images per second", shown(run.latest["perf/images_per_s"]), run.latest["perf/mfu"] ? `MFU ${percent(run.latest["perf/mfu"])}` : ""],
    ["Goodput", percent(run.shares.steps), run.restarts.length ? `${run.restarts.length} restart${run.restarts.length > 1 ? "s" : ""}` : ""],
    ...(run.best ? [[`Best ${run.best.by.replace(/^eval\//, "")}`, shown(run.best.score), `at step ${whole(run.best.step)}`]] : []),
    ...run.evaluations.slice(0, 2).map((report) => [report.probe, score(report.number, report.per_cent),
      report.untrained === null ? report.metric : `untrained ${score(report.untrained, report.per_cent)}`]),
  ];
  return el("div", { class: "tiles" }, facts.map(([name, value, below]) =>
    el("div", { class: "tile" }, el("div", { class: "name" }, name), el("div", { class: "value" }, value), el("div", { class: "below" }, below))));
}

function alarms(runs) {
  const found = runs.flatMap((run) => run.alarms.map((alarm) => ({ run, ...alarm })));
  const lost = runs.flatMap((run) => Object.entries(run.curves).filter(([, curve]) => curve.lost_count)
    .map(([key, curve]) => ({ run, first: curve.lost[0], count: curve.lost_count, last: curve.lost[curve.lost.length - 1], text: `${key} was not finite` })));
  const all = [...lost, ...found];
  if (!all.length) return null;
  return section("alarms", "Alarms", el("ul", { class: "alarms" }, all.map((alarm) => el("li", {},
    runs.length > 1 ? el("span", { class: "who" }, swatch(lookOf(alarm.run).color, lookOf(alarm.run).dash), alarm.run.name) : null,
    el("span", { class: "when" }, `step ${whole(alarm.first)}`, alarm.count > 1 ? `, at ${whole(alarm.count)} logged steps up to ${whole(alarm.last)}` : ""),
    el("span", {}, alarm.text)))));
}

/** Where the time went, as a bar for each run. */
function time(runs) {
  const timed = runs.filter((run) => run.starts.length);
  if (!timed.length) return null;
  const used = USES.filter(([use]) => timed.some((run) => run.shares[use] > 0.0005));
  return section("time", "Where the time went",
    el("ul", { class: "legend" }, used.map(([use, words]) => el("li", {}, el("span", { class: `use ${use}` }), words))),
    timed.map((run) => el("div", { class: "goodput" },
      el("div", { class: "who" }, runs.length > 1 ? [swatch(lookOf(run).color, lookOf(run).dash), run.name] : null,
        el("span", { class: "muted" }, `${percent(run.shares.steps)} in steps that count, of ${duration(run.starts[run.starts.length - 1].ended - run.starts[0].began)}`)),
      el("div", { class: "stack", role: "img", "aria-label": used.map(([use, words]) => `${words} ${percent(run.shares[use])}`).join(", ") },
        used.map(([use, words]) => el("span", { class: `use ${use}`, title: `${words}: ${percent(run.shares[use])}`, style: { width: `${100 * Math.max(0, run.shares[use] || 0)}%` } }))))),
    more("starts", "Every start", startTable(timed)));
}

function startTable(runs) {
  const rows = runs.flatMap((run) => run.starts.map((start, at) => ({ run, at, start, again: Math.max(0, start.last_step - (run.starts[at + 1]?.first_step ?? Infinity)) })));
  const uses = ["start", "restore", "compile", "data", "checkpoint", "evaluation"].filter((use) => rows.some(({ start }) => start.seconds[use] > 0.05));
  const columns = [
    { title: "Run", value: (row) => row.run.name, cell: (row) => row.run.name },
    { title: "Began", value: (row) => row.start.began, cell: (row) => moment(row.start.began) },
    { title: "For", right: true, value: (row) => row.start.ended - row.start.began, cell: (row) => duration(row.start.ended - row.start.began) },
    { title: "From step", right: true, value: (row) => row.start.first_step, cell: (row) => whole(row.start.first_step) },
    { title: "To step", right: true, value: (row) => row.start.last_step, cell: (row) => whole(row.start.last_step) },
    { title: "Done again", right: true, value: (row) => row.again, cell: (row) => (row.again ? whole(row.again) : MISSING) },
    ...uses.map((use) => ({ title: use, right: true, value: (row) => row.start.seconds[use], cell: (row) => duration(row.start.seconds[use]) })),
  ].filter((column) => column.title !== "Run" || runs.length > 1);
  return table("start-table", columns, rows);
}

/** Scores by layer, a chart for each probe, and the numbers that are reported. */
function evaluations(runs) {
  const rows = runs.flatMap((run) => run.evaluations.map((report) => ({ run, ...report })));
  if (!rows.length) return null;
  const kept = { view: null, zoom() {}, hover: (x, chart) => showTip(chart, chart.hover(x)) };
  const drawn = probes(runs).map((probe) => layerChart(rows.filter((row) => row.probe === probe), kept, runs.length > 1)).filter(Boolean);
  const columns = [
    { title: "Run", value: (row) => row.run.name, cell: (row) => row.run.name },
    { title: "Probe", value: (row) => row.probe, cell: (row) => row.probe },
    { title: "Metric", value: (row) => row.metric, cell: (row) => row.metric },
    { title: "Number", right: true, value: (row) => row.number, cell: (row) => el("strong", {}, score(row.number, row.per_cent)) },
    { title: "Layer", right: true, value: (row) => row.layer, cell: (row) => row.layer ?? MISSING },
    { title: "Untrained", right: true, note: "the same architecture with fresh weights, at the same layer", value: (row) => row.untrained, cell: (row) => score(row.untrained, row.per_cent) },
    { title: "Chance", right: true, value: (row) => row.chance, cell: (row) => score(row.chance, row.per_cent) },
    { title: "Best on test", right: true, note: "over all layers and settings: no number to report", value: (row) => row.best, cell: (row) => score(row.best, row.per_cent) },
    { title: "Step", right: true, value: (row) => row.step, cell: (row) => whole(row.step) },
    { title: "Chosen", value: (row) => row.chosen, cell: (row) => row.chosen },
  ].filter((column) => column.title !== "Run" || runs.length > 1);
  return section("evaluations", "What the features are worth",
    el("div", { class: "charts" }, drawn.map((chart) => chart.root)),
    table("evaluation-table", columns, rows),
    each("results", "Every evaluation so far", runs.filter((run) => run.results.length > 1), (run, at) => plainTable(`result-table-${at}`, run.results)),
    each("cards", runs.length > 1 ? "The cards" : "The card", runs.filter((run) => run.card), (run) => el("pre", {}, run.card)));
}

/** Something of every run, under one head that opens. */
function each(id, title, runs, make) {
  return runs.length ? more(id, title, runs.map((run, at) => [runs.length > 1 ? el("h3", {}, run.name) : null, make(run, at)])) : null;
}

function layerChart(rows, shared, several) {
  const lines = rows.flatMap((row) => {
    const look = lookOf(row.run);
    const line = (name, points, more) => ({ name, color: look.color, x: points.map(([x]) => x), y: points.map(([, y]) => y), dots: true, ...more });
    const name = several ? row.run.name : "trained";
    return [line(name, row.by_layer, { dash: look.dash }), row.untrained_by_layer.length ? line(`${several ? `${name}, ` : ""}untrained`, row.untrained_by_layer, { dash: [2, 4] }) : null];
  }).filter((line) => line && line.x.length);
  if (!lines.length) return null;
  const [{ probe, metric, per_cent: perCent, chance }] = rows;
  const chart = new Chart({ title: probe, note: `${metric} by layer (0: embedding)`, shared });
  const content = {
    lines, inset: true, xName: "layer", yText: (y) => (perCent ? `${Number((100 * y).toFixed(1))} %` : shown(y)),
    rings: rows.map((row) => ({ x: row.layer, y: row.number })),
    levels: chance === null ? [] : [{ y: chance, text: "chance" }],
  };
  chart.again = () => chart.show(content);
  layerCharts.push(chart);
  return chart;
}

function plainTable(id, [head, ...rows]) {
  return table(id, head.map((title, at) => ({ title, value: (row) => (row[at] !== "" && !Number.isNaN(Number(row[at])) ? Number(row[at]) : row[at]), cell: (row) => row[at] ?? "" })), rows);
}

function pictures(runs) {
  const groups = new Map();
  for (const run of runs) {
    for (const picture of run.pictures) {
      const cut = picture.name.lastIndexOf("/");
      const title = [runs.length > 1 ? run.name : "", cut > 0 ? picture.name.slice(0, cut) : ""].filter(Boolean).join(": ");
      groups.set(title, [...(groups.get(title) || []), picture]);
    }
  }
  if (!groups.size) return null;
  return section("pictures", "Pictures", [...groups].map(([title, found]) => [
    title ? el("h3", {}, title) : null,
    el("div", { class: "pictures" }, [...seriesOf(found)].map(([name, series]) => pictureOf(`${title} ${name}`, series))),
  ]));
}

/** Pictures whose names differ in a number alone, such as a step, by the name without it. */
function seriesOf(found) {
  const series = new Map();
  for (const picture of found) {
    const name = picture.name.replace(/\d+/g, "#");
    series.set(name, [...(series.get(name) || []), picture]);
  }
  return series;
}

/** Where a series of pictures stands, by its id, once it was moved. */
const shownPicture = {};

/** A picture, or the last of several with a slider back to the first. */
function pictureOf(id, series) {
  const last = series.length - 1;
  let picture = series[Math.min(shownPicture[id] ?? last, last)];
  const image = el("img", { loading: "lazy" });
  const caption = el("span", {});
  const show = () => {
    image.src = picture.source;
    image.alt = picture.name;
    caption.textContent = picture.name.slice(picture.name.lastIndexOf("/") + 1);
  };
  const slider = el("input", { type: "range", min: "0", max: String(last), value: String(series.indexOf(picture)), "aria-label": "which of the series" });
  slider.addEventListener("input", () => {
    shownPicture[id] = Number(slider.value);
    picture = series[shownPicture[id]];
    show();
  });
  show();
  return el("figure", {}, el("button", { type: "button", onclick: () => enlarge(picture) }, image),
    el("figcaption", {}, caption, last ? slider : null));
}

function enlarge(picture) {
  const box = el("dialog", { class: "large", onclick: () => box.close(), onclose: () => box.remove() },
    el("img", { src: picture.source, alt: picture.name }), el("p", {}, picture.name));
  document.body.append(box);
  box.showModal();
}

/** What differs between the runs; and all of each. */
function configs(runs) {
  const known = runs.filter((run) => Object.keys(run.config).length);
  if (!known.length) return null;
  const keys = [...new Set(known.flatMap((run) => Object.keys(run.config)))].sort();
  const differ = keys.filter((key) => new Set(known.map((run) => run.config[key])).size > 1);
  const columns = (which) => [{ title: "Key", value: (key) => key, cell: (key) => el("code", {}, key) },
    ...which.map((run) => ({ title: run.name, value: (key) => run.config[key], cell: (key) => el("code", {}, run.config[key] ?? MISSING) }))];
  return section("config", "Config",
    known.length < 2 ? null : differ.length ? [el("h3", {}, "What differs"), table("difference-table", columns(known), differ)] : el("p", {}, "These runs have the same config."),
    more("whole-config", `All ${keys.length} keys`, table("config-table", columns(known), keys)));
}

function commands(runs) {
  return section("commands", "Do it again", runs.map((run, at) => {
    const list = el("dl", { class: "commands" }, run.commands.map(({ what, command: text }) => [el("dt", {}, what), el("dd", {}, command(text))]));
    return runs.length > 1 ? more(`commands-${at}`, run.name, list) : list;
  }));
}

function notes(runs) {
  const all = runs.flatMap((run) => run.notes);
  return all.length ? section("notes", "Left out, or not as expected", el("ul", {}, all.map((note) => el("li", {}, note)))) : null;
}
