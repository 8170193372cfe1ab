// Regions that need no drawing: what a click or stroke lies on, and what a detector finds.

import { detectObjects, segmentPoints } from "./api.js";
import { sampled, withPoint } from "./regions.js";

const MOST = 16; // points of a stroke that are sent

export class Proposals {
  constructor(elements, state, { announce, alert, stage }) {
    Object.assign(this, elements); // select, exclude, propose, find
    this.state = state;
    this.announce = announce;
    this.alert = alert;
    this.stage = stage;
    this.busy = false;
    this.select.addEventListener("click", () => this.toggle(this.select));
    this.exclude.addEventListener("click", () => this.toggle(this.exclude));
    this.propose.addEventListener("click", () => this.proposeAll());
  }

  /** What a click on the image does: "select", "exclude", or nothing of this. */
  get mode() {
    const pressed = (button) => !button.hidden && button.getAttribute("aria-pressed") === "true";
    if (pressed(this.exclude)) return "exclude";
    return pressed(this.select) ? "select" : null;
  }

  toggle(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const each of [this.select, this.exclude]) {
      each.setAttribute("aria-pressed", String(on && each === button));
    }
    this.stage.stage.classList.toggle("selecting", this.mode !== null);
  }

  render() {
    const { segmenter, detector } = this.state.status ?? {};
    this.select.hidden = this.exclude.hidden = !segmenter;
    this.propose.hidden = !detector;
    this.find.hidden = this.find.labels[0].hidden = !detector?.takes_words;
    const idle = this.state.current !== null && !this.busy;
    this.select.disabled = this.state.current === null;
    this.exclude.disabled = !this.state.current || !this.state.now.regions[this.state.now.selected]?.points;
    this.propose.disabled = !idle;
    if (this.exclude.disabled && this.mode === "exclude") this.toggle(this.select);
  }

  /**
   * Select what points of a stroke lie on. With `add`, they belong to the selected region, if it
   * was selected by points; in the mode "exclude", they do not belong to it.
   */
  async at(stroke, { add = false, exclude = this.mode === "exclude" } = {}) {
    const { now, current } = this.state;
    const index = now.selected;
    const known = add || exclude ? now.regions[index]?.points : null;
    if (exclude && !known) return this.alert("Select a region by a click first; then show what does not belong to it.");
    let points = known ?? { inside: [], outside: [] };
    for (const point of sampled(stroke, MOST)) points = withPoint(points, point, exclude, now.size);
    await this.working("Selecting…", async () => {
      const { region } = await segmentPoints({ image: current, ...points });
      const found = { ...region, points };
      const { regions } = this.state.of(current);
      const replaced = known && regions[index]?.points === known;
      const next = replaced
        ? regions.map((each, i) => (i === index ? { ...found, label: each.label } : each))
        : [...regions, found];
      const place = replaced ? index : regions.length;
      this.state.setRegions(next, place, { name: current });
      this.announce(`Region ${place + 1} selected`);
    });
  }

  async proposeAll() {
    const { current, status } = this.state;
    const words = this.find.value.split(",").map((text) => text.trim()).filter(Boolean);
    if (status.detector.takes_words && !words.length) {
      this.find.focus();
      return this.alert("Write what to find, such as: red cup, chair");
    }
    await this.working("Looking for objects…", async () => {
      const body = status.detector.takes_words ? { find: words } : {};
      const { regions: found, left_out: empty } = await detectObjects({ image: current, ...body });
      const { regions, selected } = this.state.of(current);
      const added = found.map(({ box, label }) => ({ box, label }));
      if (added.length) this.state.setRegions([...regions, ...added], selected, { name: current });
      this.announce(`${added.length} regions found`);
      const notes = [];
      if (!added.length) notes.push(`${status.detector.name} found nothing.`);
      if (empty) notes.push(`Boxes without area left out: ${empty}.`);
      if (notes.length) this.alert(notes.join(" "));
    });
  }

  async working(text, work) {
    if (this.busy) return;
    this.busy = true;
    this.alert("");
    this.announce(text);
    this.stage.stage.setAttribute("aria-busy", "true");
    this.render();
    try {
      await work();
    } catch (error) {
      this.alert(error.message);
    } finally {
      this.busy = false;
      this.stage.stage.removeAttribute("aria-busy");
      this.render();
    }
  }
}
