// Regions as a list, questions and answers.

import { ask } from "./api.js";
import {
  COLOURS, aboutText, asSent, historyOf, mention, mentioned, parts, regionName, subjects, withMention,
} from "./regions.js";

const element = (tag, className = "", text = "") => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
};

/** A text in which regions are coloured numbers. */
export function withChips(target, text) {
  for (const part of parts(text)) {
    if (typeof part === "string") target.append(part);
    else target.append(element("span", `chip c${(part - 1) % COLOURS}`, `region ${part}`));
  }
  return target;
}

export class Talk {
  constructor(elements, state, { announce, alert, stage }) {
    Object.assign(this, elements);
    this.state = state;
    this.announce = announce;
    this.alert = alert;
    this.stage = stage;
    this.running = null;
    this.isFresh = false;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.question.addEventListener("input", () => this.renderAbout());
    this.caption.addEventListener("click", () => this.captionAll());
    this.stop.addEventListener("click", () => this.running?.abort());
    this.newTalk.addEventListener("click", () => {
      this.isFresh = true;
      this.renderTalk();
      this.question.focus();
    });
  }

  /** Name a region in the question, at the caret; then let the user type, if asked to. */
  name(number, thenType = false) {
    const { question } = this;
    if (thenType) question.focus({ preventScroll: true });
    const { selectionStart, selectionEnd, value } = question;
    if (value.slice(0, selectionStart).trimEnd().endsWith(mention(number))) return;
    const { text, caret } = withMention(value, selectionStart, selectionEnd, number);
    question.value = text;
    question.setSelectionRange(caret, caret);
    this.renderAbout();
    this.announce(`Region ${number} named in the question`);
  }

  // -- asking -------------------------------------------------------------------------------------

  options() {
    const given = {};
    if (this.guess.checked) given.guess = true;
    if (this.tokens.value) given.max_new_tokens = Number(this.tokens.value);
    if (this.temperature.value) given.temperature = Number(this.temperature.value);
    if (this.way.value) given.way = this.way.value;
    return given;
  }

  submit() {
    const question = this.question.value.trim();
    if (!question) return this.question.focus();
    if (this.running || this.state.current === null) return undefined;
    const { regions, turns } = this.state.now;
    const wrong = mentioned(question).find((number) => number < 1 || number > regions.length);
    if (wrong !== undefined) return this.alert(`There is no region ${wrong}; draw it first.`);
    const choices = this.choices.value.split(",").map((text) => text.trim()).filter(Boolean);
    const history = this.isFresh ? [] : historyOf(turns, regions);
    const turn = this.newTurn(question, subjects(question, regions.length), history.length === 0);
    this.isFresh = false;
    this.question.value = "";
    return this.run([turn], {
      ...this.request(turn, history),
      ...(choices.length ? { choices } : {}),
      ...this.options(),
    });
  }

  request(turn, history) {
    return {
      image: this.state.current,
      question: turn.question,
      regions: this.regionsToSend(),
      history: history.map(({ question, answer, boxes }) => ({
        question, answer, regions: boxes.length,
      })),
    };
  }

  regionsToSend() {
    return this.state.now.regions.map(asSent);
  }

  captionAll() {
    if (this.running || this.state.current === null) return undefined;
    const { regions } = this.state.now;
    const { model } = this.state.status;
    const turns = regions.length
      ? regions.map((_, i) => this.newTurn(mention(i + 1), [i + 1], false, "caption"))
      : [this.newTurn(model.image_question, [], false, "caption")];
    const body = { image: this.state.current, regions: this.regionsToSend(), caption: true };
    return this.run(turns, { ...body, ...this.options() });
  }

  /** Ask the question of a turn again, also if the model is not sure. */
  askAnyway(turn) {
    if (this.running) return undefined;
    const { turns } = this.state.now;
    const earlier = turns.slice(0, turns.indexOf(turn));
    turn.pending = true;
    turn.answer = "";
    const regions = turn.boxes.map((box) => ({ box }));
    if (turn.kind === "caption" && turn.about.length) {
      const one = { image: this.state.current, regions: [regions[turn.about[0] - 1]] };
      return this.run([turn], { ...one, caption: true, ...this.options(), guess: true });
    }
    const history = turn.fresh ? [] : historyOf(earlier, regions);
    const body = { ...this.request(turn, history), regions };
    return this.run([turn], { ...body, ...this.options(), guess: true });
  }

  newTurn(question, about, isFresh, kind = "question") {
    const boxes = this.state.now.regions.map((region) => region.box);
    const turn = { kind, question, about, boxes, answer: "", pending: true, fresh: isFresh };
    this.state.now.turns.push(turn);
    return turn;
  }

