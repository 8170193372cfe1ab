// Images, box files and results: the strip, uploads, import and export.

import {
  ApiError, drawAnswers, getImage, getImages, pixelsUrl, readBoxes, removeImage, uploadImage,
  writeBoxes,
} from "./api.js";
import { asSent } from "./regions.js";

const THUMBNAIL = 192;

export class Files {
  constructor(elements, state, { announce, alert, onOpen }) {
    Object.assign(this, elements);
    this.state = state;
    this.announce = announce;
    this.alert = alert;
    this.onOpen = onOpen;
    this.upload.addEventListener("change", () => {
      this.addFiles([...this.upload.files]);
      this.upload.value = "";
    });
    this.listenForDrops();
    for (const [button, dialog] of [
      [this.openImport, this.importDialog],
      [this.openExport, this.exportDialog],
      [this.openHelp, this.helpDialog],
    ]) {
      button.addEventListener("click", () => dialog.showModal());
    }
    this.saveBoxes.addEventListener("click", () => this.failing(() => this.exportBoxes()));
    this.saveAnswers.addEventListener("click", () => this.failing(() => this.exportAnswers()));
    this.saveDrawing.addEventListener("click", () => this.failing(() => this.exportDrawing()));
    this.readFiles.addEventListener("click", () => this.failing(() => this.importBoxes()));
  }

  /** Run, and show what went wrong; dialogs hide the page's own line, so it is in both. */
  async failing(work) {
    this.alert("");
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.alert(error.message);
      this.tellImport([error.message]);
      this.exportDialog.close();
    }
  }

  // -- images -------------------------------------------------------------------------------------

  async load() {
    const { images, left_out: leftOut } = await getImages();
    this.state.images = images;
    if (leftOut) this.announce(`${leftOut} images lie outside of the folder and are left out`);
    this.render();
  }

  async open(name) {
    try {
      const { width, height } = await getImage(name);
      this.state.of(name).size = { width, height };
    } catch (error) {
      this.alert(error.message);
      return;
    }
    this.state.current = name;
    this.render();
    this.onOpen();
    this.announce(`${name} is shown`);
  }

  render() {
    const { images, current } = this.state;
    this.noImages.hidden = images.length > 0;
    this.strip.replaceChildren(
      ...images.map(({ name, uploaded }) => {
        const item = document.createElement("li");
        const button = item.appendChild(document.createElement("button"));
        button.type = "button";
        button.title = name;
        button.setAttribute("aria-current", String(name === current));
        const image = button.appendChild(document.createElement("img"));
        image.loading = "lazy";
        image.alt = "";
        image.src = pixelsUrl(name, THUMBNAIL);
        button.appendChild(document.createElement("span")).textContent = name;
        button.addEventListener("click", () => this.open(name));
        if (uploaded) {
          const remove = item.appendChild(document.createElement("button"));
          remove.type = "button";
          remove.className = "drop";
          remove.textContent = "✕";
          remove.setAttribute("aria-label", `Remove ${name}`);
          remove.addEventListener("click", () => this.failing(() => this.forget(name)));
        }
        return item;
      }),
    );
    this.strip.querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  async forget(name) {
    await removeImage(name);
    this.state.byImage.delete(name);
    if (this.state.current === name) this.state.current = null;
    await this.load();
    this.onOpen();
    this.announce(`${name} removed`);
  }

  async addFiles(files) {
    this.alert("");
    const failed = [];
    let last = null;
    for (const file of files) {
      try {
        last = (await uploadImage(file)).name;
      } catch (error) {
        failed.push(error.message);
        if (error.status === 0 || error.status === 507) break;
      }
    }
    await this.load();
    if (last !== null) await this.open(last);
    if (failed.length) this.alert(failed.join("; "));
  }

  listenForDrops() {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      document.body.classList.remove("dropping");
      this.addFiles([...event.dataTransfer.files]);
    });
  }

  // -- export -------------------------------------------------------------------------------------

  async exportBoxes() {
    const images = [...this.state.byImage]
      .filter(([name, page]) => name && page.regions.length)
      .map(([image, { regions }]) => ({ image, regions: regions.map(asSent) }));
    if (!images.length) return this.tellExport("There are no regions to export; draw some first.");
    const reply = await writeBoxes({ format: this.format.value, images });
    this.save(await reply.blob(), fileName(reply));
    return this.alert(reply.headers.get("x-left-out") ?? "");
  }

  exportAnswers() {
    const records = [...this.state.byImage.values()]
      .flatMap(({ turns }) => turns.map((turn) => turn.record))
      .filter(Boolean);
    if (!records.length) return this.tellExport("There are no answers to export; ask first.");
    const lines = records.map((record) => `${JSON.stringify(record)}\n`);
    return this.save(new Blob(lines, { type: "application/jsonl" }), "answers.jsonl");
  }

  async exportDrawing() {
    const { current } = this.state;
    const turns = current === null ? [] : this.state.now.turns;
    const answers = turns
      .filter(({ record }) => record && record.error === null)
      .map(({ record: { question, answer, regions } }) => ({
        question,
        answer: String(answer),
        regions: regions.map(asSent),
      }));
    if (!answers.length) return this.tellExport("There are no answers to draw; ask about this image first.");
    const reply = await drawAnswers({ image: current, answers });
    const stem = current.split("/").pop().replace(/\.[^.]*$/, "");
    return this.save(await reply.blob(), `${stem}-answers.png`);
  }

  save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    this.exportDialog.close();
    this.announce(`${name} saved`);
  }

  tellExport(text) {
    this.exportDialog.close();
    this.alert(text);
  }

  // -- import -------------------------------------------------------------------------------------

  async importBoxes() {
    const files = [...this.boxFiles.files];
    if (!files.length) return this.tellImport(["Choose a file first."]);
    const body = { files: await Promise.all(files.map(fileToSend)), scale_boxes: this.scaleBoxes.checked, masks: this.readMasks.checked };
    if (this.boxFormat.value) body.box_format = this.boxFormat.value;
    if (this.boxUnits.value) body.box_units = this.boxUnits.value;
    const found = await readBoxes(body);
    let count = 0;
    for (const { image, regions } of found.images) {
      count += regions.length;
      this.state.setRegions(regions, -1, { name: image });
    }
    const notes = [`${count} regions of ${found.images.length} images read from ${found.format}`];
    notes.push(...found.errors.map(({ error }) => error), ...found.warnings);
    if (found.unmatched.count) {
      notes.push(`${found.unmatched.count} images of the file are not here: ${found.unmatched.first.join(", ")}`);
    }
    this.announce(notes[0]);
    return this.tellImport(notes);
  }

  tellImport(lines) {
    this.importNotes.replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })),
    );
  }
}

function fileName(reply) {
  const found = /filename="([^"]+)"/.exec(reply.headers.get("content-disposition") ?? "");
  return found ? found[1] : "boxes";
}

/** A file as the API takes it: its name, and its bytes as Base64. */
async function fileToSend(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return { name: file.webkitRelativePath || file.name, content: btoa(text) };
}
