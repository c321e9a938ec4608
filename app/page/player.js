// The screen: plays a video while it is still being made, and the film strip that shows what is made and what was seen.

import { connection, contentUrl, getVideo, playlistUrl } from "./api.js";
import Hls from "./vendor/hls.js";
import { clock, duration, isFinished, wholeLength } from "./words.js";

const CELLS = matchMedia("(max-width: 640px)").matches ? 12 : 24; // pictures on the strip
// After running dry, wait for so much before going on; twice as much each time, so that a video which is made slower than it
// plays pauses seldom rather than stutters.
const FIRST_RESUME_SECONDS = 1.5;
const LONGEST_RESUME_SECONDS = 12;
const RETRY_MS = 2000;
const GLOW_MS = 90;
const STILL_GLOW_MS = 3000; // for those who asked for less motion
const ENDLESS_EXTENT_SECONDS = 30; // of the strip at first; twice as much whenever that is nearly full
const NARROWEST_CHUNK = 5; // pixels, to be drawn as one of many on the strip

const WAITS_FOR = { paused: "Paused here. Resume it to go on", queued: "Waiting for its turn" };

export class Player {
  #video = null; // the API's object
  #hls = null;
  #loaded = false;
  #dry = false; // paused by us, because playback caught up with the making
  #enough = FIRST_RESUME_SECONDS; // made ahead, to go on after that
  #lastGlow = 0;
  #recoveries = 0;
  #extent = 0; // second at the end of the strip

