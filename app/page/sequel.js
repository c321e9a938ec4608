// The dialog that makes another video of one: it goes on (extend), or is made again with another prompt (remix).

import { Attempts, extendVideo, remixVideo } from "./api.js";
import { busy, complain, complainOf } from "./complaints.js";
import { duration, typedNumber } from "./words.js";

const PLACES = { prompt: "sequel-prompt", seconds: "sequel-more" };
const MORE_SECONDS = 30;

export class Sequel {
  #video = null;
  #extends = false;
  #attempts = new Attempts();

  /** `created(video)` is called with the new video. */
  constructor(dialog, created) {
    this.dialog = dialog;
    this.created = created;
    this.form = dialog.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.form.elements.close.addEventListener("click", () => dialog.close());
    this.form.addEventListener("input", (event) => {
      complain(event.target.id, "");
      this.#tellTotal();
    });
  }

  extend(video) {
    this.#open(video, true, "Continue this video", "What happens next?");
  }

  remix(video) {
    this.#open(video, false, "Make it again, differently", "What should happen instead?");
  }

  #open(video, extending, title, question) {
    this.#video = video;
    this.#extends = extending;
    const { prompt, more } = this.form.elements;
    this.dialog.querySelector("#sequel-title").textContent = title;
    this.dialog.querySelector("#sequel-question").textContent = question;
    this.dialog.querySelector("#sequel-length").hidden = !extending;
    this.dialog.querySelector("#sequel-note").textContent = extending
      ? "A new video begins with this one and goes on. This one stays as it is."
      : "A new video with the same seed and settings. This one stays as it is.";
    prompt.value = extending ? video.prompts.at(-1).text : video.prompt;
    more.value = MORE_SECONDS;
    for (const place of [...Object.values(PLACES), "sequel"]) complain(place, "");
    this.#tellTotal();
    this.dialog.showModal();
    prompt.select();
  }

  /** Seconds of the new video, or what the visitor wrote instead of a number: the service says what is wrong with it. */
  get #total() {
    const text = typedNumber(this.form.elements.more.value);
    const total = this.#video.seconds_ready + Number(text);
    return text && Number.isFinite(total) ? Math.round(total * 1000) / 1000 : text || "nothing";
  }

  #tellTotal() {
    const total = this.#total;
    this.dialog.querySelector("#sequel-total").textContent = typeof total === "number" && total > 0 ? `seconds, ${duration(total)} in all` : "seconds";
  }

  #submit() {
    for (const place of [...Object.values(PLACES), "sequel"]) complain(place, "");
    const fields = { prompt: this.form.elements.prompt.value.trim() };
    if (this.#extends) fields.seconds = this.#total;
    const { id } = this.#video;
    const attempt = this.#attempts.of([id, this.#extends, fields]);
    return busy(this.form.elements.make, async () => {
      try {
        const video = await (this.#extends ? extendVideo : remixVideo)(id, fields, attempt);
        this.#attempts.settled();
        this.dialog.close();
        this.created(video);
      } catch (error) {
        complainOf(error, PLACES, "sequel");
      }
    });
  }
}
