// Geometry of regions and of the view, undo, and what a question refers to. No document is needed.

export const COLOURS = 7;
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const REFERENCE = /<region(\d+)>/g;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** The box between two points, in whole pixels inside the image, at least one pixel wide and high. */
export function boxBetween(first, second, size) {
  const x = [first.x, second.x].map((each) => clamp(Math.round(each), 0, size.width));
  const y = [first.y, second.y].map((each) => clamp(Math.round(each), 0, size.height));
  const box = [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)];
  for (const [low, high, length] of [[0, 2, size.width], [1, 3, size.height]]) {
    if (box[high] === box[low]) {
      if (box[high] < length) box[high] += 1;
      else box[low] -= 1;
    }
  }
  return box;
}

/** The box moved, as far as it stays inside the image. */
export function moved(box, dx, dy, size) {
  const x = clamp(Math.round(dx), -box[0], size.width - box[2]);
  const y = clamp(Math.round(dy), -box[1], size.height - box[3]);
  return [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
}

/** The box with the edges of a handle at a point; an edge that passes the other one turns it over. */
export function resized(box, handle, point, size) {
  let [x0, y0, x1, y1] = box;
  if (handle.includes("w")) x0 = point.x;
  if (handle.includes("e")) x1 = point.x;
  if (handle.includes("n")) y0 = point.y;
  if (handle.includes("s")) y1 = point.y;
  return boxBetween({ x: x0, y: y0 }, { x: x1, y: y1 }, size);
}

/** At most so many points of a stroke, spread over it; its first and its last are among them. */
export function sampled(stroke, most) {
  if (stroke.length <= most) return stroke;
  return Array.from({ length: most }, (_, i) => stroke[Math.round((i * (stroke.length - 1)) / (most - 1))]);
}

/** Points of a region with one more, moved into the image. */
export function withPoint({ inside, outside }, point, excluded, size) {
  const [x, y] = [clamp(point.x, 0, size.width - 1), clamp(point.y, 0, size.height - 1)];
  const added = [Math.round(x * 10) / 10, Math.round(y * 10) / 10];
  return excluded ? { inside, outside: [...outside, added] } : { inside: [...inside, added], outside };
}

/** A region as the server takes it. */
export const asSent = ({ box, label = null, mask }) => (mask ? { box, label, mask } : { box, label });

export const contains = (box, point) =>
  point.x >= box[0] && point.x <= box[2] && point.y >= box[1] && point.y <= box[3];

export const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);

/** Index of the smallest region around a point; -1 if there is none. */
export function regionAt(regions, point) {
  let found = -1;
  regions.forEach((region, index) => {
    if (!contains(region.box, point)) return;
    if (found < 0 || area(region.box) < area(regions[found].box)) found = index;
  });
  return found;
}

/** Whether a point is within a distance of the border of a box. */
export function onBorder(box, point, distance) {
  const grown = [box[0] - distance, box[1] - distance, box[2] + distance, box[3] + distance];
  const shrunk = [box[0] + distance, box[1] + distance, box[2] - distance, box[3] - distance];
  const inside = shrunk[0] < shrunk[2] && shrunk[1] < shrunk[3] && contains(shrunk, point);
  return contains(grown, point) && !inside;
}

// -- the view: image pixel p is shown at view.x + p.x * view.scale --------------------------------

export function fitted(size, frame) {
  const scale = Math.min(frame.width / size.width, frame.height / size.height, 8);
  return {
    scale,
    x: (frame.width - size.width * scale) / 2,
    y: (frame.height - size.height * scale) / 2,
  };
}

/** The view zoomed by a factor around a point of the screen. */
export function zoomed(view, factor, at, size, frame) {
  const least = Math.min(fitted(size, frame).scale, 1);
  const scale = clamp(view.scale * factor, least, 64);
  const ratio = scale / view.scale;
  return kept({ scale, x: at.x - (at.x - view.x) * ratio, y: at.y - (at.y - view.y) * ratio }, size, frame);
}

