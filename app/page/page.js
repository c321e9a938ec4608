// Puts the page together: what is on the screen follows the address (#video_...), everything else follows that.

import { ApiError, cancelVideo, connection, contentUrl, deleteVideo, models } from "./api.js";
import { Composer } from "./composer.js";
import { Player } from "./player.js";
import { Shelf } from "./shelf.js";
import { watch } from "./watch.js";
import { describe, duration, isFinished } from "./words.js";

const MODELS_RETRY_MS = 3000;

const $ = (id) => document.getElementById(id);

const player = new Player({
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
});

const composer = new Composer($("composer"), (video) => {
  shelf.put(video);
  location.hash = video.id;
  $("stage").scrollIntoView({ block: "nearest" });
});

const shelf = new Shelf(
  { list: $("shelf"), more: $("more"), nothing: $("nothing") },
  { open: () => $("stage").scrollIntoView({ block: "nearest" }), remove: confirmDelete },
);

let shown = null; // the video on the screen, as the API last told it
let cancelling = false;
let stopWatching = () => {};
let announced = "";

const idInAddress = () => (location.hash.startsWith("#video_") ? location.hash.slice(1) : "");

function open(id) {
  if (shown?.id === id) return;
  stopWatching();
  player.clear();
  shown = null;
  cancelling = false;
  announced = "";
  if (!connection.away) tell("");
  shelf.mark(id);
  if (!id) {
    render();
    return;
  }
  stopWatching = watch(id, {
    changed(video) {
      shown = video;
      render();
      player.show(video);
      shelf.put(video);
    },
    gone() {
      shelf.drop(id);
      history.replaceState(null, "", location.pathname);
      open("");
      tell("That video does not exist any more.");
    },
  });
}

function render() {
  const video = shown;
  $("deck").hidden = !video;
  $("invitation").hidden = Boolean(video);
  $("title-card").textContent = video?.prompt ?? "";
  $("stage").dataset.state = !video ? "empty" : !isFinished(video) ? "running" : video.chunks_ready > 0 ? "finished" : "over";
  document.title = video ? `${video.prompt} - longtake` : "longtake";
  if (!video) return;

  const words = describe(video, { cancelling });
  $("headline").textContent = words.headline;
  $("detail").textContent = words.detail;
  $("deck").dataset.status = video.status;
  $("shown-prompt").textContent = video.prompt;
  $("shown-facts").textContent = `${duration(Number(video.seconds))}, ${video.size.replace("x", " × ")}, seed ${video.seed}`;

  const cancel = $("cancel");
  cancel.hidden = isFinished(video);
  cancel.disabled = cancelling;
  const download = $("download");
  download.hidden = !isFinished(video) || !video.chunks_ready;
  download.textContent = video.status === "completed" ? "Download" : `Download ${duration(video.seconds_ready)}`;
  download.href = contentUrl(video);
  announce(video, words);
}

/** Speaks the turning points to screen readers, not every chunk. */
function announce(video, { headline, detail }) {
  const quarter = Math.floor((4 * video.seconds_ready) / Number(video.seconds));
  const point = [video.status, video.queue_position, Boolean(video.chunks_ready), quarter, cancelling].join();
  if (point === announced) return;
  announced = point;
  $("announcer").textContent = [headline, detail].filter(Boolean).join(", ");
}

function tell(message, away = false) {
  const banner = $("banner");
  banner.textContent = message;
  banner.hidden = !message;
  banner.dataset.away = away;
}

$("cancel").addEventListener("click", async () => {
  cancelling = true;
  render();
  try {
    await cancelVideo(shown.id); // the watcher tells when it has stopped
  } catch (error) {
    cancelling = false;
    if (error instanceof ApiError) tell(error.message);
    render();
  }
});

$("again").addEventListener("click", () => composer.fill(shown));

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
  let available = [];
  try {
    available = await models();
  } catch {
    // The banner tells; asked again below.
  }
  composer.offer(available);
  const model = composer.model;
  $("about").textContent = model ? `${model.id} · ${model.fps} fps` : "No worker is ready yet";
  if (!available.length) setTimeout(loadModels, MODELS_RETRY_MS);
}

connection.addEventListener("away", (event) => tell(event.detail, true));
connection.addEventListener("back", () => {
  tell("");
  shelf.refresh();
});
addEventListener("hashchange", () => open(idInAddress()));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("prompt").focus();
});

loadModels();
shelf.refresh();
open(idInAddress());
