// The image with its regions: drawing, moving and resizing by pointer and keys; zoom and pan.

import { pixelsUrl } from "./api.js";
import { paint } from "./masks.js";
import {
  COLOURS, HANDLES, boxBetween, coordinates, fitted, kept, moved, onBorder, regionAt, regionName,
  resized, toImage, toScreen, zoomed,
} from "./regions.js";

const CLICK = 4; // pixels of the screen that a click may move
const BORDER = { mouse: 5, pen: 8, touch: 12 };

export class Stage {
  constructor(elements, state, { announce, onPick }) {
    Object.assign(this, elements); // stage, pixels, boxes, pan
    this.state = state;
    this.announce = announce;
    this.onPick = onPick;
    this.view = { scale: 1, x: 0, y: 0 };
    this.isFitted = true;
    this.pointers = new Map();
    this.gesture = null;
    this.space = false;
    this.stage.addEventListener("pointerdown", (event) => this.down(event));
    this.stage.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(kind, (event) => this.up(event, kind === "pointercancel"));
    }
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("keydown", (event) => this.spaceKey(event, true));
    document.addEventListener("keyup", (event) => this.spaceKey(event, false));
    this.pan.addEventListener("click", () => this.setPanning(!this.isPanning));
    new ResizeObserver(() => this.resizedFrame()).observe(this.stage);
  }

  get frame() {
    return { width: this.stage.clientWidth, height: this.stage.clientHeight };
  }

  get size() {
    return this.state.current === null ? null : this.state.now.size;
  }

  get isPanning() {
    return this.pan.getAttribute("aria-pressed") === "true";
  }

  setPanning(panning) {
    this.pan.setAttribute("aria-pressed", String(panning));
    this.stage.classList.toggle("panning", panning || this.space);
  }

  /** Show the current image, whose size is known. */
  show() {
    const { current } = this.state;
    this.pixels.hidden = current === null;
    this.stage.setAttribute("aria-label", current === null ? "No image" : `Image ${current}`);
    if (current === null) return this.render();
    const url = pixelsUrl(current);
    if (this.pixels.getAttribute("src") !== url) this.pixels.src = url;
    this.pixels.style.width = `${this.size.width}px`;
    this.pixels.style.height = `${this.size.height}px`;
    this.fit();
  }

  fit() {
    if (!this.size) return;
    this.isFitted = true;
    this.view = fitted(this.size, this.frame);
    this.render();
  }

  zoom(factor, at = { x: this.frame.width / 2, y: this.frame.height / 2 }) {
    if (!this.size) return;
    this.isFitted = false;
    this.view = zoomed(this.view, factor, at, this.size, this.frame);
    this.render();
  }

  panBy(dx, dy) {
    this.isFitted = false;
    this.view = kept({ ...this.view, x: this.view.x + dx, y: this.view.y + dy }, this.size, this.frame);
    this.render();
  }

  resizedFrame() {
    if (!this.size) return;
    if (this.isFitted) this.fit();
    else this.panBy(0, 0);
  }

  // -- rendering ----------------------------------------------------------------------------------

  render() {
    const { view, state } = this;
    this.pixels.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    this.pixels.classList.toggle("large", view.scale >= 3);
    const regions = state.current === null || !this.size ? [] : state.now.regions;
    while (this.boxes.children.length > regions.length) this.boxes.lastChild.remove();
    regions.forEach((region, index) => {
      const box = this.boxes.children[index] ?? this.boxes.appendChild(this.newBox(index));
      this.renderBox(box, region, index);
    });
    if (this.draft) this.renderDraft();
    else this.draftBox?.remove();
  }

  newBox(index) {
    const box = document.createElement("div");
    box.tabIndex = 0;
    box.setAttribute("role", "button");
    box.addEventListener("focus", () => this.state.select(index));
    const badge = box.appendChild(document.createElement("span"));
    badge.className = "badge";
    badge.dataset.move = "";
    const [before, after] = [0, 1].map(() => document.createElement("span"));
    before.textContent = "Region ";
    before.className = after.className = "unseen";
    badge.append(before, String(index + 1), after);
    box.append(" ", document.createElement("span"));
    box.lastChild.className = "note";
    return box;
  }

  renderBox(box, region, index) {
    const { state } = this;
    const selected = state.now.selected === index;
    const note = state.note(region);
    box.className = `box c${index % COLOURS}${selected ? " selected" : ""}`;
    box.dataset.index = String(index);
    box.querySelector(".unseen:last-child").textContent = `: ${coordinates(region.box)}.`;
    this.place(box, region.box);
    this.renderMask(box, region);
    const text = box.querySelector(".note");
    text.hidden = !note && !region.label;
    text.textContent = note?.text ?? region.label ?? "";
    text.classList.toggle("unsure", Boolean(note?.unsure));
    const handles = box.querySelectorAll(".handle");
    if (!selected) handles.forEach((handle) => handle.remove());
    else if (!handles.length) {
      for (const name of HANDLES) {
        const handle = box.appendChild(document.createElement("span"));
        handle.className = "handle";
        handle.dataset.handle = name;
      }
    }
  }

  renderMask(box, { mask, box: edges }) {
    let canvas = box.querySelector("canvas");
    if (!mask) return canvas?.remove();
    const key = `${mask.counts} ${edges}`;
    if (canvas?.dataset.key === key) return;
    canvas ??= box.insertBefore(document.createElement("canvas"), box.firstChild);
    canvas.dataset.key = key;
    canvas.setAttribute("aria-hidden", "true");
    paint(canvas, mask, edges, getComputedStyle(box).getPropertyValue("--region"));
  }

  place(element, box) {
    for (const [name, value] of Object.entries(toScreen(this.view, box))) {
      element.style[name] = `${value}px`;
    }
  }

  renderDraft() {
    this.draftBox ??= document.createElement("div");
    this.draftBox.className = `box c${this.state.now.regions.length % COLOURS}`;
    this.draftBox.setAttribute("aria-hidden", "true");
    this.place(this.draftBox, this.draft);
    if (this.draftBox.parentElement !== this.stage) this.stage.append(this.draftBox);
  }

  // -- pointers -----------------------------------------------------------------------------------

  at(event) {
    const frame = this.stage.getBoundingClientRect();
    return {
      x: event.clientX - frame.left - this.stage.clientLeft,
      y: event.clientY - frame.top - this.stage.clientTop,
    };
  }

  down(event) {
    if (!this.size || (event.pointerType === "mouse" && event.button > 1)) return;
    event.preventDefault();
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    if (this.pointers.size === 2) {
      this.cancelGesture();
      this.gesture = { kind: "pinch", ...this.pinch() };
    } else if (this.pointers.size === 1) {
      this.gesture = this.begun(event, this.at(event));
    }
  }

  /** The gesture that a pointer begins. */
  begun(event, start) {
    if (this.isPanning || this.space || event.button === 1) return { kind: "pan", last: start };
    const { regions, selected } = this.state.now;
    const box = event.target.closest?.(".box");
    const index = box ? Number(box.dataset.index) : -1;
    const { handle, move } = event.target.dataset ?? {};
    const common = { start, before: regions, moved: false };
    if (handle) return { kind: "resize", handle, index, from: regions[index].box, ...common };
    if (move !== undefined) {
      return { kind: "move", index, from: regions[index].box, ...common };
    }
    const point = toImage(this.view, start);
    const near = BORDER[event.pointerType] ?? 5;
    if (selected >= 0 && onBorder(regions[selected].box, point, near / this.view.scale)) {
      return { kind: "move", index: selected, from: regions[selected].box, ...common };
    }
    if (this.proposals?.mode) return { kind: "stroke", points: [point], ...common };
    return { kind: "draw", ...common };
  }

  move(event) {
    if (!this.pointers.has(event.pointerId)) return;
    const at = this.at(event);
    this.pointers.set(event.pointerId, at);
    const { gesture, size, state } = this;
    if (!gesture) return;
    if (gesture.kind === "pinch") return this.pinched();
    if (gesture.kind === "pan") {
      this.panBy(at.x - gesture.last.x, at.y - gesture.last.y);
      gesture.last = at;
      return;
    }
    const far = Math.hypot(at.x - gesture.start.x, at.y - gesture.start.y) > CLICK;
    if (!gesture.moved && !far) return;
    gesture.moved = true;
    const from = toImage(this.view, gesture.start);
    const to = toImage(this.view, at);
    if (gesture.kind === "stroke") {
      gesture.points.push(to);
      return;
    }
    if (gesture.kind === "draw") {
      this.draft = boxBetween(from, to, size);
      return this.render();
    }
    const box =
      gesture.kind === "move"
        ? moved(gesture.from, to.x - from.x, to.y - from.y, size)
        : resized(gesture.from, gesture.handle, to, size);
    state.setBox(gesture.index, box, { undoable: false });
  }

  up(event, cancelled) {
    if (!this.pointers.delete(event.pointerId)) return;
    const { gesture, state } = this;
    if (gesture?.kind === "pinch") {
      if (!this.pointers.size) this.gesture = null;
      return;
    }
    this.gesture = null;
    if (!gesture || gesture.kind === "pan") return;
    if (cancelled) return this.cancelled(gesture);
    if (gesture.kind === "stroke") return this.selectAt(gesture.points, event);
    if (!gesture.moved) return this.clicked(gesture, event.pointerType === "mouse");
    if (gesture.kind === "draw") {
      const box = this.draft;
      this.draft = null;
      this.addRegion(box);
    } else {
      const { regions } = state.now;
      state.now.regions = gesture.before;
      state.setRegions(regions, gesture.index);
      this.announce(regionName(regions[gesture.index], gesture.index + 1));
    }
  }

  /** Select what points lie on; the keys that are held say whether they extend the region. */
  selectAt(points, { shiftKey, altKey }) {
    const exclude = altKey || this.proposals.mode === "exclude";
    this.proposals.at(points, { add: shiftKey, exclude });
  }

  cancelGesture() {
    if (this.gesture) this.cancelled(this.gesture);
    this.gesture = null;
  }

  cancelled(gesture) {
    this.draft = null;
    if (gesture.before) this.state.setRegions(gesture.before, undefined, { undoable: false });
  }

  clicked(gesture, thenType) {
    const { regions } = this.state.now;
    const index = gesture.index ?? regionAt(regions, toImage(this.view, gesture.start));
    this.state.select(index);
    if (index >= 0) this.onPick(index + 1, thenType);
  }

  pinch() {
    const [one, other] = [...this.pointers.values()];
    return {
      middle: { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 },
      distance: Math.max(1, Math.hypot(one.x - other.x, one.y - other.y)),
    };
  }

  pinched() {
    if (this.pointers.size < 2) return;
    const { middle, distance } = this.pinch();
    const last = this.gesture;
    this.zoom(distance / last.distance, middle);
    this.panBy(middle.x - last.middle.x, middle.y - last.middle.y);
    Object.assign(this.gesture, { middle, distance });
  }

  wheel(event) {
    if (!this.size) return;
    event.preventDefault();
    const step = event.deltaMode === 1 ? 20 : 1;
    this.zoom(Math.exp((-event.deltaY * step) / 400), this.at(event));
  }

  // -- keys ---------------------------------------------------------------------------------------

  spaceKey(event, down) {
    if (event.key !== " " || (down && event.target !== this.stage)) return;
    if (down) event.preventDefault();
    this.space = down;
    this.setPanning(this.isPanning);
  }

  key(event) {
    if (!this.size || event.ctrlKey || event.metaKey) return;
    const index = event.target.dataset.index === undefined ? -1 : Number(event.target.dataset.index);
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step && index >= 0) this.stepRegion(index, step, event);
    else if (step) this.panBy(-40 * step[0], -40 * step[1]);
    else if (event.key.toLowerCase() === "n") this.newInView();
    else if (event.key.toLowerCase() === "s" && this.state.status?.segmenter) this.selectInView();
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else if (event.key === "Escape") this.escape();
    else if (index >= 0 && (event.key === "Enter" || event.key === " ")) this.onPick(index + 1);
    else if (["Delete", "Backspace"].includes(event.key)) this.removeSelected();
    else return;
    event.preventDefault();
  }

  stepRegion(index, [dx, dy], { altKey, shiftKey }) {
    const by = shiftKey ? 10 : 1;
    const { box } = this.state.now.regions[index];
    const corner = { x: box[2] + dx * by, y: box[3] + dy * by };
    const grows = corner.x > box[0] && corner.y > box[1];
    if (altKey && !grows) return;
    const changed = altKey ? resized(box, "se", corner, this.size) : moved(box, dx * by, dy * by, this.size);
    this.state.setBox(index, changed);
    this.announce(regionName(this.state.now.regions[index], index + 1));
  }

  escape() {
    this.cancelGesture();
    this.state.select(-1);
    this.stage.focus();
    this.render();
  }

  /** Add a region in the middle of what is shown, and focus it. */
  newInView() {
    if (!this.size) return;
    const { width, height } = this.frame;
    const corner = (share) => toImage(this.view, { x: width * share, y: height * share });
    this.addRegion(boxBetween(corner(0.375), corner(0.625), this.size));
    this.boxes.lastChild.focus();
  }

  /** Select what lies in the middle of what is shown. */
  selectInView() {
    const { width, height } = this.frame;
    this.proposals.at([toImage(this.view, { x: width / 2, y: height / 2 })], { exclude: false });
  }

  addRegion(box) {
    const number = this.state.add(box);
    this.announce(`Added. ${regionName(this.state.now.regions[number - 1], number)}`);
  }

  removeSelected() {
    const { selected } = this.state.now;
    if (selected < 0) return;
    this.state.removeRegion(selected);
    this.announce(`Region ${selected + 1} deleted`);
    if (document.activeElement === document.body) this.stage.focus();
  }
}
