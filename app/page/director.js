// What can be asked of the video on the screen: steer it, rest, go on, finish, stop, and make another of it.

import { ApiError, control, steerVideo } from "./api.js";
import { busy, complain, complainOf } from "./complaints.js";
import { isFinished, typedNumber, wholeLength } from "./words.js";

const PLACES = { text: "steer-text", at: "steer-at" };

// Which wish has come true in a video.
const FULFILLED = {
  cancel: isFinished,
  finish: isFinished,
  pause: (video) => video.status !== "in_progress",
  resume: (video) => video.status !== "paused" && !video.pause_requested,
};

export class Director {
  #video = null;

  /** What was asked of the video and has not happened yet: cancel, finish, pause, resume, or "". */
  wish = "";

  /**
   * `parts`: form (of steering), and a button for each of pause, resume, finish, cancel, extend, remix, again.
   * `changed()` is called when the words on the page may have, `answered(video)` with what the service answers,
   * `failed(message)` when a wish is refused, `vanished()` before a control goes away that has the focus.
   */
  constructor(parts, { changed, answered, failed, vanished }) {
    Object.assign(this, { parts, changed, answered, failed, vanished });
    for (const what of Object.keys(FULFILLED)) parts[what].addEventListener("click", () => this.#ask(what));
    parts.form.addEventListener("input", (event) => complain(event.target.id, ""));
    parts.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#steer();
    });
  }

  /** Offers what this video takes; called again with each change of it. Null: there is none. */
  show(video) {
    if (video?.id !== this.#video?.id) {
      this.wish = "";
      this.parts.form.reset();
      for (const place of [...Object.values(PLACES), "steer"]) complain(place, "");
    }
    this.#video = video;
    if (!video) return;
    if (this.wish && FULFILLED[this.wish](video)) this.wish = "";

    const over = isFinished(video);
    const begun = video.chunks_ready > 0;
    const resting = video.status === "paused" || video.pause_requested;
    const stopping = this.wish === "cancel" || this.wish === "finish";
    const whole = wholeLength(video);
    const ending = whole !== null && video.seconds_ready >= whole;
    this.#offer("pause", !over && !resting && !stopping && !ending);
    this.#offer("resume", !over && resting && this.wish !== "cancel");
    this.#offer("finish", !over && !stopping && !ending && (begun || video.status === "in_progress"));
    this.#offer("cancel", !over && this.wish !== "cancel");
    this.#offer("extend", over && begun && video.status !== "failed");
    this.#offer("remix", over);
    this.#offer("again", over);
    this.#offer("form", !over && !stopping && !ending);
  }

  #offer(name, offered) {
    const part = this.parts[name];
    if (!offered && part.contains(document.activeElement)) this.vanished();
    part.hidden = !offered;
  }

  async #ask(what) {
    const { id } = this.#video;
    this.wish = what;
    this.changed();
    try {
      this.answered(await control(id, what));
    } catch (error) {
      if (this.#video?.id === id) this.wish = "";
      if (error instanceof ApiError) this.failed(error.message);
      this.changed();
    }
  }

  #steer() {
    const { form } = this.parts;
    const { text, at } = form.elements;
    for (const place of [...Object.values(PLACES), "steer"]) complain(place, "");
    const fields = { text: text.value.trim() };
    if (at.value.trim()) fields.at = typedNumber(at.value);
    return busy(form.querySelector("button"), async () => {
      try {
        this.answered(await steerVideo(this.#video.id, fields));
        form.reset();
        text.focus();
      } catch (error) {
        complainOf(error, PLACES, "steer");
      }
    });
  }
}
