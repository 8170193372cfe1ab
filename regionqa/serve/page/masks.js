// Masks: COCO's run lengths, drawn on a canvas.

/** Runs of COCO's text: outside and inside in turn, column by column. */
export function runsOf(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    let shift = 0;
    let code = 32;
    while (code & 32) {
      code = text.charCodeAt(at) - 48;
      at += 1;
      value += (code & 31) * 2 ** shift;
      shift += 5;
    }
    if (code & 16) value -= 2 ** shift;
    runs.push(value + (runs.length > 2 ? runs[runs.length - 2] : 0));
  }
  return runs;
}

/** Call a function with column, first row and row after the last of what is inside. */
export function eachSpan({ size: [height], counts }, span) {
  let start = 0;
  (typeof counts === "string" ? runsOf(counts) : counts).forEach((run, index) => {
    for (let from = start; index % 2 && from < start + run; ) {
      const column = Math.floor(from / height);
      const to = Math.min(start + run, (column + 1) * height);
      span(column, from - column * height, to - column * height);
      from = to;
    }
    start += run;
  });
}

/** Paint the part of a mask inside a box on a canvas that covers the box. */
export function paint(canvas, mask, box, colour) {
  const [left, top] = [Math.floor(box[0]), Math.floor(box[1])];
  canvas.width = Math.max(1, Math.ceil(box[2]) - left);
  canvas.height = Math.max(1, Math.ceil(box[3]) - top);
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour;
  eachSpan(mask, (column, from, to) => pen.fillRect(column - left, from - top, 1, to - from));
}
