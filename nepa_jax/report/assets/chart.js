"use strict";
// One chart on a canvas: lines over a shared x axis, hover values, drag to zoom.

const PAD = { left: 54, right: 12, top: 8, bottom: 26 };

/**
 * @param title, note: of its head. @param shared: what all charts of a group have in common:
 *   {view: [low, high] or null, hover(x, chart), zoom([low, high] or null)}.
 */
class Chart {
  constructor({ title, note = "", wide = false, shared, tools = [] }) {
    this.shared = shared;
    this.canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": title });
    this.over = el("canvas", { class: "over", "aria-hidden": "true" });
    this.remark = el("span", { class: "remark" });
    this.root = el("figure", { class: wide ? "chart wide" : "chart" },
      el("figcaption", {}, el("span", { class: "title" }, title), el("span", { class: "key" }, note), this.remark, tools),
      el("div", { class: "canvas" }, this.canvas, this.over));
    this.content = { lines: [] };
    this.listen();
  }

  /**
   * @param content {lines: [{name, color, dash, x, y, smooth: {x, y} or null, dots, lost: x[]}],
   *   marks: [{x, color, text}], levels: [{y, text}], rings: [{x, y, color}],
   *   span: [low, high] of x, logX, logY, clip: leave outliers out, inset: room at both ends of x, xName, yText(y)}.
   */
  show(content) {
    this.content = content;
    this.draw();
  }

  get size() {
    const box = this.canvas.getBoundingClientRect();
    return [box.width, box.height];
  }

  /** The axes: what is visible, and where values lie on the canvas. */
  fit() {
    const { logX, logY, levels = [], rings = [] } = this.content;
    const [width, height] = this.size;
    const usable = (x, y) => (!logX || x > 0) && (!logY || y > 0);
    const xs = this.shared.view || this.span(logX) || [1, 2];
    const ys = this.heights(xs, usable);
    for (const { y } of [...levels, ...rings]) if (usable(1, y) && y !== null) ys.push(y);
    const all = ends(ys) || (logY ? [1, 10] : [0, 1]);
    const [low, high] = padded(all, logY);
    this.axes = {
      x: axis(widened(this.content.inset ? padded(xs, logX) : xs, logX), PAD.left, width - PAD.right, logX),
      y: axis([low, high], height - PAD.bottom, PAD.top, logY),
      usable,
    };
  }

  /** From the first to the last point of all lines, or what all charts show. */
  span(logX) {
    if (this.content.span && !logX) return this.content.span;
    const all = this.content.lines.flatMap((line) => [line.x, line.lost || []]);
    return ends(all.flatMap((x) => {
      const drawn = logX ? x.filter((value) => value > 0) : x;
      return drawn.length ? [drawn[0], drawn[drawn.length - 1]] : [];
    }));
  }

  /** All values that the y axis must hold. */
  heights([from, to], usable) {
    const raw = [];
    const smooth = [];
    for (const line of this.content.lines) {
      for (const [target, part] of [[raw, line], [smooth, line.smooth]]) {
        if (!part) continue;
        part.x.forEach((x, i) => {
          if (x >= from && x <= to && part.y[i] !== null && usable(x, part.y[i])) target.push(part.y[i]);
        });
      }
    }
    this.outside = 0;
    if (!this.content.clip || raw.length < 20) return [...(ends(raw) || []), ...(ends(smooth) || [])];
    const kept = ends([...middle(raw, 0.02), ...(smooth.length ? middle(smooth, 0.02) : [])]);
    const room = (kept[1] - kept[0]) * 0.1;
    this.outside = raw.filter((y) => y < kept[0] - room || y > kept[1] + room).length;
    return [kept[0] - (this.content.logY ? 0 : room), kept[1] + room];
  }

