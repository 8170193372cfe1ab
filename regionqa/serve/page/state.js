// What the page knows: regions and turns of every image. It is kept in the tab's session storage.

import { Undo } from "./regions.js";

const KEY = "regionqa";
const fresh = () => ({ regions: [], turns: [], selected: -1, undo: new Undo(), size: null });

export class State {
  constructor(storage) {
    this.storage = storage;
    this.status = null;
    this.images = [];
    this.current = null;
    this.byImage = new Map();
    this.listeners = [];
  }

  /** Call a function after every change. */
  onChange(listener) {
    this.listeners.push(listener);
  }

  changed() {
    for (const listener of this.listeners) listener();
    this.save();
  }

  of(name) {
    if (!this.byImage.has(name)) this.byImage.set(name, fresh());
    return this.byImage.get(name);
  }

  /** Regions, turns and selection of the image that is shown. */
  get now() {
    return this.of(this.current);
  }

  get unsure() {
    return this.status?.model.unsure ?? "";
  }

  // -- regions: a list that is replaced and never changed, so that undo can keep it ---------------

  setRegions(regions, selected = this.now.selected, { undoable = true, name = this.current } = {}) {
    const page = this.of(name);
    if (undoable) page.undo.push(page.regions);
    page.regions = regions;
    page.selected = Math.min(selected, regions.length - 1);
    this.changed();
  }

  setBox(index, box, options) {
    // a box that was moved is no longer the one around its mask
    const moved = ({ label }) => ({ box, label });
    const regions = this.now.regions.map((region, i) => (i === index ? moved(region) : region));
    this.setRegions(regions, index, options);
  }

  add(box) {
    const regions = [...this.now.regions, { box, label: null }];
    this.setRegions(regions, regions.length - 1);
    return regions.length;
  }

  removeRegion(index) {
    const regions = this.now.regions.filter((_, i) => i !== index);
    this.setRegions(regions, Math.min(index, regions.length - 1));
  }

  select(index) {
    if (this.now.selected === index) return;
    this.now.selected = index;
    this.changed();
  }

  undo() {
    this.now.regions = this.now.undo.undo(this.now.regions);
    this.now.selected = Math.min(this.now.selected, this.now.regions.length - 1);
    this.changed();
  }

  redo() {
    this.now.regions = this.now.undo.redo(this.now.regions);
    this.changed();
  }

  // -- notes: the last answer about a single region, as it was drawn ------------------------------

  note(region, turns = this.now.turns) {
    for (const turn of [...turns].reverse()) {
      const same = turn.about?.length === 1 && turn.boxes[turn.about[0] - 1];
      if (same && !turn.error && same.every((value, i) => value === region.box[i])) {
        const text = turn.answer.replace(/<region(\d+)>/g, "region $1");
        if (text) return { text, unsure: turn.answer === this.unsure };
      }
    }
    return null;
  }

  // -- storage ------------------------------------------------------------------------------------

  save() {
    const pages = [...this.byImage]
      .filter(([name, page]) => name && (page.regions.length || page.turns.length))
      .map(([name, { regions, turns }]) => [name, { regions, turns: turns.filter((t) => !t.pending) }]);
    try {
      this.storage.setItem(KEY, JSON.stringify({ current: this.current, pages }));
    } catch {
      // full, or refused: the page works without
    }
  }

  restore() {
    try {
      const saved = JSON.parse(this.storage.getItem(KEY) ?? "null");
      for (const [name, { regions, turns }] of saved?.pages ?? []) {
        this.byImage.set(name, { ...fresh(), regions, turns });
      }
      return saved?.current ?? null;
    } catch {
      return null;
    }
  }
}
