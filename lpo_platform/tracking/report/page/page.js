const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const listen = (nodes, event, action) => nodes.forEach((node) => node.addEventListener(event, action));

// A click on a heading sorts a table, the largest numbers or the first words first; a second click turns it round.
const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
const isNumber = (text) => text !== "" && Number.isFinite(Number(text));
function sort(table) {
  const head = table.querySelector("th[aria-sort]");
  if (!head) return;
  const column = head.cellIndex, sign = head.getAttribute("aria-sort") === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const compare = (a, b) => {
    const [x, y] = [valueOf(a, column), valueOf(b, column)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNumber(x) && isNumber(y) ? x - y : x.localeCompare(y, undefined, { numeric: true }));
  };
  body.append(...[...body.rows].sort(compare));
}
for (const table of all("table.sortable")) {
  for (const head of all("thead th", table)) {
    if (!head.textContent) continue;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = table.tBodies[0].rows[0];
      const start = first && isNumber(valueOf(first, head.cellIndex)) ? "descending" : "ascending";
      const other = { ascending: "descending", descending: "ascending" };
      const order = other[head.getAttribute("aria-sort")] ?? start;
      all("th", table).forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sort(table);
    });
  }
}

// The table of all items shows one metric, and the rows that are asked for.
for (const table of all("table.items")) {
  const { values, better } = JSON.parse(table.dataset.items), section = table.closest("section");
  const [metric, change, search, output] = ["[data-metric]", "[data-change]", "[data-search]", "output"].map((name) =>
    section.querySelector(name));
  const kindOf = (gain, up) =>
    gain === null ? "none" : gain === 0 ? "same" : up === null ? "changed" : gain > 0 === up ? "better" : "worse";
  const show = () => {
    const numbers = values[metric.value], largest = Math.max(...numbers.flat().map(Math.abs));
    const digits = largest >= 100 ? 1 : largest >= 10 ? 2 : 3;
    const fill = (cell, value, sign) => {
      cell.dataset.value = value ?? "";
      cell.textContent = value === null ? "n/a" : (sign && value > 0 ? "+" : "") + value.toFixed(digits);
    };
    for (const row of table.tBodies[0].rows) {
      const [base, trained] = numbers[row.cells[0].dataset.value];
      const gain = base === null || trained === null ? null : trained - base;
      const kind = kindOf(gain, better[metric.value]);
      fill(row.cells[2], base);
      fill(row.cells[3], trained);
      fill(row.cells[4], gain, true);
      row.cells[4].className = "number said-" + kind;
      const wanted = { all: true, changed: gain !== null && gain !== 0 }[change.value] ?? change.value === kind;
      row.hidden = !(wanted && row.cells[1].textContent.toLowerCase().includes(search.value.toLowerCase()));
    }
    sort(table);
    output.textContent = all("tbody tr:not([hidden])", table).length + " shown";
  };
  listen([metric, change, search], "input", show);
  window.addEventListener("pageshow", show);
  show();
}

// The leaderboard shows one metric, or the one that each setting was for.
for (const choice of all("select[data-rows]")) {
  const show = () => {
    for (const row of all("tbody tr", choice.closest("section"))) {
      const main = choice.selectedIndex === 0 && "main" in row.dataset;
      row.hidden = !(main || choice.selectedIndex === 1 || row.dataset.metric === choice.value);
    }
  };
  listen([choice], "input", show);
  window.addEventListener("pageshow", show);
  show();
}

// Curves answer the pointer; the slider sets the part of a series over which they are averaged.
const smoothed = (values, part) => {
  const reach = Math.floor(values.length * part / 2), sums = [0];
  values.forEach((value, index) => sums.push(sums[index] + value));
  return values.map((_, index) => {
    const low = Math.max(index - reach, 0), high = Math.min(index + reach + 1, values.length);
    return (sums[high] - sums[low]) / (high - low);
  });
};
for (const chart of all(".chart")) {
  const points = JSON.parse(chart.dataset.points), box = JSON.parse(chart.dataset.box);
  const svg = chart.querySelector("svg"), output = chart.querySelector("output"), cross = chart.querySelector(".cross");
  const slider = chart.closest("section").querySelector("[data-smooth]");
  const across = (step) => box.left + box.width * (step - box.x0) / (box.x1 - box.x0);
  const down = (value) => box.top + box.height * (1 - (Math.min(Math.max(value, box.y0), box.y1) - box.y0) / (box.y1 - box.y0));
  const text = (value) => String(Number(value.toPrecision(4)));
  let smooth = [];
  const draw = () => {
    smooth = smoothed(points.map(([, value]) => value), slider.value / 100);
    chart.querySelector(".smooth").setAttribute("points", points.map(([step], i) => `${across(step)},${down(smooth[i])}`).join(" "));
    output.textContent = "last " + text(smooth.at(-1));
  };
  const show = (event) => {
    const area = svg.getBoundingClientRect();
    const at = (event.clientX - area.left) / area.width * svg.viewBox.baseVal.width;
    const far = (i) => Math.abs(across(points[i][0]) - at);
    const near = points.reduce((best, _, i) => far(i) < far(best) ? i : best, 0), [step, value] = points[near];
    cross.setAttribute("x1", across(step));
    cross.setAttribute("x2", across(step));
    cross.style.visibility = "visible";
    output.textContent = `step ${step}: ${text(value)}, mean ${text(smooth[near])}`;
  };
  listen([slider], "input", draw);
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { cross.style.visibility = "hidden"; output.textContent = "last " + text(smooth.at(-1)); });
  draw();
}
