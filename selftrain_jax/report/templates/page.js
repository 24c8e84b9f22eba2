"use strict";
// What a page does beyond showing itself: the theme's button, and tables of class "browse" to filter and sort.

const root = document.documentElement;
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");

function stored(value) { // what was chosen before, or null; a browser may forbid storage to a file
  try {
    if (value) localStorage.setItem("selftrain-theme", value);
    return localStorage.getItem("selftrain-theme");
  } catch {
    return value ?? null;
  }
}

function paint(choice) {
  if (choice === "light" || choice === "dark") root.dataset.theme = choice;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  theme.textContent = dark ? "Light theme" : "Dark theme";
  theme.value = dark ? "light" : "dark";
}

theme.hidden = false;
theme.addEventListener("click", () => paint(stored(theme.value)));
system.addEventListener("change", () => paint());
paint(stored());

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

for (const table of document.querySelectorAll("table.browse")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((row) => ({ row, cells: [...row.cells].map((cell) => cell.textContent.trim()) }));
  for (const found of rows) found.text = found.cells.join("\n").toLowerCase();

  const search = element("input", { type: "search", placeholder: "Find text", ariaLabel: "Find text in the table" });
  const count = element("output", {});
  const choices = heads.flatMap((head, column) => {
    if (!head.matches(".choice, .words")) return [];
    const select = element("select", {}, new Option("all", ""));
    const values = new Set(rows.map((found) => found.cells[column]));
    for (const value of [...values].sort((a, b) => a.localeCompare(b, "en", { numeric: true })))
      select.append(new Option(value, "=" + value));
    return values.size > 1 ? [{ column, select, label: element("label", {}, head.textContent.trim(), select) }] : [];
  });

  function filter() {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const { row, cells, text } of rows) {
      const fits = choices.every(({ column, select }) => !select.value || select.value === "=" + cells[column]);
      row.hidden = !(fits && text.includes(wanted));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  }

  heads.forEach((head, column) => {
    const value = (text) => parseFloat(text.replaceAll(",", "").replace("\u2212", "-"));
    const number =
      !head.matches(".long") && rows.every(({ cells }) => ["", "-"].includes(cells[column]) || !isNaN(value(cells[column])));
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = descending ? "descending" : "ascending";
      const keyed = rows.map((found) => ({ found, key: number ? value(found.cells[column]) : found.cells[column] }));
      keyed.sort((a, b) => {
        if (!number) return (descending ? -1 : 1) * a.key.localeCompare(b.key, "en", { numeric: true });
        if (isNaN(a.key) || isNaN(b.key)) return isNaN(a.key) - isNaN(b.key); // what is missing comes last
        return descending ? b.key - a.key : a.key - b.key;
      });
      body.append(...keyed.map(({ found }) => found.row));
    });
  });

  const bar = element("div", { className: "find" }, search, ...choices.map(({ label }) => label), count);
  bar.addEventListener("input", filter);
  table.parentElement.before(bar);
  filter();
}
