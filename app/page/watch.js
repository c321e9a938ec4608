// Follows one video: server-sent events, and polling wherever those fall short.

import { ApiError, connection, eventsUrl, getVideo } from "./api.js";
import { isFinished } from "./words.js";

const POLL_MS = 2000; // while in line (no event tells the place), and whenever the events are away
const CHECK_MS = 15000; // beside healthy events: a connection can die without a word; and where nobody looks
const FINISHED_CHECK_MS = 60000; // it may be deleted elsewhere, or expire
const SOON_MS = 80; // a stream begins with all that has happened so far: told once, not event by event

/**
 * Calls `changed(video)` for the state now and after each change, `gone(video)` when the video does not exist (any
 * more), with what was last known of it or null. Returns a function that stops it.
 */
export function watch(id, { changed, gone }) {
  let video = null;
  let source = null;
  let lastEvent = "";
  let stopped = false;
  let next = 0;
  let telling = 0;

  function stop() {
    stopped = true;
    hush();
    clearTimeout(next);
    clearTimeout(telling);
    connection.removeEventListener("back", refresh);
    document.removeEventListener("visibilitychange", seen);
  }

  function update(change) {
    if (stopped) return;
    // Events replayed from the past take nothing back.
    video = {
      ...video,
      ...change,
      chunks_ready: Math.max(video?.chunks_ready ?? 0, change.chunks_ready ?? 0),
      seconds_ready: Math.max(video?.seconds_ready ?? 0, change.seconds_ready ?? 0),
    };
    if (isFinished(video)) hush();
    telling ||= setTimeout(tell, SOON_MS);
  }

  function tell() {
    clearTimeout(telling);
    telling = 0;
    changed(video);
  }

  async function refresh() {
    clearTimeout(next);
    try {
      const fresh = await getVideo(id);
      const first = !video;
      update(fresh);
      if (stopped) return;
      if (first) tell();
      if (!source && !isFinished(video) && !document.hidden) listen();
    } catch (error) {
      if (!stopped && error instanceof ApiError && error.status === 404) {
        stop();
        gone(video);
      }
    }
    schedule();
  }

  function schedule() {
    if (stopped) return;
    const live = source?.readyState === EventSource.OPEN && video.status !== "queued";
    again(video && isFinished(video) ? FINISHED_CHECK_MS : live || document.hidden ? CHECK_MS : POLL_MS);
  }

  function again(milliseconds) {
    clearTimeout(next);
    if (!document.hidden || !video || !isFinished(video)) next = setTimeout(refresh, milliseconds);
  }

  // A browser opens no more than six connections to a service over HTTP/1.1, for all tabs together: six that listen
  // where nobody looks would leave none for the tab in front.
  function seen() {
    if (!document.hidden) {
      refresh();
      return;
    }
    hush();
    schedule();
  }

  function hush() {
    source?.close();
    source = null;
  }

  function listen() {
    const url = new URL(eventsUrl(video), location.href);
    if (lastEvent) url.searchParams.set("last_event_id", lastEvent);
    source = new EventSource(url);
    const on = (type, take) =>
      source.addEventListener(type, (event) => {
        lastEvent = event.lastEventId || lastEvent;
        take(JSON.parse(event.data));
      });
    // These say that something is different, now or long ago; how things are now, only GET can tell.
    for (const type of ["status", "prompt"]) on(type, () => again(SOON_MS));
    // What all watchers are sent has plain addresses; ours may be signed. A signed stream leaves out what is private,
    // such as a prompt that came just before the end.
    for (const type of ["completed", "failed", "cancelled"]) {
      on(type, ({ playlist_url, events_url, ...data }) => {
        update(data);
        again(SOON_MS);
      });
    }
    on("progress", (data) => update({ stalled: null, ...data }));
    on("chunk", (chunk) =>
      update({
        chunks_ready: chunk.index + 1,
        seconds_ready: Math.round((chunk.start_seconds + chunk.duration_seconds) * 1000) / 1000,
      }),
    );
    source.onopen = schedule;
    source.onerror = () => {
      // The browser resumes a broken stream itself but gives up on a refused one, such as one whose signature has
      // expired. The next poll brings an address that is good, and opens another.
      if (source?.readyState === EventSource.CLOSED) source = null;
      schedule();
    };
  }

  connection.addEventListener("back", refresh);
  document.addEventListener("visibilitychange", seen);
  refresh();
  return stop;
}
