// The later prompts of a new video: each with the second from which on it counts.

import { complain } from "./complaints.js";
import { typedNumber } from "./words.js";

export class Scenes {
  #rows = [];
  #named = 0;

  /** `list` holds the rows, `add` is the button that adds one. */
  constructor(list, add) {
    this.list = list;
    add.addEventListener("click", () => {
      const last = Number(typedNumber(this.#rows.at(-1)?.at.value ?? "")) || 0;
      const row = this.#append(last + 10, "");
      row.text.focus();
    });
    this.add = add;
  }

  /** Takes over the prompts of a timeline, but for its first. */
  fill(prompts) {
    this.list.replaceChildren();
    this.#rows = [];
    for (const { at, text } of prompts.slice(1)) this.#append(at, text);
  }

  /** The rows in the order of their seconds, as the API takes them; `places` of their fields by the API's names. */
  read() {
    const second = (row) => typedNumber(row.at.value);
    const order = [...this.#rows].sort((a, b) => Number(second(a)) - Number(second(b)) || 0);
    const places = {};
    order.forEach((row, index) => {
      places[`prompts[${index + 1}].at`] = row.at.id;
      places[`prompts[${index + 1}].text`] = row.text.id;
    });
    return { prompts: order.map((row) => ({ at: second(row), text: row.text.value.trim() })), places };
  }

  clearComplaints() {
    for (const row of this.#rows) for (const field of [row.at, row.text]) complain(field.id, "");
  }

  #append(at, text) {
    const name = `scene-${(this.#named += 1)}`;
    const item = document.createElement("li");
    const row = { item, at: this.#field(`${name}-at`, at), text: this.#field(`${name}-text`, text) };
    row.at.inputMode = "decimal";
    row.at.size = 5;
    row.text.placeholder = "What changes then";
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "icon small";
    remove.textContent = "×";
    remove.addEventListener("click", () => this.#remove(row));
    row.remove = remove;
    const unit = (words) => Object.assign(document.createElement("span"), { textContent: words });
    item.append(unit("from"), row.at, unit("s"), row.text, remove, this.#error(row.at), this.#error(row.text));
    this.list.append(item);
    this.#rows.push(row);
    this.#number();
    return row;
  }

  #remove(row) {
    const place = this.#rows.indexOf(row);
    row.item.remove();
    this.#rows.splice(place, 1);
    this.#number();
    (this.#rows[Math.min(place, this.#rows.length - 1)]?.text ?? this.add).focus();
  }

  #number() {
    this.#rows.forEach((row, index) => {
      row.at.setAttribute("aria-label", `Second from which prompt ${index + 2} counts`);
      row.text.setAttribute("aria-label", `Prompt ${index + 2}`);
      row.remove.setAttribute("aria-label", `Remove prompt ${index + 2}`);
    });
    this.list.hidden = !this.#rows.length;
  }

  #field(id, value) {
    const field = document.createElement("input");
    Object.assign(field, { type: "text", id, value, autocomplete: "off" });
    field.setAttribute("aria-describedby", `${id}-error`);
    field.addEventListener("input", () => complain(id, ""));
    return field;
  }

  #error(field) {
    return Object.assign(document.createElement("p"), { className: "error", id: `${field.id}-error`, hidden: true });
  }
}