  async run(turns, body) {
    const name = this.state.current;
    this.alert("");
    this.running = new AbortController();
    this.render();
    this.log.scrollTop = this.log.scrollHeight;
    try {
      await ask(body, (kind, event) => this.received(kind, event, turns), this.running.signal);
    } catch (error) {
      const stopped = error.name === "AbortError";
      for (const turn of turns.filter((each) => each.pending)) {
        turn.error = stopped ? "stopped" : error.message;
      }
      if (!stopped) this.alert(error.message);
      if (error.status === 401) this.alert("The server was started anew; open the address that it printed.");
    }
    for (const turn of turns) delete turn.pending;
    this.running = null;
    this.state.changed();
    if (this.state.current === name) this.tell(turns);
  }

  received(kind, event, turns) {
    const turn = turns[event.request];
    if (kind === "wait") this.announce(`The server is busy; asking again in ${event.seconds} seconds`);
    else if (kind === "warning") this.announce(event.warning);
    else if (kind === "text") {
      turn.answer += event.text;
      this.renderTurn(turn);
      this.stage.render();
    } else if (kind === "answer") {
      delete turn.pending;
      turn.record = event.answer;
      turn.answer = event.answer.answer === null ? "" : String(event.answer.answer);
      turn.error = event.answer.error;
      this.state.changed();
    }
  }

  tell(turns) {
    const texts = turns.map((turn) => {
      const about = turn.about.length === 1 ? `Region ${turn.about[0]}: ` : "";
      return about + (turn.error ?? turn.answer);
    });
    this.announce(texts.join(". "));
  }

  // -- rendering ----------------------------------------------------------------------------------

  render() {
    const { running, state } = this;
    const none = state.current === null;
    this.send.disabled = none || Boolean(running);
    this.caption.disabled = none || Boolean(running);
    this.stop.hidden = !running;
    this.renderRegions();
    this.renderTalk();
    this.renderAbout();
  }

  renderAbout() {
    const count = this.state.current === null ? 0 : this.state.now.regions.length;
    const { status } = this.state;
    const limit = status?.model.max_regions ?? Infinity;
    const many = subjects(this.question.value, count).length > limit;
    this.about.textContent = many
      ? `The model takes ${limit} regions in a question; name some.`
      : aboutText(this.question.value, count);
  }

  renderRegions() {
    const { state } = this;
    const regions = state.current === null ? [] : state.now.regions;
    this.noRegions.hidden = regions.length > 0;
    while (this.regions.children.length > regions.length) this.regions.lastChild.remove();
    regions.forEach((region, index) => {
      const item = this.regions.children[index] ?? this.regions.appendChild(this.newItem(index));
      const note = state.note(region);
      const pick = item.firstChild;
      pick.setAttribute("aria-pressed", String(state.now.selected === index));
      pick.title = `${regionName(region, index + 1)}; click to name it in the question`;
      const text = note?.text ?? region.label ?? region.box.map(Math.round).join(", ");
      pick.lastChild.textContent = text;
    });
  }

  newItem(index) {
    const item = element("li");
    const pick = item.appendChild(element("button", "pick"));
    pick.type = "button";
    const chip = element("span", `chip c${index % COLOURS}`);
    chip.append(element("span", "unseen", "Region "), String(index + 1));
    pick.append(chip, " ", element("span", "text"));
    pick.addEventListener("click", () => {
      this.state.select(index);
      this.name(index + 1);
    });
    const remove = item.appendChild(element("button", "", "✕"));
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete region ${index + 1}`);
    remove.addEventListener("click", () => {
      this.state.removeRegion(index);
      this.announce(`Region ${index + 1} deleted`);
    });
    return item;
  }

  renderTalk() {
    const turns = this.state.current === null ? [] : this.state.now.turns;
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    const items = [];
    for (const turn of turns) {
      if (turn.fresh && items.length) items.push(element("li", "break", "New conversation"));
      items.push(this.turnItem(turn));
    }
    if (this.isFresh && turns.length) items.push(element("li", "break", "New conversation"));
    this.turns.replaceChildren(...items);
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  turnItem(turn) {
    const item = element("li");
    item.append(withChips(element("p", "asked"), turn.question));
    const answer = item.appendChild(element("p", "answer"));
    turn.shown = answer;
    Object.defineProperty(turn, "shown", { enumerable: false, writable: true });
    this.renderTurn(turn);
    if (!turn.pending && !turn.error && turn.answer === this.state.unsure) {
      const anyway = item.appendChild(element("button", "quiet", "Answer anyway"));
      anyway.type = "button";
      anyway.addEventListener("click", () => this.askAnyway(turn));
    }
    return item;
  }

  renderTurn(turn) {
    const { shown: answer } = turn;
    if (!answer) return;
    const isUnsure = !turn.pending && turn.answer === this.state.unsure;
    answer.className = "answer";
    answer.classList.toggle("busy", Boolean(turn.pending));
    answer.classList.toggle("failed", Boolean(turn.error));
    answer.classList.toggle("unsure", isUnsure);
    answer.replaceChildren();
    if (turn.error) answer.textContent = `No answer: ${turn.error}`;
    else if (isUnsure) answer.textContent = `? ${turn.answer}`;
    else withChips(answer, turn.answer || (turn.pending ? "Waiting" : ""));
  }
}
