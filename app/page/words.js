// A video's state in words a person understands. Pure: no page, no network.

const TERMINAL = new Set(["completed", "failed", "cancelled"]);

/** Whether a video will not change any more. */
export const isFinished = (video) => TERMINAL.has(video.status);

/** What was typed as a number, in which a comma may stand for the point. */
export const typedNumber = (text) => text.trim().replace(",", ".");

/** Seconds of the whole video; null for one without an end. */
export const wholeLength = (video) => (video.seconds === "endless" ? null : Number(video.seconds));

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

/** A guess of a time to come, no more exact than guesses are. */
function guess(seconds) {
  if (seconds < 5) return "a few seconds";
  if (seconds < 90) return `about ${Math.round(seconds / 5) * 5} s`;
  if (seconds < 90 * 60) return `about ${Math.round(seconds / 60)} min`;
  return `about ${Math.round(seconds / 1800) / 2} h`;
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

/** How long something that goes at `then` (Unix seconds) still stays. */
export function left(then, now = Date.now() / 1000) {
  const rest = then - now;
  return rest < 60 ? "for less than a minute" : rest < 2 * 86400 ? `for ${guess(rest)}` : `for ${Math.round(rest / 86400)} days`;
}

/**
 * What to tell about a video object of the API: {headline, detail}.
 * `wish` is what was asked of it and has not happened yet: cancel, finish, pause, resume, or "".
 */
export function describe(video, { wish = "" } = {}) {
  const made = video.seconds_ready;
  const whole = wholeLength(video);
  const kept = made > 0 ? `the first ${duration(made)} are kept` : "nothing was made yet";
  switch (video.status) {
    case "queued": {
      if (wish === "cancel") return { headline: "Stopping", detail: "" };
      const eta = video.eta_seconds == null ? "" : `ready in ${guess(video.eta_seconds)}`;
      const safe = made > 0 ? `${duration(made)} are made and safe, it goes on by itself` : "";
      return { headline: place(video.queue_position, made > 0), detail: [safe, eta].filter(Boolean).join(", ") };
    }
    case "in_progress": {
      if (wish === "cancel") return { headline: "Stopping", detail: "what is made so far is kept" };
      if (video.pause_requested || wish === "pause") return { headline: "Pausing", detail: "after the next chunk" };
      if (video.stalled) return { headline: "Held up for a moment", detail: `${video.stalled}; it goes on by itself` };
      const rest = video.eta_seconds == null ? "" : `${guess(video.eta_seconds)} left`;
      if (wish === "finish" && whole === null) return { headline: "Finishing", detail: "the chunks that are begun still come" };
      if (!video.chunks_ready) return { headline: "Painting the first frames", detail: rest };
      if (whole === null) return { headline: `${duration(made)} ready`, detail: "endless: it goes on until you finish it" };
      if (made >= whole) return { headline: `All ${duration(made)} ready`, detail: "putting the file together" };
      if (wish === "finish") return { headline: "Finishing", detail: `${duration(made)} of ${duration(whole)} ready` };
      return { headline: `${duration(made)} of ${duration(whole)} ready`, detail: rest };
    }
    case "paused":
      if (wish === "finish") return { headline: "Paused", detail: "it comes to its end once you resume it" };
      return { headline: "Paused", detail: `${made > 0 ? `${duration(made)} are made; ` : ""}resume it whenever you like` };
    case "completed": {
      const took = video.completed_at - video.created_at;
      return { headline: `Finished in ${duration(Math.max(1, took))}`, detail: "" };
    }
    case "cancelled":
      return { headline: "Cancelled", detail: kept };
    case "failed": {
      const reason = sentence(video.error?.message || "the service did not say why").replace(/[^.!?]$/, "$&.");
      const parts = [reason, made > 0 ? `${sentence(kept)}.` : "", ADVICE[video.error?.code] ?? ADVICE.other];
      return { headline: "This video could not be made", detail: parts.filter(Boolean).join(" ") };
    }
    default:
      return { headline: sentence(String(video.status).replaceAll("_", " ")), detail: "" };
  }
}

// What somebody can do about a failure, by its code.
const ADVICE = {
  out_of_memory: "A smaller size may fit.",
  invalid_output: "Another seed or other words may help.",
  invalid_request: "Change what you asked for, and try again.",
  other: "Trying again may help. If not, the log of the service has the reason.",
};

function place(position, begun) {
  if (position == null) return begun ? "Making room for others" : "Waiting in line";
  if (position === 0) return begun ? "Making room for others, next in line" : "Next in line";
  const before = `${plural(position, "video", "videos")} before yours`;
  return begun ? `Making room for others, ${before}` : `Waiting in line, ${before}`;
}

/** One line for the shelf. */
export function summary(video) {
  const whole = wholeLength(video);
  switch (video.status) {
    case "completed":
      return duration(whole);
    case "in_progress":
      if (!video.chunks_ready) return "Starting";
      return whole === null ? `${duration(video.seconds_ready)}, endless` : `${duration(video.seconds_ready)} of ${duration(whole)}`;
    case "queued":
      return "In line";
    case "paused":
      return video.seconds_ready > 0 ? `${duration(video.seconds_ready)}, paused` : "Paused";
    case "cancelled":
      return video.seconds_ready > 0 ? `${duration(video.seconds_ready)}, cancelled` : "Cancelled";
    case "failed":
      return "Failed";
    default:
      return sentence(video.status);
  }
}
