// What is wrong with a field, beside it: an element with the id FIELD-error next to the one with the id FIELD.

import { ApiError, Unreachable } from "./api.js";

/** Shows what is wrong with the field of this id, or clears that. `focus`: takes the visitor there. */
export function complain(id, message, focus = false) {
  const place = document.getElementById(`${id}-error`);
  if (!place) return;
  place.textContent = message;
  place.hidden = !message;
  const field = document.getElementById(id);
  if (field?.matches("input, select, textarea")) field.setAttribute("aria-invalid", String(Boolean(message)));
  if (!focus || !field) return;
  if (field.closest("details")) field.closest("details").open = true;
  if (field.checkVisibility()) field.focus();
}

/**
 * Shows an answer other than success. `places` maps what the service calls its parameters to ids of fields; what
 * belongs to none of them is shown at `rest`. Anything else than an answer is thrown on.
 */
export function complainOf(error, places, rest) {
  if (error instanceof Unreachable) {
    complain(rest, "The service did not answer. What you wrote is still here; send it again when it is back.");
  } else if (error instanceof ApiError) {
    const place = places[error.param] ?? rest;
    complain(place, error.message, place !== rest);
  } else {
    throw error;
  }
}

/** Marks a button as at work while `action` runs; pressing it meanwhile does nothing. */
export async function busy(button, action) {
  if (isBusy(button)) return;
  button.setAttribute("aria-disabled", "true");
  try {
    await action();
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

export const isBusy = (button) => button.getAttribute("aria-disabled") === "true";
