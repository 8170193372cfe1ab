"use strict";
// Ranks live in `ranks`: question number -> { blind name -> rank }. Every change is stored at once.

const page = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const KEY = `regionqa-ranking-${page.id}`;
let ranks = {};
let place = 0;
let picked = 0;
let shown = -1;

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function makeSvg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const colour = (number) => page.colours[(number - 1) % page.colours.length];
const item = () => page.items[place];
const ranksOf = (each) => ranks[each.number] || {};
const complete = (each) => each.answers.every((answer) => ranksOf(each)[answer.name]);

function ranking() {
  return {
    format: page.format, id: page.id, seed: page.seed, systems: page.systems,
    rater: find("rater").value.trim(), place, ranks,
  };
}

function store() {
  try {
    localStorage.setItem(KEY, JSON.stringify(ranking()));
  } catch (error) {
    showMessage("This browser cannot store your ranks; save them as a file before you close the page.");
  }
}

function showMessage(text) {
  find("message").textContent = text;
}

// Load a saved ranking; returns what is wrong with it, empty if nothing is.
function load(saved) {
  if (!saved || saved.format !== page.format || typeof saved.ranks !== "object") {
    return "This file is not a saved ranking.";
  }
  if (saved.id !== page.id) return "This ranking belongs to another page: its questions or answers differ.";
  ranks = {};
  for (const each of page.items) {
    const known = {};
    for (const { name } of each.answers) {
      const rank = (saved.ranks[each.number] || {})[name];
      if (Number.isInteger(rank) && rank >= 1 && rank <= 9) known[name] = rank;
    }
    if (Object.keys(known).length) ranks[each.number] = known;
  }
  find("rater").value = String(saved.rater || "");
  place = Number.isInteger(saved.place) && page.items[saved.place] ? saved.place : 0;
  return "";
}

function showImage() {
  const image = page.images[item().image];
  const { width, height } = image;
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(makeSvg("image", { href: image.data, width, height }));
  const scale = Math.max(width, height) / 900;
  item().boxes.forEach(([x0, y0, x1, y1], index) => {
    const box = { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height };
    svg.append(makeSvg("rect", { ...box, class: "under" }), makeSvg("rect", { ...box, stroke: colour(index + 1) }));
    const tag = makeSvg("g", { transform: `translate(${Math.min(box.x, width - 92 * scale)} ${Math.max(box.y, 26 * scale)}) scale(${scale})` });
    tag.append(makeSvg("path", { d: "M0 0v-26h92v26z", fill: colour(index + 1) }));
    const text = makeSvg("text", { x: 6, y: -7, fill: "#111" });
    text.textContent = `region ${index + 1}`;
    tag.append(text);
    svg.append(tag);
  });
  find("image").replaceChildren(svg);
}

function showQuestion() {
  const parts = item().question.split(/<region(\d+)>/);
  find("question").replaceChildren(...parts.map((part, index) => {
    if (index % 2 === 0) return document.createTextNode(part);
    const region = make("span", `region ${part}`, "region");
    region.style.background = colour(Number(part));
    return region;
  }));
}

function showAnswers() {
  const count = item().answers.length;
  find("answers").replaceChildren(...item().answers.map((answer, index) => {
    const row = make("li", undefined, index === picked ? "picked" : "");
    row.append(make("span", String.fromCharCode(65 + index), "letter"), make("p", answer.text || "(nothing)"));
    const buttons = make("div", undefined, "ranks");
    for (let rank = 1; rank <= count; rank++) {
      const button = make("button", String(rank));
      button.type = "button";
      button.setAttribute("aria-pressed", String(ranksOf(item())[answer.name] === rank));
      button.setAttribute("aria-label", `answer ${String.fromCharCode(65 + index)}: rank ${rank}`);
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        picked = index;
        setRank(rank);
      });
      buttons.append(button);
    }
    row.append(buttons);
    row.addEventListener("click", () => { picked = index; show(); });
    return row;
  }));
}

function show() {
  if (shown !== place) showImage();
  shown = place;
  showQuestion();
  showAnswers();
  const done = page.items.filter(complete).length;
  find("place").textContent = `question ${place + 1} of ${page.items.length}`;
  find("done").textContent = `${done} ranked`;
  find("progress").value = done / page.items.length;
  find("back").disabled = place === 0;
  find("next").disabled = place === page.items.length - 1;
}

function setRank(rank) {
  const each = item();
  const own = { ...ranksOf(each) };
  const { name } = each.answers[picked];
  if (rank) own[name] = rank;
  else delete own[name];
  if (Object.keys(own).length) ranks[each.number] = own;
  else delete ranks[each.number];
  if (rank) {
    const left = each.answers.findIndex((answer) => !own[answer.name]);
    if (left >= 0) picked = left;
  }
  showMessage(complete(each) ? "All ranked; press Enter for the next question." : "");
  store();
  show();
}

function go(to) {
  if (!page.items[to]) return;
  place = to;
  picked = 0;
  showMessage("");
  store();
  show();
}

function goToUnfinished() {
  const count = page.items.length;
  for (let step = 1; step <= count; step++) {
    const to = (place + step) % count;
    if (!complete(page.items[to])) return go(to);
  }
  return showMessage("Every question is ranked. Save the ranking.");
}

function save() {
  const blob = new Blob([JSON.stringify(ranking(), null, 1)], { type: "application/json" });
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  const rater = find("rater").value.trim().replace(/[^\w-]+/g, "-") || "ranking";
  link.download = `${rater}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  showMessage(`Saved as ${link.download}.`);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.id === "rater") return;
  const count = item().answers.length;
  const letter = event.key.length === 1 ? event.key.toLowerCase().charCodeAt(0) - 97 : -1;
  if (event.key === "ArrowRight") go(place + 1);
  else if (event.key === "ArrowLeft") go(place - 1);
  else if (event.key === "ArrowDown") { picked = (picked + 1) % count; show(); }
  else if (event.key === "ArrowUp") { picked = (picked + count - 1) % count; show(); }
  else if (event.key === "Enter" && event.target.tagName !== "BUTTON") go(place + 1);
  else if (event.key === "0" || event.key === "Backspace") setRank(0);
  else if (/^[1-9]$/.test(event.key) && Number(event.key) <= count) setRank(Number(event.key));
  else if (letter >= 0 && letter < count) { picked = letter; show(); }
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", press);
find("back").addEventListener("click", () => go(place - 1));
find("next").addEventListener("click", () => go(place + 1));
find("gap").addEventListener("click", goToUnfinished);
find("clear").addEventListener("click", () => { delete ranks[item().number]; picked = 0; showMessage(""); store(); show(); });
find("save").addEventListener("click", save);
find("rater").addEventListener("input", store);
find("open").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  let problem;
  try {
    problem = load(JSON.parse(await file.text()));
  } catch (error) {
    problem = "This file is not a saved ranking.";
  }
  picked = 0;
  if (!problem) store();
  show();
  showMessage(problem || `Opened ${file.name}.`);
});

try {
  const saved = localStorage.getItem(KEY);
  if (saved) load(JSON.parse(saved));
} catch (error) {
  // nothing is stored, or it cannot be read: start with an empty ranking
}
show();
