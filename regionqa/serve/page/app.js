// The page: joins its parts.

import { getStatus, switchModel } from "./api.js";
import { Files } from "./files.js";
import { Proposals } from "./propose.js";
import { Stage } from "./stage.js";
import { State } from "./state.js";
import { Talk } from "./talk.js";

const $ = (id) => document.getElementById(id);

function storage() {
  try {
    return window.sessionStorage;
  } catch {
    return { getItem: () => null, setItem: () => {} };
  }
}

const state = new State(storage());

/** Tell what changed to those who do not see it. */
function announce(text) {
  $("live").textContent = text;
}

function alert(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

const stage = new Stage(
  { stage: $("stage"), pixels: $("pixels"), boxes: $("boxes"), pan: $("pan") },
  state,
  { announce, onPick: (number, thenType) => talk.name(number, thenType) },
);
const proposals = new Proposals(
  { select: $("select"), exclude: $("exclude"), propose: $("propose"), find: $("find") },
  state,
  { announce, alert, stage },
);
stage.proposals = proposals;
const talk = new Talk(
  {
    form: $("ask"), question: $("question"), about: $("about"), send: $("send"),
    caption: $("caption"), stop: $("stop"), newTalk: $("new-talk"), log: $("log"), turns: $("talk"),
    regions: $("regions"), noRegions: $("no-regions"), guess: $("guess"), choices: $("choices"),
    tokens: $("tokens"), temperature: $("temperature"), way: $("way"),
  },
  state,
  { announce, alert, stage },
);
const files = new Files(
  {
    strip: $("strip"), upload: $("upload"), noImages: $("no-images"),
    openImport: $("open-import"), openExport: $("open-export"), openHelp: $("open-help"),
    importDialog: $("import"), exportDialog: $("export"), helpDialog: $("help"),
    format: $("format"), saveBoxes: $("save-boxes"), saveAnswers: $("save-answers"),
    saveDrawing: $("save-drawing"), boxFiles: $("box-files"), boxFormat: $("box-format"),
    boxUnits: $("box-units"), scaleBoxes: $("scale-boxes"), readMasks: $("read-masks"),
    readFiles: $("read-boxes"),
    importNotes: $("import-notes"),
  },
  state,
  { announce, alert, onOpen: () => { stage.show(); render(); } },
);

function render() {
  const page = state.current === null ? null : state.now;
  stage.render();
  talk.render();
  proposals.render();
  $("remove").disabled = !page || page.selected < 0;
  $("undo").disabled = !page?.undo.past.length;
  $("redo").disabled = !page?.undo.future.length;
  for (const id of ["add", "zoom-in", "zoom-out", "fit", "pan"]) $(id).disabled = !page;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function renderStatus() {
  const { model, models, formats } = state.status;
  options($("model"), models.map((name) => [name, name]), model.name);
  $("model").disabled = models.length < 2;
  const notes = [model.device];
  if (!model.multi_turn) notes.push("answers each question on its own");
  $("model-note").textContent = notes.join(", ");
  $("model-note").title = model.note;
  options($("way"), [["", "the model's way"], ...model.ways.map((way) => [way, way])], $("way").value);
  $("way").disabled = !model.ways.length;
  if (!$("format").options.length) {
    const first = ["plain", "coco"];
    const order = (name) => (first.includes(name) ? first.indexOf(name) : first.length);
    const sorted = [...formats].sort((a, b) => order(a.name) - order(b.name));
    options($("format"), sorted.map(({ name, title }) => [name, name === "plain" ? "boxes.json" : title]), "plain");
  }
}

$("model").addEventListener("change", async () => {
  alert("");
  $("model").disabled = true;
  announce(`${$("model").value} is being loaded`);
  $("model-note").textContent = "is being loaded…";
  try {
    state.status = await switchModel($("model").value);
    announce(`${state.status.model.name} answers now`);
  } catch (error) {
    alert(error.message);
  }
  renderStatus();
  render();
});
$("add").addEventListener("click", () => stage.newInView());
$("remove").addEventListener("click", () => stage.removeSelected());
$("undo").addEventListener("click", () => state.undo());
$("redo").addEventListener("click", () => state.redo());
$("zoom-in").addEventListener("click", () => stage.zoom(1.25));
$("zoom-out").addEventListener("click", () => stage.zoom(0.8));
$("fit").addEventListener("click", () => stage.fit());
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea, select");
  if (typing || state.current === null || !(event.ctrlKey || event.metaKey)) return;
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) state.undo();
  else if (key === "y" || (key === "z" && event.shiftKey)) state.redo();
  else return;
  event.preventDefault();
});

state.onChange(render);
const last = state.restore();
try {
  state.status = await getStatus();
  renderStatus();
  await files.load();
  const names = state.images.map(({ name }) => name);
  const first = names.includes(last) ? last : names[0];
  if (first === undefined) render();
  else await files.open(first);
} catch (error) {
  alert(error.message);
}
