// Follows one video until it is finished: server-sent events, and polling wherever those fall short.

import { ApiError, connection, eventsUrl, getVideo } from "./api.js";
import { isFinished } from "./words.js";

const POLL_MS = 2000; // while in line (no event tells the place), and whenever the events are away
const CHECK_MS = 15000; // beside healthy events: a connection can die without a word

/**
 * Calls `changed(video)` for the state now and after each change, `gone()` when the video does not exist (any more).
 * Returns a function that stops it.
 */
export function watch(id, { changed, gone }) {
  let video = null;
  let source = null;
  let lastEvent = "";
  let stopped = false;
  let timer = 0;

  function stop() {
    stopped = true;
    source?.close();
    clearTimeout(timer);
    connection.removeEventListener("back", refresh);
  }

  function update(change) {
    if (stopped) return;
    // Events replayed from the past take nothing back; the place in line comes from GET alone.
    video = {
      ...video,
      ...change,
      chunks_ready: Math.max(video?.chunks_ready ?? 0, change.chunks_ready ?? 0),
      seconds_ready: Math.max(video?.seconds_ready ?? 0, change.seconds_ready ?? 0),
      queue_position: change.queue_position ?? video?.queue_position,
    };
    changed(video);
    if (isFinished(video)) stop();
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      update(await getVideo(id));
      if (!stopped && !source) listen();
    } catch (error) {
      if (!stopped && error instanceof ApiError && error.status === 404) {
        stop();
        gone();
      }
    }
    schedule();
  }

  function schedule() {
    clearTimeout(timer);
    if (stopped) return;
    const live = source?.readyState === EventSource.OPEN && video.status !== "queued";
    timer = setTimeout(refresh, live ? CHECK_MS : POLL_MS);
  }

  function listen() {
    const url = new URL(eventsUrl(video), location.href);
    if (lastEvent) url.searchParams.set("last_event_id", lastEvent);
    source = new EventSource(url);
    const on = (type, toChange) =>
      source.addEventListener(type, (event) => {
        lastEvent = event.lastEventId || lastEvent;
        update(toChange(JSON.parse(event.data)));
      });
    for (const type of ["status", "progress", "completed", "failed", "cancelled"]) on(type, (data) => data);
    on("chunk", (chunk) => ({
      chunks_ready: chunk.index + 1,
      seconds_ready: Math.round((chunk.start_seconds + chunk.duration_seconds) * 1000) / 1000,
    }));
    source.onopen = schedule;
    source.onerror = () => {
      // The browser resumes a broken stream itself but gives up on a refused one; the next poll opens another.
      if (source?.readyState === EventSource.CLOSED) source = null;
      schedule();
    };
  }

  connection.addEventListener("back", refresh);
  refresh();
  return stop;
}
