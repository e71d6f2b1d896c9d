"use strict";
// Numbers, times and ticks as text.

const MISSING = "–";

/** About five significant digits. */
function shown(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return MISSING;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace("e+", "e");
  if (size >= 1e4) return whole(value);
  return String(Number(value.toPrecision(size >= 1 ? 5 : 4)));
}

function whole(value) {
  return value === null || value === undefined ? MISSING : Math.round(value).toLocaleString("en");
}

function percent(share) {
  return share === null || share === undefined ? MISSING : `${(100 * share).toFixed(1)} %`;
}

/** A score of an evaluation. */
function score(value, perCent) {
  return perCent ? percent(value) : shown(value);
}

/** A length of time, with two units at most. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = units.findIndex(([, size]) => seconds >= size);
  if (at < 0) return `${seconds.toFixed(1)} s`;
  const [unit, size] = units[at];
  const first = Math.floor(seconds / size);
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds - first * size) / next[1]) : 0;
  return rest && first < 10 ? `${first} ${unit} ${rest} ${next[0]}` : `${first} ${unit}`;
}

/** A moment, given in seconds since the epoch. */
function moment(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  return new Date(1000 * seconds).toLocaleString("en-GB", {
    day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit",
  });
}

/** Round numbers from low to high, about so many. */
function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let at = Math.ceil(low / unit - 1e-9); at * unit <= high + unit * 1e-9; at++) ticks.push(at * unit);
  return ticks;
}

/** Powers of ten from low to high, with their halves and fifths where there is room. */
function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks(low, high, count).filter((tick) => tick > 0);
  const factors = decades * 3 <= count + 2 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / Math.max(count, 1)));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (factors.length === 1 && power % every) continue;
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push(tick);
    }
  }
  return ticks;
}

/** A tick's text: short, and the same number of decimals as its neighbours need. */
function tickText(value, ticks) {
  const size = Math.max(...ticks.map(Math.abs));
  if (value === 0) return "0";
  if (size >= 1e4 && size < 1e15) {
    const [unit, name] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : [1e3, "k"];
    return `${Number((value / unit).toPrecision(4))}${Math.abs(value) < unit / 100 ? "" : name}`;
  }
  if (size < 2e-3 || Math.abs(value) < 1e-4 || size >= 1e15) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(6)));
}
