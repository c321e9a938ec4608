// The service over HTTP: requests, errors as the API words them, and whether it answers at all.

import { session } from "./session.js";
import { duration } from "./words.js";

const RETRY_MS = 2000;

/** An answer other than success; `param` names the field at fault, where one is. */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfterSeconds = 0) {
    const message = error.message || `The service answered ${status}.`;
    super(status === 429 && retryAfterSeconds ? `${message} Try again in ${duration(retryAfterSeconds)}.` : message);
    this.status = status;
    this.code = error.code ?? "";
    this.param = error.param ?? null;
  }
}

/** No answer: the network or the server is away. */
export class Unreachable extends Error {}

/**
 * Tells "away" (detail: what to say) when the service stops answering or wants to be left alone for a while, and "back"
 * when it answers again. While it is away it is asked every two seconds, so nobody needs to reload.
 */
class Connection extends EventTarget {
  #knocking = 0;
  #resting = 0;

  get away() {
    return this.#knocking !== 0;
  }

  /** The page has asked too often: it asks nothing by itself for a while. */
  get resting() {
    return this.#resting !== 0;
  }

  lost(message) {
    if (this.away) return;
    this.#knocking = setInterval(() => this.#knock(), RETRY_MS);
    this.dispatchEvent(new CustomEvent("away", { detail: message }));
  }

  found() {
    if (!this.away) return;
    clearInterval(this.#knocking);
    this.#knocking = 0;
    this.dispatchEvent(new Event("back"));
  }

  rest(seconds, message) {
    if (this.resting) return;
    this.#resting = setTimeout(() => {
      this.#resting = 0;
      this.dispatchEvent(new Event("back"));
    }, seconds * 1000);
    this.dispatchEvent(new CustomEvent("away", { detail: message }));
  }

  async #knock() {
    try {
      const answer = await fetch("readyz", { cache: "no-store" });
      if (answer.ok) this.found();
    } catch {
      // Still away; the interval asks again.
    }
  }
}

export const connection = new Connection();

/** Asks the service. `body` is an object (sent as JSON) or a form; `key` is tried instead of the one that is kept. */
async function request(method, path, { body, headers = {}, key = session.key, trying = false } = {}) {
  const asking = method === "GET" && !trying; // the page does that by itself, again and again
  if (session.locked && !trying) {
    if (!asking) session.demand();
    throw new ApiError(401, { message: "This needs an API key." });
  }
  if (asking && connection.resting) throw new ApiError(429);
  const isForm = body instanceof FormData;
  let answer;
  try {
    answer = await fetch(path, {
      method,
      cache: "no-store",
      headers: {
        ...headers,
        ...(key && { Authorization: `Bearer ${key}` }),
        ...(body && !isForm && { "Content-Type": "application/json" }),
      },
      body: body && !isForm ? JSON.stringify(body) : body,
    });
  } catch (error) {
    connection.lost("The service cannot be reached. Videos keep being made; this page picks up by itself.");
    throw new Unreachable(error.message);
  }
  const data = await answer.json().catch(() => ({}));
  if (answer.ok) return data;
  const wait = Number(answer.headers.get("Retry-After")) || 0;
  const error = new ApiError(answer.status, data.error, wait);
  // An answer to an earlier key says nothing about the one that has come since.
  if (answer.status === 401 && !trying && key === session.key) session.lock(key ? error.message : "");
  // What somebody asked for tells of its failure where it was asked; what the page asks by itself tells in the banner.
  if (asking && answer.status === 429) connection.rest(wait || 2, error.message);
  if (asking && answer.status >= 500) connection.lost(data.error?.message ?? "The service has a problem. Trying again.");
  throw error;
}

const path = (id, rest = "") => `v1/videos/${encodeURIComponent(id)}${rest}`;

export const models = async () => (await request("GET", "v1/models")).data ?? [];
/** Throws what the service has against a key. */
export const tryKey = (key) => request("GET", "v1/models", { key, trying: true });
export const listVideos = (after, limit) =>
  request("GET", `v1/videos?${new URLSearchParams({ limit, order: "desc", ...(after && { after }) })}`);
export const getVideo = (id) => request("GET", path(id));
export const createVideo = (body, attempt) => request("POST", "v1/videos", { body, headers: once(attempt) });
export const extendVideo = (id, fields, attempt) =>
  request("POST", "v1/videos/extensions", { body: { video: { id }, ...fields }, headers: once(attempt) });
export const remixVideo = (id, fields, attempt) =>
  request("POST", path(id, "/remix"), { body: fields, headers: once(attempt) });
export const steerVideo = (id, fields) => request("POST", path(id, "/prompts"), { body: fields });
export const deleteVideo = (id) => request("DELETE", path(id));
/** `what`: pause, resume, finish, cancel. */
export const control = (id, what) => request("POST", path(id, `/${what}`));

const once = (attempt) => ({ "Idempotency-Key": attempt });

/**
 * Names attempts, so that what is sent again is made once. The same content has the same name until `settled` says that
 * it was made: an error may come after that, from a proxy for example, and an answer to a later try tells nothing of it.
 */
export class Attempts {
  #content = "";
  #name = "";

  of(content) {
    const text = JSON.stringify(content);
    if (text !== this.#content) {
      this.#content = text;
      // Not randomUUID, which is there on HTTPS only.
      this.#name = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");
    }
    return this.#name;
  }

  settled() {
    this.#content = "";
  }
}

/** The finished file, or of a video that ended early what there is of it. */
export const contentUrl = (video) => playbackUrl(video, "/content", video.status === "completed" ? {} : { partial: true });
export const thumbnailUrl = (video) => playbackUrl(video, "/content", { variant: "thumbnail" });
export const playlistUrl = (video) => besideThisPage(video.playlist_url);
export const eventsUrl = (video) => besideThisPage(video.events_url);

/** Elements and downloads cannot send a key: the signature of the playlist opens every playback address of its video. */
function playbackUrl(video, rest, parameters) {
  const query = new URL(video.playlist_url, location.href).searchParams;
  for (const [name, value] of Object.entries(parameters)) query.set(name, value);
  return path(video.id, rest) + (query.size ? `?${query}` : "");
}

// Behind a proxy the service may name itself by another origin, or lie under another path, than the page was opened at; all are
// the same service. Addresses are therefore relative to the page.
function besideThisPage(url) {
  const parts = new URL(url, location.href);
  return parts.pathname.slice(parts.pathname.indexOf("/v1/") + 1) + parts.search;
}
