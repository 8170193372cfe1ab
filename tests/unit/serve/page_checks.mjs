// Checks of the functions of the page that need no browser; test_page.py runs them.
import assert from "node:assert/strict";
import * as r from "./page/regions.js";
import { eventParser } from "./page/api.js";
import { State } from "./page/state.js";
import { eachSpan, runsOf } from "./page/masks.js";

const size = { width: 100, height: 50 };
assert.deepEqual(r.boxBetween({ x: 30.4, y: 40 }, { x: 10, y: -9 }, size), [10, 0, 30, 40]);
assert.deepEqual(r.boxBetween({ x: 100, y: 7 }, { x: 140, y: 7 }, size), [99, 7, 100, 8]);
assert.deepEqual(r.moved([10, 10, 30, 30], 500, -3.6, size), [80, 6, 100, 26]);
assert.deepEqual(r.resized([10, 10, 30, 30], "nw", { x: 40, y: 5 }, size), [30, 5, 40, 30]);
assert.deepEqual(r.resized([10, 10, 30, 30], "e", { x: 99.6, y: 0 }, size), [10, 10, 100, 30]);

const regions = [{ box: [0, 0, 90, 40] }, { box: [10, 10, 20, 20] }, { box: [60, 0, 70, 9] }];
assert.equal(r.regionAt(regions, { x: 15, y: 15 }), 1);
assert.equal(r.regionAt(regions, { x: 50, y: 39 }), 0);
assert.equal(r.regionAt(regions, { x: 95, y: 45 }), -1);
assert.ok(r.onBorder([10, 10, 30, 30], { x: 12, y: 20 }, 3));
assert.ok(!r.onBorder([10, 10, 30, 30], { x: 20, y: 20 }, 3));
assert.ok(!r.onBorder([10, 10, 30, 30], { x: 5, y: 20 }, 3));

const frame = { width: 400, height: 400 };
const view = r.fitted(size, frame);
assert.deepEqual(view, { scale: 4, x: 0, y: 100 });
const at = { x: 200, y: 200 };
const near = r.zoomed(view, 2, at, size, frame);
assert.deepEqual(r.toImage(near, at), r.toImage(view, at));
assert.equal(near.scale, 8);
assert.equal(r.zoomed(view, 1e9, at, size, frame).scale, 64);
assert.equal(r.zoomed(view, 1e-9, at, size, frame).scale, 1);
assert.deepEqual(r.toScreen(view, [10, 10, 20, 30]), { left: 40, top: 140, width: 40, height: 80 });

const undo = new r.Undo(2);
for (const state of ["a", "b", "c"]) undo.push(state);
assert.equal(undo.undo("d"), "c");
assert.equal(undo.undo("c"), "b");
assert.equal(undo.undo("b"), "b");
assert.equal(undo.redo("b"), "c");
undo.push("c");
assert.equal(undo.redo("x"), "x");

assert.deepEqual(r.mentioned("<region2> on <region10>, <region2> <region> <region1a>"), [2, 10]);
assert.deepEqual(r.parts("is <region2>?"), ["is ", 2, "?"]);
assert.deepEqual(r.withMention("what is?", 7, 7, 3), { text: "what is <region3>?", caret: 17 });
assert.deepEqual(r.withMention("", 0, 0, 1), { text: "<region1>", caret: 9 });
assert.deepEqual(r.withMention("ab", 1, 1, 1), { text: "a <region1> b", caret: 12 });
assert.deepEqual(r.subjects("what?", 2), [1, 2]);
assert.deepEqual(r.subjects("<region2>?", 3), [2]);
assert.equal(r.aboutText("", 0), "About the whole image.");
assert.equal(r.aboutText("<region4>", 3), "There is no region 4.");
assert.equal(r.aboutText("<region1> <region3>", 3), "About regions 1, 3.");