  draw() {
    const [width, height] = this.size;
    if (!width) return;
    this.fit();
    const pen = prepared(this.canvas, width, height);
    prepared(this.over, width, height);
    const css = getComputedStyle(document.documentElement);
    this.ink = (name) => css.getPropertyValue(name).trim();
    this.grid(pen, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(PAD.left, 0, width - PAD.left - PAD.right, height - PAD.bottom + 1);
    pen.clip();
    this.drawLevels(pen, width);
    this.drawMarks(pen, height);
    for (const line of this.content.lines) this.drawLine(pen, line);
    for (const ring of this.content.rings || []) this.drawRing(pen, ring);
    this.drawLost(pen, height);
    pen.restore();
    this.remark.textContent = this.outside ? `${whole(this.outside)} outliers outside` : "";
  }

  grid(pen, width, height) {
    const { x, y } = this.axes;
    pen.font = `11px ${this.ink("--font")}`;
    pen.fillStyle = this.ink("--muted");
    pen.strokeStyle = this.ink("--grid");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const rows = y.ticks(Math.max(2, Math.floor(height / 45)));
    for (const tick of rows) {
      const at = Math.round(y.place(tick)) + 0.5;
      stroke(pen, [[PAD.left, at], [width - PAD.right, at]]);
      pen.fillText((this.content.yText || ((v) => tickText(v, rows)))(tick), PAD.left - 6, at);
    }
    pen.textBaseline = "top";
    pen.textAlign = "center";
    const columns = x.ticks(Math.max(2, Math.floor(width / 90)));
    for (const tick of columns) {
      const text = tickText(tick, columns);
      const half = pen.measureText(text).width / 2;
      const at = Math.min(x.place(tick), width - half - 1);
      pen.fillText(text, at, height - PAD.bottom + 7);
    }
    pen.strokeStyle = this.ink("--axis");
    stroke(pen, [[PAD.left, height - PAD.bottom + 0.5], [width - PAD.right, height - PAD.bottom + 0.5]]);
  }

  drawLine(pen, line) {
    pen.strokeStyle = pen.fillStyle = line.color;
    pen.lineJoin = "round";
    pen.setLineDash(line.dash || []);
    pen.globalAlpha = line.faint ? 0.6 : line.smooth ? (this.content.lines.length > 1 ? 0.2 : 0.3) : 1;
    pen.lineWidth = line.faint || line.smooth ? 1 : 1.6;
    this.trace(pen, line);
    pen.globalAlpha = 1;
    if (line.smooth) {
      pen.lineWidth = 1.8;
      this.trace(pen, line.smooth);
    }
    pen.setLineDash([]);
    if (line.dots || line.x.length === 1) {
      for (const [at, up] of this.places(line)) dot(pen, at, up, 2.6);
    }
  }

  /** Places on the canvas, of what is in view with one neighbour on either side. */
  places({ x, y }) {
    const { x: across, y: up, usable } = this.axes;
    const first = Math.max(0, nearest(x, across.low) - 1);
    const last = Math.min(x.length - 1, nearest(x, across.high) + 1);
    const found = [];
    for (let i = first; i <= last; i++) {
      if (y[i] !== null && usable(x[i], y[i])) found.push([across.place(x[i]), up.place(y[i])]);
    }
    return found;
  }

  trace(pen, part) {
    stroke(pen, this.places(part));
  }

  drawLevels(pen, width) {
    for (const { y, text } of this.content.levels || []) {
      const at = this.axes.y.place(y);
      pen.strokeStyle = pen.fillStyle = this.ink("--muted");
      pen.setLineDash([2, 3]);
      stroke(pen, [[PAD.left, at], [width, at]]);
      pen.setLineDash([]);
      pen.textAlign = "right";
      pen.textBaseline = "bottom";
      pen.fillText(text, width - PAD.right - 2, at - 2);
    }
  }

  /** Restarts: a thin line, and a notch on the axis. */
  drawMarks(pen, height) {
    const bottom = height - PAD.bottom;
    for (const { x, color } of this.content.marks || []) {
      const at = Math.round(this.axes.x.place(x)) + 0.5;
      pen.strokeStyle = pen.fillStyle = color;
      pen.globalAlpha = 0.55;
      pen.setLineDash([3, 4]);
      stroke(pen, [[at, PAD.top], [at, bottom]]);
      pen.setLineDash([]);
      pen.globalAlpha = 1;
      pen.beginPath();
      pen.moveTo(at - 4, bottom);
      pen.lineTo(at + 4, bottom);
      pen.lineTo(at, bottom - 6);
      pen.fill();
    }
  }

  drawLost(pen, height) {
    pen.fillStyle = this.ink("--alarm");
    for (const line of this.content.lines) {
      for (const x of line.lost || []) pen.fillRect(this.axes.x.place(x) - 0.75, height - PAD.bottom - 7, 1.5, 7);
    }
  }

  drawRing(pen, { x, y }) {
    if (x === null || y === null) return;
    pen.strokeStyle = this.ink("--ink");
    pen.lineWidth = 1.4;
    pen.beginPath();
    pen.arc(this.axes.x.place(x), this.axes.y.place(y), 6.5, 0, 2 * Math.PI);
    pen.stroke();
  }

  // The pointer

  listen() {
    const { canvas } = this;
    const at = (event) => event.clientX - canvas.getBoundingClientRect().left;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        from = at(event);
        canvas.setPointerCapture(event.pointerId);
      } else this.point(at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.axes) return;
      if (from === null) this.point(at(event));
      else this.band(from, at(event));
    });
    canvas.addEventListener("pointerup", (event) => {
      const [start, end] = [from, at(event)];
      from = null;
      if (start === null || Math.abs(end - start) < 8) return this.point(end);
      const view = [start, end].sort((a, b) => a - b).map((px) => this.axes.x.value(px));
      return this.shared.zoom(view);
    });
    canvas.addEventListener("pointerleave", () => from === null && this.shared.hover(null, this));
    canvas.addEventListener("dblclick", () => this.shared.zoom(null));
    canvas.addEventListener("blur", () => this.shared.hover(null, this));
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  point(px) {
    const { x } = this.axes;
    this.shared.hover(Math.min(x.high, Math.max(x.low, x.value(px))), this);
  }

  press(event) {
    const stride = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const [line] = this.content.lines;
    if (event.key === "Escape") this.shared.zoom(null);
    if (!stride || !line) return;
    event.preventDefault();
    const now = this.hovered === null || this.hovered === undefined ? 0 : nearest(line.x, this.hovered) + stride;
    this.shared.hover(line.x[Math.min(line.x.length - 1, Math.max(0, now))], this);
  }

  band(from, to) {
    const [width, height] = this.size;
    const pen = prepared(this.over, width, height);
    pen.fillStyle = this.ink("--band");
    pen.fillRect(Math.min(from, to), PAD.top, Math.abs(to - from), height - PAD.top - PAD.bottom);
  }

  /** Draws the line under the pointer; returns what is there: {x, rows, notes}. */
  hover(x) {
    this.hovered = x;
    const [width, height] = this.size;
    if (!width || !this.axes) return null;
    const pen = prepared(this.over, width, height);
    if (x === null) return null;
    const rows = [];
    for (const line of this.content.lines) {
      const i = nearest(line.x, x);
      if (i < 0 || line.y[i] === null) continue;
      const smooth = line.smooth ? line.smooth.y[nearest(line.smooth.x, x)] : null;
      rows.push({ name: line.name, color: line.color, dash: line.dash, x: line.x[i], y: line.y[i], smooth });
    }
    rows.sort((a, b) => Math.abs(a.x - x) - Math.abs(b.x - x));
    const near = rows.filter((row) => Math.abs(this.axes.x.place(row.x) - this.axes.x.place(x)) < 40);
    const at = this.axes.x.place(near.length ? near[0].x : x);
    pen.strokeStyle = this.ink("--axis");
    stroke(pen, [[Math.round(at) + 0.5, PAD.top], [Math.round(at) + 0.5, height - PAD.bottom]]);
    for (const row of near) {
      if (!this.axes.usable(row.x, row.y)) continue;
      pen.fillStyle = row.color;
      dot(pen, this.axes.x.place(row.x), this.axes.y.place(row.smooth ?? row.y), 3.4);
    }
    const notes = (this.content.marks || [])
      .filter((mark) => Math.abs(this.axes.x.place(mark.x) - at) < 5).map((mark) => mark.text);
    near.sort((a, b) => (b.smooth ?? b.y) - (a.smooth ?? a.y));
    return { x: near.length ? rows[0].x : x, rows: near, notes, px: at };
  }
}

/** A scale from values to places on the canvas, and back. */
function axis([low, high], start, end, log) {
  const to = log ? Math.log : (value) => value;
  const from = log ? Math.exp : (value) => value;
  const [a, b] = [to(low), to(high)];
  return {
    low, high,
    place: (value) => start + ((to(value) - a) / (b - a)) * (end - start),
    value: (place) => from(a + ((place - start) / (end - start)) * (b - a)),
    ticks: (count) => (log ? logTicks : linearTicks)(low, high, count),
  };
}

function widened([low, high], log) {
  if (high > low) return [low, high];
  return log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
}

function padded([low, high], log) {
  if (log) return high > low ? [low / (high / low) ** 0.05, high * (high / low) ** 0.05] : [low / 2, high * 2];
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 0.5;
  return [low - room, high + room];
}

/** An empty canvas with as many points as the screen has. */
function prepared(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

function stroke(pen, places) {
  pen.beginPath();
  for (const [x, y] of places) pen.lineTo(x, y);
  pen.stroke();
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}
