"use strict";
// Elements are made here alone, of tags of ours and text: what a run says is never markup.

/** An element; properties by name, `class`, `style`, `data-…`, `aria-…`, and `on…` for what it hears. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, to]) => made.style.setProperty(key, to));
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
}

/** What opens on request; `id` keeps it open when the page is made anew. */
function more(id, summary, ...children) {
  return el("details", { id }, el("summary", {}, summary), ...children);
}

/** How tables are sorted, by the table's id: the column and whether the greatest comes first. */
const sorting = {};

/**
 * A table whose heads sort it.
 * @param columns {title, value: row => what is compared, cell: row => what is shown, right, wide}
 */
function table(id, columns, rows) {
  const body = el("tbody");
  const heads = columns.map((column, at) =>
    el("th", { scope: "col", class: column.right && "right", title: column.note },
      el("button", { type: "button", class: "sort", onclick: () => sortBy(at) }, column.title)));
  function sortBy(at) {
    const now = sorting[id];
    sorting[id] = { at, down: now && now.at === at ? !now.down : Boolean(columns[at].right) };
    fill();
  }
  function fill() {
    const by = sorting[id];
    const ordered = by ? [...rows].sort(comparison(columns[by.at].value, by.down)) : rows;
    heads.forEach((head, at) =>
      head.setAttribute("aria-sort", by && by.at === at ? (by.down ? "descending" : "ascending") : "none"));
    body.replaceChildren(...ordered.map((row) =>
      el("tr", {}, columns.map((column) => el("td", { class: column.right && "right" }, column.cell(row))))));
  }
  fill();
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table" },
    el("table", { id }, el("thead", {}, el("tr", {}, heads)), body));
}

/** What is missing comes last, whichever way. */
function comparison(value, down) {
  return (one, other) => {
    const [a, b] = [value(one), value(other)];
    const none = (v) => v === null || v === undefined || v === "";
    if (none(a) || none(b)) return none(a) - none(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -order : order;
  };
}

/** A command with a button that copies it. */
function command(text) {
  const button = el("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousSibling);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return el("div", { class: "command" }, el("code", {}, text), button);
}