/** The view moved so that some of the image stays in the frame. */
export function kept(view, size, frame) {
  const shown = 48;
  return {
    scale: view.scale,
    x: clamp(view.x, shown - size.width * view.scale, frame.width - shown),
    y: clamp(view.y, shown - size.height * view.scale, frame.height - shown),
  };
}

export const toImage = (view, point) => ({
  x: (point.x - view.x) / view.scale,
  y: (point.y - view.y) / view.scale,
});

export const toScreen = (view, box) => ({
  left: view.x + box[0] * view.scale,
  top: view.y + box[1] * view.scale,
  width: (box[2] - box[0]) * view.scale,
  height: (box[3] - box[1]) * view.scale,
});

// -- undo -----------------------------------------------------------------------------------------

/** States before and after the present one. States are not changed, only replaced. */
export class Undo {
  constructor(limit = 200) {
    this.limit = limit;
    this.past = [];
    this.future = [];
  }

  push(state) {
    this.past.push(state);
    if (this.past.length > this.limit) this.past.shift();
    this.future = [];
  }

  undo(present) {
    if (!this.past.length) return present;
    this.future.push(present);
    return this.past.pop();
  }

  redo(present) {
    if (!this.future.length) return present;
    this.past.push(present);
    return this.future.pop();
  }
}

// -- questions ------------------------------------------------------------------------------------

export const mention = (number) => `<region${number}>`;

/** Numbers of the regions that a text names, each once. */
export function mentioned(text) {
  return [...new Set([...text.matchAll(REFERENCE)].map((found) => Number(found[1])))];
}

/** A text with a region named at a place, set off by spaces; and the place after it. */
export function withMention(text, start, end, number) {
  const before = text.slice(0, start);
  const after = text.slice(end);
  const left = before && !/\s$/.test(before) ? " " : "";
  const right = after && !/^[\s?.,;:!]/.test(after) ? " " : "";
  const inserted = left + mention(number) + right;
  return { text: before + inserted + after, caret: before.length + inserted.length };
}

/** Parts of a text: strings, and numbers of regions. */
export function parts(text) {
  const found = [];
  let at = 0;
  for (const each of text.matchAll(REFERENCE)) {
    if (each.index > at) found.push(text.slice(at, each.index));
    found.push(Number(each[1]));
    at = each.index + each[0].length;
  }
  if (at < text.length) found.push(text.slice(at));
  return found;
}

/** The regions that a question is about: those it names, else all. */
export function subjects(text, count) {
  const named = mentioned(text).filter((number) => number >= 1 && number <= count);
  return named.length ? named : Array.from({ length: count }, (_, index) => index + 1);
}

/** What a question is about, in words. */
export function aboutText(text, count) {
  const wrong = mentioned(text).filter((number) => number < 1 || number > count);
  if (wrong.length) return `There is no region ${wrong[0]}.`;
  const named = mentioned(text);
  if (named.length === 1) return `About region ${named[0]}.`;
  if (named.length) return `About regions ${named.join(", ")}.`;
  if (!count) return "About the whole image.";
  return count === 1 ? "About region 1." : `About all ${count} regions.`;
}

const sameBox = (one, other) => one.every((value, index) => value === other[index]);

/**
 * The latest turns whose regions are the first of the present ones, unchanged: those that can be
 * told as the history of the next question. A turn with `fresh` begins a conversation.
 */
export function historyOf(turns, regions) {
  const history = [];
  let count = regions.length;
  for (const turn of [...turns].reverse()) {
    if (turn.kind !== "question" || turn.error || turn.pending) continue;
    const { boxes } = turn;
    const prefix = boxes.length <= count && boxes.every((box, i) => sameBox(box, regions[i].box));
    if (!prefix) break;
    count = boxes.length;
    history.unshift(turn);
    if (turn.fresh) break;
  }
  return history;
}

export const coordinates = (box) => box.map((value) => Math.round(value * 10) / 10).join(", ");

export const regionName = (region, number) =>
  `Region ${number}${region.label ? `, ${region.label}` : ""}: ${coordinates(region.box)}`;
