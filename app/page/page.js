// Puts the page together: what is on the screen follows the address (#video_...), everything else follows that.

import { ApiError, connection, contentUrl, deleteVideo, models } from "./api.js";
import { Composer } from "./composer.js";
import { Director } from "./director.js";
import { Gate } from "./gate.js";
import { Player } from "./player.js";
import { Sequel } from "./sequel.js";
import { session } from "./session.js";
import { Shelf } from "./shelf.js";
import { Timeline } from "./timeline.js";
import { watch } from "./watch.js";
import { clock, describe, duration, isFinished, left, wholeLength } from "./words.js";

const MODELS_RETRY_MS = 3000;

const $ = (id) => document.getElementById(id);

let shown = null; // the video on the screen, as the API last told it
let stopWatching = () => {};
let announced = {}; // the turning point that was spoken last
let modelsTimer = 0;

const player = new Player(
  {
    video: $("video"),
    stage: $("stage"),
    screen: $("screen"),
    glow: $("glow"),
    note: $("stage-note"),
    noteText: $("stage-note-text"),
    bigPlay: $("big-play"),
    deck: $("deck"),
    play: $("play"),
    strip: $("strip"),
    cells: $("cells"),
    seek: $("seek"),
    timecode: $("timecode"),
    fullscreen: $("fullscreen"),
  },
  { moved: (at, extent) => timeline.moved(at, extent) },
);

const timeline = new Timeline({ list: $("prompts"), marks: $("marks") }, { jump: (second) => player.seek(second) });

const director = new Director(
  {
    form: $("steer"),
    pause: $("pause"),
    resume: $("resume"),
    finish: $("finish"),
    cancel: $("cancel"),
    extend: $("extend"),
    remix: $("remix"),
    again: $("again"),
  },
  {
    changed: render,
    answered: (video) => shown?.id === video.id && take({ ...shown, ...video }),
    failed: tell,
    vanished: () => $("headline").focus(),
  },
);

const composer = new Composer($("composer"), show);
const sequel = new Sequel($("sequel"), show);
const shelf = new Shelf(
  { list: $("shelf"), more: $("more"), nothing: $("nothing") },
  { open: () => $("stage").scrollIntoView({ block: "nearest" }), remove: confirmDelete },
);

const idInAddress = () => (location.hash.startsWith("#video_") ? location.hash.slice(1) : "");

/** Brings a video that was just made to the screen. */
function show(video) {
  shelf.put(video);
  location.hash = video.id;
  $("stage").scrollIntoView({ block: "nearest" });
}

function open(id) {
  if (shown?.id === id) return;
  stopWatching();
  player.clear();
  shown = null;
  announced = {};
  if (!connection.away) tell("");
  shelf.mark(id);
  render();
  if (id) stopWatching = watch(id, { changed: take, gone });
}

function take(video) {
  shown = video;
  render();
  player.show(video);
  shelf.put(video);
}

function gone(video) {
  shelf.drop(idInAddress());
  close();
  const expired = video?.expires_at && Date.now() / 1000 >= video.expires_at;
  tell(expired ? "The time that videos are kept was up: this one was removed." : "That video does not exist any more.");
}

function close() {
  history.replaceState(null, "", location.pathname);
  open("");
}

function render() {
  const video = shown;
  director.show(video);
  timeline.show(video);
  $("deck").hidden = !video;
  $("invitation").hidden = Boolean(video);
  $("title-card").textContent = $("shown-title").textContent = video?.prompt ?? "";
  $("stage").dataset.state = !video ? "empty" : !isFinished(video) ? "running" : video.chunks_ready > 0 ? "finished" : "over";
  document.title = video ? `${video.prompt} - longtake` : "longtake";
  if (!video) return;

  const words = describe(video, { wish: director.wish });
  $("headline").textContent = words.headline;
  $("detail").textContent = words.detail;
  $("deck").dataset.status = video.status;
  $("facts").replaceChildren(...facts(video));

  const download = $("download");
  download.hidden = !isFinished(video) || !video.chunks_ready;
  download.textContent = video.status === "completed" ? "Download" : `Download ${duration(video.seconds_ready)}`;
  download.href = contentUrl(video);
  announce(video, words);
}

