// A video's state in words a person understands. Pure: no page, no network.

const TERMINAL = new Set(["completed", "failed", "cancelled"]);

/** Whether a video will not change any more. */
export const isFinished = (video) => TERMINAL.has(video.status);

/** Seconds as a length: "8.3 s", "12 s", "1 min 15 s", "2 min". */
export function duration(seconds) {
  if (seconds < 10) return `${Math.floor(seconds * 10) / 10} s`;
  const whole = Math.floor(seconds);
  if (whole < 90) return `${whole} s`;
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  return [hours && `${hours} h`, minutes && `${minutes} min`, rest && !hours && `${rest} s`].filter(Boolean).join(" ");
}

/** Seconds as a clock: "0:07", "1:02:05". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** A guess of the time left, no more exact than guesses are. */
export function remaining(seconds) {
  if (seconds < 5) return "a few seconds left";
  if (seconds < 90) return `about ${Math.round(seconds / 5) * 5} s left`;
  if (seconds < 90 * 60) return `about ${Math.round(seconds / 60)} min left`;
  return `about ${Math.round(seconds / 1800) / 2} h left`;
}

const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Moments since `then` (Unix seconds): "just now", "5 min ago", or a date. */
export function ago(then, now = Date.now() / 1000) {
  const past = now - then;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(then * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
}

/**
 * What to tell about a video object of the API: {headline, detail}.
 * `cancelling` is true between the wish to cancel and the service's answer.
 */
export function describe(video, { cancelling = false } = {}) {
  const made = video.seconds_ready;
  const kept = made > 0 ? `the first ${duration(made)} are kept` : "nothing was made yet";
  switch (video.status) {
    case "queued":
      if (cancelling) return { headline: "Stopping", detail: "" };
      return {
        headline: place(video.queue_position),
        detail: made > 0 ? `${duration(made)} are already made and safe` : "",
      };
    case "in_progress": {
      if (cancelling) return { headline: "Stopping", detail: "what is made so far is kept" };
      if (video.pause_requested) return { headline: "Pausing", detail: "after the next chunk" };
      if (video.stalled) return { headline: "Held up for a moment", detail: video.stalled };
      const left = video.eta_seconds == null ? "" : remaining(video.eta_seconds);
      if (!video.chunks_ready) return { headline: "Painting the first frames", detail: left };
      if (made >= Number(video.seconds)) return { headline: `All ${duration(made)} ready`, detail: "putting the file together" };
      return { headline: `${duration(made)} of ${duration(Number(video.seconds))} ready`, detail: left };
    }
    case "paused":
      return { headline: "Paused", detail: kept };
    case "completed": {
      const took = video.completed_at - video.created_at;
      return { headline: `Finished in ${duration(Math.max(1, took))}`, detail: "" };
    }
    case "cancelled":
      return { headline: "Cancelled", detail: kept };
    case "failed": {
      const reason = sentence(video.error?.message || "the service did not say why").replace(/[^.!?]$/, "$&.");
      return { headline: "This video could not be made", detail: made > 0 ? `${reason} ${sentence(kept)}.` : reason };
    }
    default:
      return { headline: sentence(String(video.status).replaceAll("_", " ")), detail: "" };
  }
}

function place(position) {
  if (position == null) return "Waiting in line";
  if (position === 0) return "Next in line";
  return `Waiting in line, ${plural(position, "video", "videos")} before yours`;
}

/** One line for the shelf. */
export function summary(video) {
  switch (video.status) {
    case "completed":
      return duration(Number(video.seconds));
    case "in_progress":
      return video.chunks_ready ? `${duration(video.seconds_ready)} of ${duration(Number(video.seconds))}` : "Starting";
    case "queued":
      return "In line";
    case "cancelled":
      return video.seconds_ready > 0 ? `${duration(video.seconds_ready)}, cancelled` : "Cancelled";
    case "failed":
      return "Failed";
    default:
      return sentence(video.status);
  }
}
