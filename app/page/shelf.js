// The list of recent videos.

import { listVideos, thumbnailUrl } from "./api.js";
import { ago, isFinished, summary, wholeLength } from "./words.js";

const PAGE = 12;
const MOST = 100; // that one page of the list can hold
const POLL_MS = 4000;

export class Shelf {
  #videos = []; // by id, which is by time, the newest first
  // The part of the list that is here without a gap; of others only the one on the screen, and what was just made.
  #first = "";
  #last = ""; // "": all there are
  #reached = ""; // how far `#renew` has come
  #current = "";
  #timer = 0;
  #turn = 0; // counts what is put and dropped
  #changed = new Map(); // id of a video to the turn at which it was put or dropped; another map once all is cleared

  /** `parts`: list, more, nothing. `open(video)` and `remove(video)` are called for what the visitor presses. */
  constructor(parts, { open, remove }) {
    this.parts = parts;
    this.open = open;
    this.remove = remove;
    parts.more.addEventListener("click", () => this.#ask(this.#last, PAGE));
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
  }

  /** Marks the video that is on the screen. */
  mark(id) {
    this.#current = id;
    this.#render();
  }

  /** Takes over what is newly known of a video; one that is not here yet finds its place. */
  put(video) {
    this.#changed.set(video.id, (this.#turn += 1));
    const place = this.#videos.findIndex((other) => other.id === video.id);
    if (place < 0) this.#videos = [...this.#videos, video].sort(newestFirst);
    else this.#videos[place] = { ...this.#videos[place], ...video };
    this.#render();
    this.#schedule();
  }

  /** Forgets everything: somebody else may look next. */
  clear() {
    this.#cancel();
    this.#changed = new Map();
    this.#videos = [];
    this.#first = this.#last = this.#reached = "";
    this.#render();
  }

  drop(id) {
    this.#changed.set(id, (this.#turn += 1));
    this.#videos = this.#videos.filter((video) => video.id !== id);
    this.#render();
  }

  /** Asks for what is shown again, beginning with the newest. */
  refresh() {
    this.#reached = "";
    return this.#renew();
  }

  /** Asks for a part of it at a time: one request, however long the list is. */
  async #renew() {
    this.#cancel();
    const after = this.#reached;
    const shown = this.#videos.filter(({ id }) => id >= this.#last && (!after || id < after)).length;
    const end = await this.#ask(after, Math.min(MOST, Math.max(after ? 1 : PAGE, shown)));
    this.#reached = end > this.#last ? end : "";
    this.#schedule();
  }

  /**
   * Asks for the part of the list that follows `after`, and takes it over. What changed here while the answer was on its
   * way is newer. Returns the last id of that part, "" if nothing follows it.
   */
  async #ask(after, limit) {
    const turn = this.#turn;
    const changes = this.#changed;
    let page;
    try {
      page = await listVideos(after, limit);
    } catch {
      return ""; // the banner tells
    }
    if (changes !== this.#changed) return ""; // all was cleared meanwhile
    if (after && after < this.#last) return ""; // what this follows is not here any more
    const end = page.has_more ? page.last_id : "";
    if (!after) {
      // So much is new that what was loaded before does not follow on this: between them others are missing.
      if (end > this.#first) this.#last = end;
      this.#first = page.first_id ?? "";
    }
    if (end < this.#last) this.#last = end;
    const changed = ({ id }) => changes.get(id) > turn;
    const told = ({ id }) => id < this.#last || ((!after || id < after) && id >= end);
    const kept = this.#videos.filter((video) => changed(video) || video.id === this.#current || !told(video));
    const videos = new Map(kept.map((video) => [video.id, video]));
    for (const video of page.data) if (!changed(video)) videos.set(video.id, video);
    this.#videos = [...videos.values()].sort(newestFirst);
    this.#render();
    return end;
  }

  #cancel() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  /** Asks again while something here is still being made. */
  #schedule() {
    const changing = (video) => !isFinished(video) && video.status !== "paused" && video.id !== this.#current;
    const others = this.#videos.some(changing);
    if (!others || document.hidden) this.#cancel();
    else this.#timer ||= setTimeout(() => this.#renew(), POLL_MS);
  }

  #render() {
    const { list, more, nothing } = this.parts;
    const cards = new Map([...list.children].map((card) => [card.dataset.id, card]));
    const wanted = this.#videos.map((video) => {
      const card = cards.get(video.id) ?? this.#card(video);
      this.#fill(card, video);
      return card;
    });
    for (const card of cards.values()) if (!wanted.includes(card)) card.remove();
    // Moves only what is out of place, so that focus and scroll position stay.
    wanted.forEach((card, place) => list.children[place] !== card && list.insertBefore(card, list.children[place] ?? null));
    more.hidden = !this.#last;
    nothing.hidden = this.#videos.length > 0;
  }

  #card(video) {
    const card = document.createElement("li");
    card.className = "card";
    card.dataset.id = video.id;
    card.style.setProperty("--hue", hue(video.id));

    const link = document.createElement("a");
    link.href = `#${video.id}`;
    const picture = document.createElement("span");
    picture.className = "picture";
    const title = document.createElement("span");
    title.className = "title";
    title.textContent = video.prompt;
    const facts = document.createElement("span");
    facts.className = "facts";
    link.append(picture, title, facts);
    link.addEventListener("click", () => this.open(video));

    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "remove";
    remove.setAttribute("aria-label", `Delete: ${video.prompt}`);
    remove.title = "Delete";
    remove.textContent = "×";
    remove.addEventListener("click", () => this.remove(video));

    card.append(link, remove);
    return card;
  }

  #fill(card, video) {
    card.dataset.status = video.status;
    const whole = wholeLength(video);
    card.style.setProperty("--made", whole === null ? 1 : Math.min(1, video.seconds_ready / whole));
    card.querySelector(".facts").textContent = `${summary(video)} · ${ago(video.created_at)}`;
    const link = card.querySelector("a");
    if (video.id === this.#current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    const picture = card.querySelector(".picture");
    // Only a finished video has a thumbnail.
    if (video.status === "completed" && !picture.firstChild) {
      const image = new Image();
      image.alt = "";
      image.loading = "lazy";
      image.decoding = "async";
      image.addEventListener("error", () => image.remove(), { once: true });
      image.src = thumbnailUrl(video);
      picture.append(image);
    }
  }
}

const newestFirst = (one, other) => (one.id < other.id ? 1 : -1);

/** A colour of its own for each video that has no picture yet. */
function hue(id) {
  let sum = 0;
  for (const character of id) sum = (sum * 31 + character.charCodeAt(0)) % 360;
  return sum;
}