/** What a video is, beside how far it is. */
function facts(video) {
  const whole = wholeLength(video);
  const all = [
    whole === null ? "endless" : duration(whole),
    video.size.replace("x", " × "),
    `seed ${video.seed}`,
    video.chunks_total && !isFinished(video) ? `chunk ${video.chunks_ready} of ${video.chunks_total}` : "",
    video.input_reference ? `begins with ${video.input_reference.kind === "image" ? "an image" : "a clip"}` : "",
    video.extended_from_video_id ? source("continues another video", video.extended_from_video_id) : "",
    video.remixed_from_video_id ? source("remix of another video", video.remixed_from_video_id) : "",
    video.expires_at ? `kept ${left(video.expires_at)}` : "",
  ];
  return all.filter(Boolean).map((fact) => {
    const item = document.createElement("li");
    item.append(fact);
    return item;
  });
}

function source(text, id) {
  return Object.assign(document.createElement("a"), { textContent: text, href: `#${id}` });
}

/** Speaks the turning points to screen readers, not every chunk. */
function announce(video, { headline, detail }) {
  const whole = wholeLength(video);
  const quarter = whole === null ? 0 : Math.floor((4 * video.seconds_ready) / whole);
  const prompts = video.prompts.map(({ at, text }) => `${text}, from ${clock(at)}`);
  const point = [video.status, video.queue_position, Boolean(video.chunks_ready), quarter, director.wish, ...prompts].join();
  if (point === announced.point) return;
  const steered = announced.prompts && prompts.filter((prompt) => !announced.prompts.includes(prompt));
  announced = { point, prompts };
  const news = steered?.length ? `New prompt: ${steered.join("; ")}` : "";
  $("announcer").textContent = [news, headline, detail].filter(Boolean).join(". ");
}

function tell(message, away = false) {
  const banner = $("banner");
  banner.textContent = message;
  banner.hidden = !message;
  banner.dataset.away = away;
}

$("again").addEventListener("click", () => composer.fill(shown));
$("extend").addEventListener("click", () => sequel.extend(shown));
$("remix").addEventListener("click", () => sequel.remix(shown));

function confirmDelete(video) {
  const dialog = $("confirm");
  $("confirm-text").textContent = video.prompt;
  dialog.returnValue = "keep";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "delete") return;
    try {
      await deleteVideo(video.id);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) {
        tell(error.message);
        return;
      }
    }
    shelf.drop(video.id);
    if (shown?.id === video.id) location.hash = "";
    $("recent-title").focus();
  };
  dialog.showModal();
}

async function loadModels() {
  clearTimeout(modelsTimer);
  let available = [];
  try {
    available = await models();
  } catch {
    // The banner tells, or the gate asks; asked again below.
  }
  if (session.locked) return;
  composer.offer(available);
  const model = composer.model;
  $("about").textContent = model ? `${model.id} · ${model.fps} fps` : "No worker is ready yet";
  if (!available.length) modelsTimer = setTimeout(loadModels, MODELS_RETRY_MS);
}

connection.addEventListener("away", (event) => tell(event.detail, true));
connection.addEventListener("back", () => {
  tell("");
  shelf.refresh();
});
session.addEventListener("locked", () => {
  // What is on the page belongs to the key that is gone. The address stays: it opens again with the next key.
  stopWatching();
  player.clear();
  shown = null;
  shelf.clear();
  render();
  $("about").textContent = "";
});
session.addEventListener("unlocked", start);
addEventListener("hashchange", () => open(idInAddress()));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("prompt").focus();
});

function start() {
  loadModels();
  shelf.refresh();
  open(idInAddress());
}

new Gate({ dialog: $("gate"), button: $("session") });
start();
