"use strict";
// Filters, sorting, curves and the dark mode of the page; a live page also asks for newer versions of itself.

const dark = () => document.documentElement.dataset.theme === "dark";
const form = () => document.getElementById("filters");
// What the address names where it leads to a part of the page, and holds no filters.
const contents = () => document.getElementById(location.hash.slice(1));

function drawCharts() {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  for (const div of document.querySelectorAll(".plot")) {
    const figure = figures[div.dataset.figure];
    const layout = structuredClone(figure.layout);
    layout.font = {color: ink, family: "system-ui, sans-serif", size: 12};
    layout.hoverlabel = {bgcolor: style.getPropertyValue("--soft").trim(), font: {color: ink}};
    for (const axis of ["xaxis", "yaxis"]) Object.assign(layout[axis], {gridcolor: line, linecolor: line, tickcolor: line});
    const data = structuredClone(figure.data), keys = [...div.closest(".chart").querySelectorAll(".keys button")];
    keys.forEach((key, index) => { data[index].visible = key.getAttribute("aria-pressed") === "true"; });
    Plotly.react(div, data, layout, {responsive: true, displaylogo: false, displayModeBar: false});
    if (div.dataset.listening) continue;
    div.dataset.listening = "yes";
    div.on("plotly_click", (event) => chooseStep(event.points[0].x));
    for (const key of keys) key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") !== "true");
      drawCharts();
    });
  }
}

// A click on a curve shows the rollouts of that step, if the page holds them.
function chooseStep(step) {
  const select = form()?.elements.step;
  if (select && [...select.options].some((option) => option.value === String(step))) {
    location.hash = new URLSearchParams({step});
  }
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = dark() ? "light" : "dark";
  drawCharts();
}

function matches(answer, wanted, words) {
  const facets = JSON.parse(answer.dataset.facets), reward = answer.dataset.reward;
  for (const [name, value] of Object.entries(wanted)) {
    if (!value || name === "words" || name === "order") continue;
    if (name === "low" && (reward === "" || Number(reward) < Number(value))) return false;
    else if (name === "high" && (reward === "" || Number(reward) > Number(value))) return false;
    else if (name === "push" && answer.dataset.push !== value) return false;
    else if (!["low", "high", "push"].includes(name) && facets[name] !== value) return false;
  }
  return words === "" || answer.textContent.toLowerCase().includes(words);
}

function applyFilters() {
  if (!form()) return;
  const wanted = Object.fromEntries(new FormData(form()));
  const words = (wanted.words || "").toLowerCase();
  let cards = 0, answers = 0;
  const all = document.querySelectorAll("#cards .card");
  for (const card of all) {
    const asked = words !== "" && card.querySelector(".question").textContent.toLowerCase().includes(words);
    let shown = 0;
    for (const answer of card.querySelectorAll(".answer")) {
      const fits = matches(answer, wanted, asked ? "" : words);
      answer.hidden = !fits;
      shown += fits ? 1 : 0;
      const marks = card.querySelectorAll(`.asked [data-answer="${CSS.escape(answer.dataset.answer)}"]`);
      for (const mark of marks) mark.style.display = fits ? "" : "none";
    }
    card.hidden = shown === 0;
    cards += shown ? 1 : 0;
    answers += shown;
  }
  document.getElementById("count").textContent = `${cards} of ${all.length} questions, ${answers} replies`;
  order(wanted.order);
}

function order(by) {
  const cards = [...document.querySelectorAll("#cards .card")];
  cards.forEach((card, index) => { card.dataset.place ??= index; });
  const rewards = (card) => [...card.querySelectorAll(".answer:not([hidden])")].map((answer) => Number(answer.dataset.reward));
  const key = {
    spread: (card) => -Number(card.dataset.spread),
    low: (card) => Math.min(...rewards(card)),
    high: (card) => -Math.max(...rewards(card)),
  }[by] || ((card) => Number(card.dataset.place));
  const keyed = cards.map((card) => [key(card), card]).sort((a, b) => a[0] - b[0]);
  document.getElementById("cards").append(...keyed.map((pair) => pair[1]));
}

// Filters live in the address, so that alarms can link to them and a link can be passed on.
function readAddress() {
  if (!form() || contents()) return;
  const asked = new URLSearchParams(location.hash.slice(1));
  form().reset();
  for (const [name, value] of asked) if (form().elements[name]) form().elements[name].value = value;
  applyFilters();
}

function writeAddress() {
  const chosen = [...new FormData(form())].filter((pair) => pair[1] !== "");
  history.replaceState(null, "", chosen.length ? `#${new URLSearchParams(chosen)}` : location.pathname + location.search);
  applyFilters();
}

function sortTable(head) {
  const table = head.closest("table"), column = head.cellIndex, body = table.tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : String(a).localeCompare(String(b));
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b))));
}

function listen() {
  document.querySelectorAll(".sortable th").forEach((head) => {
    head.addEventListener("click", () => sortTable(head));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sortTable(head); });
  });
  for (const answer of document.querySelectorAll(".answer")) {
    const mark = (on) => answer.closest(".card").querySelectorAll(".box.predicted, .mark").forEach(
      (box) => box.classList.toggle("faded", on && box.dataset.answer !== answer.dataset.answer));
    answer.addEventListener("pointerenter", () => mark(true));
    answer.addEventListener("pointerleave", () => mark(false));
  }
  form()?.addEventListener("input", writeAddress);
  form()?.addEventListener("submit", (event) => event.preventDefault());
  form()?.addEventListener("reset", () => setTimeout(writeAddress));
}

// A live page takes over the contents of its newer version; what is chosen and where one reads stays.
async function refresh() {
  const live = document.getElementById("live");
  try {
    const version = await (await fetch("version")).text();
    if (version !== document.body.dataset.version) {
      const text = await (await fetch(location.pathname + location.search)).text();
      const newer = new DOMParser().parseFromString(text, "text/html");
      document.querySelectorAll(".plot").forEach((div) => Plotly.purge(div));
      document.querySelector("main").replaceWith(newer.querySelector("main"));
      document.querySelector("header p").replaceWith(newer.querySelector("header p"));
      document.body.dataset.version = newer.body.dataset.version;
      drawCharts();
      listen();
      readAddress();
    }
    live.textContent = "live";
  } catch {
    live.textContent = "the server has ended";
  }
  setTimeout(refresh, 2000);
}

document.getElementById("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
const preferred = matchMedia("(prefers-color-scheme: dark)");
preferred.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
addEventListener("hashchange", () => {
  if (contents()) return;
  readAddress();
  document.getElementById("rollouts")?.scrollIntoView();
});
setTheme(preferred.matches ? "dark" : "light");
listen();
applyFilters();
readAddress();
if (document.body.dataset.version) setTimeout(refresh, 2000);
