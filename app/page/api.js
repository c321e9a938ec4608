// The service over HTTP: requests, errors as the API words them, and whether it answers at all.

const RETRY_MS = 2000;

/** An answer other than success; `param` names the field at fault, where one is. */
export class ApiError extends Error {
  constructor(status, error = {}) {
    super(error.message || `The service answered ${status}.`);
    this.status = status;
    this.code = error.code ?? "";
    this.param = error.param ?? null;
  }
}

/** No answer: the network or the server is away. */
export class Unreachable extends Error {}

/**
 * Tells "away" (detail: what to say) when the service stops answering and "back" when it answers again.
 * While it is away it is asked every two seconds, so nobody needs to reload.
 */
class Connection extends EventTarget {
  #timer = 0;

  get away() {
    return this.#timer !== 0;
  }

  lost(message) {
    if (this.away) return;
    this.#timer = setInterval(() => this.#knock(), RETRY_MS);
    this.dispatchEvent(new CustomEvent("away", { detail: message }));
  }

  found() {
    if (!this.away) return;
    clearInterval(this.#timer);
    this.#timer = 0;
    this.dispatchEvent(new Event("back"));
  }

  async #knock() {
    try {
      const answer = await fetch("/readyz", { cache: "no-store" });
      if (answer.ok) this.found();
    } catch {
      // Still away; the interval asks again.
    }
  }
}

export const connection = new Connection();

async function request(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      cache: "no-store",
      headers: body ? { "Content-Type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch (error) {
    connection.lost("The service cannot be reached. Videos keep being made; this page picks up by itself.");
    throw new Unreachable(error.message);
  }
  const data = await answer.json().catch(() => ({}));
  if (answer.ok) return data;
  // What somebody asked for tells of its failure where it was asked; what the page asks by itself tells in the banner.
  if (answer.status >= 500 && method === "GET") connection.lost(data.error?.message ?? "The service has a problem. Trying again.");
  throw new ApiError(answer.status, data.error);
}

const path = (id, rest = "") => `/v1/videos/${encodeURIComponent(id)}${rest}`;

export const models = async () => (await request("GET", "/v1/models")).data ?? [];
export const listVideos = (after, limit) =>
  request("GET", `/v1/videos?${new URLSearchParams({ limit, order: "desc", ...(after && { after }) })}`);
export const getVideo = (id) => request("GET", path(id));
export const createVideo = (fields) => request("POST", "/v1/videos", fields);
export const cancelVideo = (id) => request("POST", path(id, "/cancel"));
export const deleteVideo = (id) => request("DELETE", path(id));

/** The finished file, or of a video that ended early what there is of it. */
export const contentUrl = (video) => path(video.id, video.status === "completed" ? "/content" : "/content?partial=true");
export const thumbnailUrl = (video) => path(video.id, "/content?variant=thumbnail");
export const playlistUrl = (video) => onThisOrigin(video.playlist_url);
export const eventsUrl = (video) => onThisOrigin(video.events_url);

// Behind a proxy the service may name itself by another origin than the one this page was opened at; both are the same service.
function onThisOrigin(url) {
  const parts = new URL(url, location.href);
  return parts.pathname + parts.search;
}
