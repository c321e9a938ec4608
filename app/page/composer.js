// The form that asks for a video.

import { Attempts, createVideo } from "./api.js";
import { busy, complain, complainOf } from "./complaints.js";
import { Reference } from "./reference.js";
import { Scenes } from "./scenes.js";
import { duration as inWords, typedNumber } from "./words.js";

const SHOWN_EXAMPLES = 6;
const FIELDS = ["prompt", "seconds", "size", "seed", "model", "input_reference"];

export class Composer {
  #models = [];
  #attempts = new Attempts();

  /** `created(video)` is called with each video that was accepted. */
  constructor(form, created) {
    this.form = form;
    this.created = created;
    this.fields = form.elements;
    this.scenes = new Scenes(form.querySelector("#scenes"), form.querySelector("#add-scene"));
    this.reference = new Reference({
      field: this.fields.input_reference,
      preview: form.querySelector("#reference-preview"),
      name: form.querySelector("#reference-name"),
      remove: form.querySelector("#reference-remove"),
      zone: form,
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    form.addEventListener("input", (event) => complain(event.target.name, ""));
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
    models.forEach((model, at) => {
      this.fields.model.options[at].label = model.served ? model.id : `${model.id} (no worker)`;
    });
    this.form.querySelector("#model-field").hidden = models.length < 2;
    this.#arrange();
  }

  /** Takes over a video's prompts, to make a variation of it. */
  fill(video) {
    this.fields.prompt.value = video.prompt;
    this.scenes.fill(video.prompts);
    this.fields.prompt.focus();
    this.fields.prompt.scrollIntoView({ block: "center" });
  }

  get model() {
    return this.#models.find((model) => model.id === this.fields.model.value) ?? this.#models[0];
  }

  #arrange() {
    const model = this.model;
    const longest = model?.max_seconds ?? Infinity;
    const choices = [...this.form.querySelectorAll("[name=duration]")];
    for (const choice of choices) choice.parentElement.hidden = Number(choice.value) > longest;
    if (choices.find((choice) => choice.checked)?.parentElement.hidden) {
      const shown = choices.find((choice) => Number(choice.value) <= longest);
      (shown ?? choices.find((choice) => choice.value === "custom")).checked = true;
    }

    const custom = this.fields.duration.value === "custom";
    const field = this.form.querySelector("#custom");
    if (custom && field.hidden) {
      field.hidden = false;
      this.fields.seconds.focus();
    }
    field.hidden = !custom;
    if (!custom) complain("seconds", "");

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
          complain("prompt", "");
          this.fields.prompt.focus();
        });
        item.append(button);
        return item;
      }),
    );
  }

  #submit() {
    for (const field of [...FIELDS, "composer"]) complain(field, "");
    this.scenes.clearComplaints();
    const { prompt, duration, seconds, size, seed, model, submit } = this.fields;
    const later = this.scenes.read();
    const fields = { seconds: duration.value === "custom" ? typedNumber(seconds.value) : duration.value };
    if (later.prompts.length) fields.prompts = [{ at: 0, text: prompt.value.trim() }, ...later.prompts];
    else fields.prompt = prompt.value.trim();
    if (size.value) fields.size = size.value;
    if (model.value) fields.model = model.value;
    if (seed.value.trim()) fields.seed = seed.value.trim();
    const places = Object.fromEntries(FIELDS.map((name) => [name, name]));
    Object.assign(places, later.places, { prompts: "prompt", "prompts[0].text": "prompt" });

    const { file } = this.reference;
    const attempt = this.#attempts.of([fields, file && [file.name, file.size, file.lastModified]]);
    return busy(submit, async () => {
      submit.textContent = file ? "Sending" : submit.textContent;
      try {
        const video = await createVideo(file ? asForm(fields, file) : fields, attempt);
        this.#attempts.settled();
        this.reference.clear();
        this.created(video);
      } catch (error) {
        // The limit on bodies knows no fields: it is the file that is large.
        if (file && error.status === 413) error.param = "input_reference";
        complainOf(error, places, "composer");
      } finally {
        submit.textContent = "Make the video";
      }
    });
  }
}

function asForm(fields, file) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.set(name, typeof value === "string" ? value : JSON.stringify(value));
  form.set("input_reference", file);
  return form;
}

function options(select, values, preferred) {
  const shown = [...select.options].map((option) => option.value);
  if (JSON.stringify(shown) === JSON.stringify(values)) return;
  select.replaceChildren(...values.map((value) => new Option(value.replace("x", " × "), value, value === preferred, value === preferred)));
}
