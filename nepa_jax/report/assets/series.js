"use strict";
// What is computed of curves. A curve has `x` and `y`; a thinned one also the means of its buckets.

/** The mean about every point, weighted by exp(-distance / width): no lag, and any spacing. */
function smoothed(x, y, width) {
  const ahead = decayed(x, y, width, 0, 1);
  const back = decayed(x, y, width, x.length - 1, -1);
  return y.map((value, i) => (ahead.sums[i] + back.sums[i] - value) / (ahead.weights[i] + back.weights[i] - 1));
}

function decayed(x, y, width, first, stride) {
  const sums = new Array(x.length);
  const weights = new Array(x.length);
  let sum = 0;
  let weight = 0;
  let before = x[first];
  for (let i = first; i >= 0 && i < x.length; i += stride) {
    const left = Math.exp(-Math.abs(x[i] - before) / width);
    sum = sum * left + y[i];
    weight = weight * left + 1;
    before = x[i];
    sums[i] = sum;
    weights[i] = weight;
  }
  return { sums, weights };
}

/** The smooth line of a curve, of its buckets' means where it was thinned. */
function smoothLine(curve, width) {
  const [x, y] = curve.mean_x ? [curve.mean_x, curve.mean_y] : [curve.x, curve.y];
  return { x, y: smoothed(x, y, width) };
}

/** The index of the value of an increasing list that is nearest to `at`; -1 of an empty one. */
function nearest(x, at) {
  let low = 0;
  let high = x.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && at - x[low - 1] < x[low] - at ? low - 1 : Math.min(low, x.length - 1);
}

/** A function from steps to hours spent in steps, by the time per step that was logged. */
function clock(curve) {
  if (!curve || !curve.x.length) return null;
  const [x, y] = curve.mean_x ? [curve.mean_x, curve.mean_y] : [curve.x, curve.y];
  const hours = [(x[0] * y[0]) / 3600];
  for (let i = 1; i < x.length; i++) hours.push(hours[i - 1] + ((x[i] - x[i - 1]) * y[i]) / 3600);
  return (step) => {
    let i = nearest(x, step);
    if (x[i] > step) i -= 1;
    if (i < 0) return (step * y[0]) / 3600;
    if (i >= x.length - 1) return hours[i] + ((step - x[i]) * y[i]) / 3600;
    return hours[i] + ((step - x[i]) * y[i + 1]) / 3600;
  };
}

/** The least and the greatest; null of none. */
function ends(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** Where all but so small a share of values at either end lie. */
function middle(values, share) {
  const sorted = Float64Array.from(values).sort();
  const cut = Math.floor(share * sorted.length);
  return sorted.length ? [sorted[cut], sorted[sorted.length - 1 - cut]] : null;
}
