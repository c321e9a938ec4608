// The prompts of the video on the screen: as marks on the film strip, and as a list in which one can jump to them.

import { clock, isFinished } from "./words.js";

export class Timeline {
  #shown = "";
  #prompts = [];

  /** `parts`: list, marks. `jump(second)` is called for the prompt that the visitor presses. */
  constructor(parts, { jump }) {
    this.parts = parts;
    this.jump = jump;
  }

  /** Shows a video's prompts; called again with each change of it. */
  show(video) {
    const prompts = video?.prompts ?? [];
    const pending = video?.pending_prompts ?? [];
    const ended = Boolean(video && isFinished(video));
    const state = JSON.stringify([video?.id, prompts, pending, ended]);
    if (state === this.#shown) return;
    this.#shown = state;
    this.#prompts = prompts;
    // What somebody is at stays where it is: only what has changed is made anew.
    const focused = [...this.parts.list.children].findIndex((item) => item.contains(document.activeElement));
    this.parts.list.replaceChildren(
      ...prompts.map((prompt) => this.#settled(prompt)),
      ...pending.map((prompt) => this.#pending(prompt, ended)),
    );
    this.parts.marks.replaceChildren(...prompts.slice(1).map(() => document.createElement("i")));
    if (focused >= 0) this.parts.list.children[focused]?.querySelector("button")?.focus();
  }

  /** The playhead is at this second; the strip ends at second `extent`. */
  moved(at, extent) {
    const now = this.#prompts.findLastIndex((prompt) => prompt.at <= at + 0.001);
    [...this.parts.list.children].forEach((item, index) => {
      if (index === now) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    });
    [...this.parts.marks.children].forEach((mark, index) => {
      const place = extent ? this.#prompts[index + 1].at / extent : 0;
      mark.hidden = place > 1;
      mark.style.left = `${100 * place}%`;
    });
  }

  #settled({ at, text }) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.append(span("second", clock(at)), span("text", text));
    button.addEventListener("click", () => this.jump(at));
    item.append(button);
    return item;
  }

  #pending({ at, text }, ended) {
    const item = document.createElement("li");
    item.className = "pending";
    const when = ended ? "came too late" : at === null ? "from the next chunk" : `from ${clock(at)}`;
    item.append(span("second", at === null ? "soon" : clock(at)), span("text", text), span("when", when));
    return item;
  }
}

function span(name, text) {
  return Object.assign(document.createElement("span"), { className: name, textContent: text });
}