const turn = (question, boxes, more = {}) => ({ kind: "question", question, answer: "a", boxes, ...more });
const boxes = regions.map(({ box }) => box);
const talk = [turn("1", boxes.slice(0, 1)), turn("2", boxes.slice(0, 2))];
const asked = (turns, now = regions) => r.historyOf(turns, now).map((each) => each.question);
assert.deepEqual(asked(talk), ["1", "2"]);
assert.deepEqual(asked([...talk, turn("3", boxes, { error: "no" })]), ["1", "2"]);
assert.deepEqual(asked([...talk, turn("c", boxes, { kind: "caption" })]), ["1", "2"]);
assert.deepEqual(asked([talk[0], turn("new", boxes, { fresh: true })]), ["new"]);
assert.deepEqual(asked(talk, [regions[0], { box: [1, 1, 2, 2] }]), [], "a region was moved");
assert.deepEqual(asked([turn("0", [[5, 5, 6, 6]]), ...talk]), ["1", "2"]);

const found = [];
const parse = eventParser((kind, document) => found.push([kind, document]));
for (const part of [": waiting\n\nevent: te", 'xt\ndata: {"a": "\\n', '"}\n', "\nevent: done\ndata: {}\n\n"]) parse(part);
assert.deepEqual(found, [["text", { a: "\n" }], ["done", {}]]);

const kept = new Map();
const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
const state = new State(storage);
state.current = "a.png";
assert.equal(state.add([0, 0, 5, 5]), 1);
state.add([1, 1, 2, 2]);
state.now.turns.push({ ...turn("what is <region1>?", [[0, 0, 5, 5]]), about: [1], answer: "as <region2>" });
assert.equal(state.note(state.now.regions[0]).text, "as region 2");
state.setBox(0, [0, 0, 6, 6]);
assert.equal(state.note(state.now.regions[0]), null);
state.undo();
assert.equal(state.note(state.now.regions[0]).text, "as region 2");
state.removeRegion(1);
const again = new State(storage);
assert.equal(again.restore(), "a.png");
assert.deepEqual(again.of("a.png").regions, [{ box: [0, 0, 5, 5], label: null }]);
assert.equal(again.of("a.png").turns.length, 1);
kept.set("regionqa", "{");
assert.equal(new State(storage).restore(), null);
console.log("done");

// masks, and points on what they lie on
assert.deepEqual(runsOf("6239:"), [6, 2, 3, 11, 13]);
assert.deepEqual(runsOf("Re>n5^3000").slice(0, 5), [15010, 190, 110, 190, 110]);
const spans = [];
eachSpan({ size: [5, 7], counts: "6239:" }, (...span) => spans.push(span));
assert.deepEqual(spans, [[1, 1, 3], [2, 1, 5], [3, 0, 5], [4, 0, 2]]);
const same = [];
eachSpan({ size: [5, 7], counts: [6, 2, 3, 11, 13] }, (...span) => same.push(span));
assert.deepEqual(same, spans);
const stroke = Array.from({ length: 31 }, (_, x) => ({ x, y: 0 }));
assert.deepEqual(r.sampled(stroke, 4).map(({ x }) => x), [0, 10, 20, 30]);
assert.equal(r.sampled(stroke, 40), stroke);
const one = r.withPoint({ inside: [], outside: [] }, { x: 3.14, y: 99 }, false, size);
assert.deepEqual(one, { inside: [[3.1, 49]], outside: [] });
assert.deepEqual(r.withPoint(one, { x: -1, y: 2 }, true, size).outside, [[0, 2]]);
assert.deepEqual(r.asSent({ box: [1, 2, 3, 4], points: one, score: 1 }), { box: [1, 2, 3, 4], label: null });
const shown = new State({ getItem: () => null, setItem: () => {} });
shown.current = "a";
shown.setRegions([{ box: [0, 0, 9, 9], label: "cup", mask: { size: [5, 7], counts: "6239:" }, points: one }], 0);
assert.equal(r.asSent(shown.now.regions[0]).mask.counts, "6239:");
shown.setBox(0, [1, 0, 10, 9]);
assert.deepEqual(shown.now.regions[0], { box: [1, 0, 10, 9], label: "cup" });