  /** `parts`: the elements of the page this player works, by name. `moved(at, extent)` is told of the playhead. */
  constructor(parts, { moved }) {
    this.parts = parts;
    this.moved = moved;
    this.media = parts.video;
    this.stillness = matchMedia("(prefers-reduced-motion: reduce)");
    for (let cell = 0; cell < CELLS; cell += 1) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 0;
      parts.cells.append(canvas);
    }
    this.#listen();
    this.#everyFrame();
  }

  /** Shows a video; called again with each change of it. */
  show(video) {
    if (this.#video?.id !== video.id) this.clear();
    this.#video = video;
    const [width, height] = video.size.split("x").map(Number);
    this.parts.screen.style.setProperty("--ratio", `${width} / ${height}`);
    this.#stretch();
    if (!this.#loaded && video.chunks_ready > 0) this.#load();
    if (this.#dry) this.#resumeWhenFed();
    this.#render();
  }

  /** Back to an empty screen. */
  clear() {
    this.#remember();
    this.#hls?.destroy();
    this.#hls = null;
    this.#loaded = this.#dry = false;
    this.#recoveries = this.#lastGlow = 0;
    this.#enough = FIRST_RESUME_SECONDS;
    this.#video = null;
    this.#extent = 0;
    this.media.removeAttribute("src");
    this.media.load();
    for (const canvas of this.parts.cells.children) canvas.width = canvas.height = 0;
    const glow = this.parts.glow.getContext("2d");
    glow.clearRect(0, 0, this.parts.glow.width, this.parts.glow.height);
    this.parts.seek.value = 0;
    this.#render();
  }

  toggle() {
    if (!this.#loaded) return;
    if (this.#dry) this.#dry = false;
    else if (this.media.paused) this.#play();
    else this.media.pause();
    this.#render();
  }

  /** Goes to a second of the video, or as near as there is something. */
  seek(second) {
    if (!this.#loaded) return;
    this.#dry = false;
    this.media.currentTime = Math.min(second, Math.max(0, this.made - 0.05));
    this.#render();
  }

  /** Seconds that can be played. */
  get made() {
    return this.#video ? Math.min(this.#video.seconds_ready, wholeLength(this.#video) ?? Infinity) : 0;
  }

  /** Gives the strip the length of the video. One without an end gets ever more room; its pictures move together. */
  #stretch() {
    let extent = wholeLength(this.#video);
    if (extent === null) {
      extent = ENDLESS_EXTENT_SECONDS;
      while (this.made > 0.85 * extent) extent *= 2;
    }
    if (extent === this.#extent) return;
    const cells = [...this.parts.cells.children];
    if (this.#extent) {
      const pictures = cells.map((cell) => (cell.width ? copyOf(cell) : null));
      cells.forEach((cell, index) => {
        const picture = pictures[Math.floor(((index + 0.5) * extent) / this.#extent)];
        cell.width = picture?.width ?? 0;
        cell.height = picture?.height ?? 0;
        if (picture) cell.getContext("2d").drawImage(picture, 0, 0);
      });
    }
    this.#extent = extent;
    this.parts.seek.max = extent;
  }

  #load(start = this.#remembered()) {
    const video = this.#video;
    this.#loaded = true;
    // Asked before native HLS: browsers that have both play a growing playlist better this way. A finished video goes
    // the same way, so that nothing changes at the moment it is finished.
    if (Hls.isSupported()) {
      this.#hls = new Hls({
        startPosition: start,
        enableWorker: false, // the segments are fragmented MP4 already: there is nothing to transmux
        maxLiveSyncPlaybackRate: 1,
        backBufferLength: 120,
      });
      this.#hls.on(Hls.Events.ERROR, (_, error) => error.fatal && this.#recover(error));
      this.#hls.loadSource(playlistUrl(video));
      this.#hls.attachMedia(this.media);
    } else {
      this.media.src = video.status === "completed" ? contentUrl(video) : playlistUrl(video);
      if (start) this.media.currentTime = start;
    }
    this.#play();
  }

  #recover(error) {
    const hls = this.#hls;
    if (error.response?.code === 401) {
      this.#reopen();
      return;
    }
    this.#recoveries += 1;
    if (error.type === Hls.ErrorTypes.MEDIA_ERROR && this.#recoveries <= 3) {
      hls.recoverMediaError();
      return;
    }
    // The network or the service is away; what is loaded keeps playing meanwhile.
    setTimeout(() => {
      if (this.#hls !== hls) return;
      if (hls.levels.length) hls.startLoad();
      else hls.loadSource(playlistUrl(this.#video));
    }, RETRY_MS);
  }

  /** The address has expired: the service gives out another, and playback goes on where it was. */
  async #reopen() {
    const [hls, at, { id }] = [this.#hls, this.media.currentTime, this.#video];
    const still = () => this.#hls === hls && this.#video?.id === id;
    let fresh;
    try {
      fresh = await getVideo(id);
    } catch {
      setTimeout(() => still() && this.#reopen(), RETRY_MS); // the page tells what is wrong
      return;
    }
    if (!still()) return;
    hls?.destroy();
    this.#video = fresh;
    this.#load(at);
  }

  #play() {
    // A browser may refuse to start by itself; then the big button is there to press.
    this.media.play().catch(() => this.#render());
  }

  #ahead() {
    const { buffered, currentTime } = this.media;
    for (let range = 0; range < buffered.length; range += 1) {
      if (buffered.start(range) <= currentTime + 0.1 && buffered.end(range) > currentTime) return buffered.end(range) - currentTime;
    }
    return 0;
  }

  #ranDry() {
    const { media } = this;
    // Before the first picture there is nothing to run out of, and far behind the edge it is the network that is slow.
    if (!this.#video || isFinished(this.#video) || media.readyState < 2 || media.currentTime < this.made - 1) return;
    this.#dry = true;
    this.media.pause();
    this.#render();
  }

  #resumeWhenFed() {
    const rest = (wholeLength(this.#video) ?? Infinity) - this.media.currentTime - 0.1;
    if (!isFinished(this.#video) && this.#ahead() < Math.min(this.#enough, rest)) return;
    this.#dry = false;
    this.#enough = Math.min(2 * this.#enough, LONGEST_RESUME_SECONDS);
    this.#play();
    this.#render();
  }

  #listen() {
    const { media, parts } = this;
    media.addEventListener("waiting", () => this.#ranDry());
    media.addEventListener("progress", () => this.#dry && this.#resumeWhenFed());
    for (const type of ["play", "playing", "pause", "ended", "timeupdate", "seeked", "loadeddata"]) {
      media.addEventListener(type, () => this.#render());
    }
    media.addEventListener("click", () => this.toggle());
    parts.play.addEventListener("click", () => this.toggle());
    parts.bigPlay.addEventListener("click", () => this.toggle());
    parts.seek.addEventListener("input", () => this.seek(Number(parts.seek.value)));
    // Without hls.js the browser itself tells, and only that something is wrong.
    media.addEventListener("error", () => !this.#hls && this.#loaded && setTimeout(() => this.#loaded && this.#reopen(), RETRY_MS));
    parts.fullscreen.addEventListener("click", () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else if (parts.stage.requestFullscreen) parts.stage.requestFullscreen();
      else media.webkitEnterFullscreen?.();
    });
    connection.addEventListener("back", () => this.#hls?.startLoad());
    addEventListener("pagehide", () => this.#remember());
  }

  #everyFrame() {
    const paint = () => {
      this.#paint();
      if (this.media.requestVideoFrameCallback) this.media.requestVideoFrameCallback(paint);
      else setTimeout(paint, GLOW_MS);
    };
    paint();
  }

  /** Copies the picture to the strip and, softly, to the light around the screen. */
  #paint() {
    const { media, parts } = this;
    if (!this.#video || media.readyState < 2 || !media.videoWidth) return;
    const cell = parts.cells.children[Math.min(CELLS - 1, Math.floor((media.currentTime / this.#extent) * CELLS))];
    if (cell && !cell.width) {
      const scale = Math.min(1, 96 / media.videoHeight);
      cell.width = Math.round(media.videoWidth * scale);
      cell.height = Math.round(media.videoHeight * scale);
      cell.getContext("2d").drawImage(media, 0, 0, cell.width, cell.height);
    }
    const now = performance.now();
    if (now - this.#lastGlow < (this.stillness.matches ? STILL_GLOW_MS : GLOW_MS)) return;
    const context = parts.glow.getContext("2d");
    context.globalAlpha = this.#lastGlow ? 0.25 : 1;
    this.#lastGlow = now;
    context.filter = "blur(2px) saturate(1.3)"; // blurred while tiny, where it costs nothing
    context.drawImage(media, -2, -2, parts.glow.width + 4, parts.glow.height + 4);
  }

  #render() {
    const { media, parts } = this;
    const video = this.#video;
    const whole = video ? wholeLength(video) : 0;
    const extent = this.#extent;
    const at = video ? Math.min(media.currentTime || 0, whole ?? Infinity) : 0;
    const begun = this.#loaded && (at > 0 || media.readyState >= 2);
    const running = this.#loaded && (!media.paused || this.#dry);

    parts.stage.dataset.playing = running && !this.#dry;
    parts.deck.dataset.playing = running;
    parts.play.disabled = parts.seek.disabled = parts.fullscreen.disabled = !this.#loaded;
    parts.play.setAttribute("aria-label", running ? "Pause" : media.ended ? "Play again" : "Play");
    parts.bigPlay.hidden = !this.#loaded || running;
    parts.bigPlay.setAttribute("aria-label", media.ended ? "Play again" : "Play");
    parts.screen.dataset.begun = Boolean(begun);

    const { style } = parts.strip;
    style.setProperty("--made", extent ? this.made / extent : 0);
    style.setProperty("--played", extent ? Math.min(1, at / extent) : 0);
    const chunk = video?.chunks_ready ? video.seconds_ready / video.chunks_ready / extent : 0;
    const drawn = chunk * parts.strip.clientWidth >= NARROWEST_CHUNK;
    style.setProperty("--chunk", drawn ? `${100 * chunk}%` : "100%");
    parts.strip.dataset.endless = whole === null;
    if (document.activeElement !== parts.seek || !media.seeking) parts.seek.value = at;
    const of = whole === null ? "an endless video" : duration(whole);
    parts.seek.setAttribute("aria-valuetext", `${duration(at)} of ${of}, ${duration(this.made)} made`);
    parts.timecode.textContent = `${clock(at)} / ${whole === null ? "∞" : clock(whole)}`;
    this.moved(at, extent);

    const note = video && !isFinished(video) && this.#dry ? (WAITS_FOR[video.status] ?? "Waiting for the next moment") : "";
    parts.note.hidden = !note;
    parts.noteText.textContent = note;
  }

  #remember() {
    if (!this.#video || !this.#loaded) return;
    const at = this.media.ended ? 0 : this.media.currentTime;
    sessionStorage.setItem("longtake.position", JSON.stringify({ id: this.#video.id, at }));
  }

  #remembered() {
    const position = JSON.parse(sessionStorage.getItem("longtake.position") ?? "{}");
    return position.id === this.#video.id ? position.at : 0;
  }
}

function copyOf(canvas) {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}
