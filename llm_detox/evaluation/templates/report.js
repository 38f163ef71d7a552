"use strict";
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const tip = document.getElementById("tip");
for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.addEventListener("mousemove", (event) => {
    tip.hidden = false;
    tip.textContent = mark.dataset.tip;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 16 + "px";
  });
  mark.addEventListener("mouseleave", () => { tip.hidden = true; });
}

for (const button of document.querySelectorAll("[data-toggle]")) {
  button.addEventListener("click", () => {
    const off = button.classList.toggle("off");
    for (const mark of document.querySelectorAll(".mark")) {
      if (mark.dataset.arm === button.dataset.toggle) mark.classList.toggle("off", off);
    }
  });
}

// On a narrow screen each row stands as a block, its cells behind the words of their column.
for (const table of document.querySelectorAll(".wide table")) {
  const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, number) => { if (cell.tagName === "TD") cell.dataset.label = heads[number]; });
  }
  table.classList.add("labelled");
}

const sortKey = (cell) => {
  const value = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number(value.replace("–", "NaN"));
  return Number.isNaN(number) ? value : number;
};
for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const sort = () => {
      const up = head.ariaSort !== "ascending";
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = up ? "ascending" : "descending";
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [sortKey(a.cells[column]), sortKey(b.cells[column])];
        const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
}

for (const field of document.querySelectorAll("[data-filter]")) {
  field.addEventListener("input", () => {
    for (const row of document.getElementById(field.dataset.filter).tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(field.value.toLowerCase());
    }
  });
}

for (const button of document.querySelectorAll("[data-unfold]")) {
  button.addEventListener("click", () => {
    const open = button.classList.toggle("on");
    button.textContent = open ? "fold all" : "unfold all";
    for (const fold of document.getElementById(button.dataset.unfold).querySelectorAll("details")) fold.open = open;
  });
}
