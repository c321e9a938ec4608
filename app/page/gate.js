// Asks for the API key where the service wants one, and lets people sign out.

import { ApiError, tryKey } from "./api.js";
import { busy, complain } from "./complaints.js";
import { session } from "./session.js";

export class Gate {
  /** `parts`: dialog, and button, which signs in or out. */
  constructor({ dialog, button }) {
    Object.assign(this, { dialog, button });
    this.form = dialog.querySelector("form");
    this.field = this.form.querySelector("#key");
    session.addEventListener("locked", (event) => {
      this.#arrange();
      this.#open(event.detail);
    });
    session.addEventListener("unlocked", () => this.#arrange());
    session.addEventListener("wanted", () => this.#open(""));
    button.addEventListener("click", () => (session.locked ? this.#open("") : session.lock("")));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.form.elements.close.addEventListener("click", () => dialog.close());
    this.form.addEventListener("input", () => complain("key", ""));
    dialog.addEventListener("close", () => (this.field.value = ""));
    this.#arrange();
  }

  #arrange() {
    this.button.hidden = !session.key && !session.locked;
    this.button.textContent = session.locked ? "Enter API key" : "Sign out";
  }

  #open(reason) {
    complain("key", reason);
    if (!this.dialog.open) this.dialog.showModal();
    this.field.focus();
  }

  #submit() {
    const key = this.field.value.trim();
    return busy(this.form.elements.enter, async () => {
      try {
        if (!/^[\x21-\x7e]+$/.test(key)) throw new ApiError(401, { message: "That is no API key." });
        await tryKey(key);
      } catch (error) {
        complain("key", error instanceof ApiError ? error.message : "The service did not answer. Try again soon.", true);
        return;
      }
      const remember = this.form.elements.remember.checked;
      this.dialog.close();
      session.unlock(key, remember);
    });
  }
}
