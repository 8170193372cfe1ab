// The server's API. Every failure is an ApiError with the server's one line.

export class ApiError extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const encoded = (name) => name.split("/").map(encodeURIComponent).join("/");

export const pixelsUrl = (name, side) =>
  `/v1/pixels/${encoded(name)}${side ? `?side=${side}` : ""}`;

async function call(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer; is regionqa serve still running?", 0);
  }
  if (reply.ok) return reply;
  let message = `the server answered ${reply.status}`;
  try {
    message = (await reply.json()).error ?? message;
  } catch {
    // no JSON: the status says it
  }
  throw new ApiError(message, reply.status, Number(reply.headers.get("retry-after")) || 0);
}

const json = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

export const getStatus = async () => (await call("/v1/status")).json();
export const getImages = async () => (await call("/v1/images")).json();
export const getImage = async (name) => (await call(`/v1/images/${encoded(name)}`)).json();
export const removeImage = async (name) =>
  call(`/v1/images/${encoded(name)}`, { method: "DELETE" });
export const switchModel = async (name) => (await call("/v1/model", json({ name }))).json();
export const writeBoxes = async (body) => call("/v1/boxes", json(body));
export const readBoxes = async (body) => (await call("/v1/boxes/read", json(body))).json();
export const segmentPoints = async (body) => (await call("/v1/segment", json(body))).json();
export const detectObjects = async (body) => (await call("/v1/detect", json(body))).json();
export const drawAnswers = async (body) => call("/v1/drawing", json(body));

export const uploadImage = async (file) =>
  (
    await call(`/v1/images?name=${encodeURIComponent(file.name)}`, {
      method: "POST",
      headers: { "content-type": "application/octet-stream" },
      body: file,
    })
  ).json();

/** Returns a function that takes text as it comes and calls `emit(kind, document)` per event. */
export function eventParser(emit) {
  let rest = "";
  return (text) => {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let kind = "message";
      let data = "";
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) kind = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) emit(kind, JSON.parse(data));
    }
  };
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });

/**
 * Ask, and call `emit(kind, document)` for every event up to the last. While the server is full,
 * wait as long as it says, and tell so by the event "wait".
 */
export async function ask(body, emit, signal) {
  let reply;
  for (let tries = 0; !reply; tries += 1) {
    try {
      reply = await call("/v1/answers", { ...json({ ...body, stream: true }), signal });
    } catch (error) {
      const busy = error.status === 429 || (error.status === 409 && error.retryAfter);
      if (!busy || tries >= 20) throw error;
      emit("wait", { seconds: error.retryAfter });
      await pause(Math.min(error.retryAfter || 1, 30), signal);
    }
  }
  let ended = false;
  const parse = eventParser((kind, document) => {
    if (kind === "error") throw new ApiError(document.error, document.status);
    if (kind === "done") ended = true;
    emit(kind, document);
  });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    parse(value);
  }
  if (!ended) throw new ApiError("The answer broke off; is regionqa serve still running?", 0);
}
