// The form that asks for a video.

import { ApiError, createVideo, Unreachable } from "./api.js";
import { duration as inWords } from "./words.js";

const SHOWN_EXAMPLES = 6;
const FIELDS = ["prompt", "seconds", "size", "seed", "model"];

export class Composer {
  #models = [];

  /** `created(video)` is called with each video that was accepted. */
  constructor(form, created) {
    this.form = form;
    this.created = created;
    this.fields = form.elements;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    form.addEventListener("input", (event) => this.#complain(event.target.name, ""));
    form.addEventListener("change", () => this.#arrange());
    this.fields.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    this.#arrange();
  }

  /** Offers what the workers can make; called again whenever that may have changed. */
  offer(models) {
    this.#models = models;
    options(this.fields.model, models.map((model) => model.id));
    this.form.querySelector("#model-field").hidden = models.length < 2;
    this.#arrange();
  }

  /** Takes over a video's prompt, to make a variation of it. */
  fill(video) {
    this.fields.prompt.value = video.prompt;
    this.fields.prompt.focus();
    this.fields.prompt.scrollIntoView({ block: "center" });
  }

  get model() {
    return this.#models.find((model) => model.id === this.fields.model.value) ?? this.#models[0];
  }

  #arrange() {
    const custom = this.fields.duration.value === "custom";
    const field = this.form.querySelector("#custom");
    if (custom && field.hidden) {
      field.hidden = false;
      this.fields.seconds.focus();
    }
    field.hidden = !custom;
    if (!custom) this.#complain("seconds", "");

    const model = this.model;
    const longest = model?.max_seconds ?? Infinity;
    for (const choice of this.form.querySelectorAll("[name=duration]")) {
      choice.parentElement.hidden = Number(choice.value) > longest;
      if (choice.checked && choice.parentElement.hidden) this.form.querySelector("[name=duration]").checked = true;
    }
    this.form.querySelector("#seconds-unit").textContent = model ? `seconds, up to ${inWords(longest)}` : "seconds";
    const sizes = model?.sizes ?? [];
    options(this.fields.size, sizes, model?.default_size);
    const examples = model?.example_prompts ?? [];
    this.#suggest(examples.slice(0, SHOWN_EXAMPLES));
  }

  #suggest(prompts) {
    const list = this.form.querySelector("#examples");
    if (list.dataset.shown === JSON.stringify(prompts)) return;
    list.dataset.shown = JSON.stringify(prompts);
    list.replaceChildren(
      ...prompts.map((prompt) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = prompt;
        button.addEventListener("click", () => {
          this.fields.prompt.value = prompt;
          this.#complain("prompt", "");
          this.fields.prompt.focus();
        });
        item.append(button);
        return item;
      }),
    );
  }

  async #submit() {
    const { prompt, duration, seconds, size, seed, model, submit } = this.fields;
    if (submit.getAttribute("aria-disabled") === "true") return;
    for (const field of [...FIELDS, "form"]) this.#complain(field, "");
    const body = { prompt: prompt.value.trim(), seconds: duration.value === "custom" ? seconds.value.trim() : duration.value };
    if (size.value) body.size = size.value;
    if (model.value) body.model = model.value;
    if (seed.value.trim()) body.seed = seed.value.trim();

    submit.setAttribute("aria-disabled", "true");
    try {
      this.created(await createVideo(body));
    } catch (error) {
      if (error instanceof ApiError) this.#complain(FIELDS.includes(error.param) ? error.param : "form", error.message, true);
      else if (error instanceof Unreachable) this.#complain("form", "The service did not answer, so nothing was started. Your prompt is still here.");
      else throw error;
    } finally {
      submit.removeAttribute("aria-disabled");
    }
  }

  /** Shows what is wrong with a field beside it, or clears that. */
  #complain(name, message, focus = false) {
    const place = this.form.querySelector(`#${name || "form"}-error`);
    if (!place) return;
    place.textContent = message;
    place.hidden = !message;
    const field = this.form.querySelector(`#${name}`);
    field?.setAttribute("aria-invalid", String(Boolean(message)));
    if (!focus) return;
    if (name === "seconds") this.form.querySelector("#custom").hidden = this.fields.duration.value !== "custom";
    if (field?.closest("details")) field.closest("details").open = true;
    if (field?.checkVisibility?.() ?? field) field.focus();
  }
}

function options(select, values, preferred) {
  const shown = [...select.options].map((option) => option.value);
  if (JSON.stringify(shown) === JSON.stringify(values)) return;
  select.replaceChildren(...values.map((value) => new Option(value.replace("x", " × "), value, value === preferred, value === preferred)));
}
