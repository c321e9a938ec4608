// The image or clip that a new video begins with: chosen or dropped, shown before it is sent.

import { complain } from "./complaints.js";

export class Reference {
  /** `parts`: field (the file input), preview, name, remove, and zone, onto which files can be dropped. */
  constructor(parts) {
    this.parts = parts;
    parts.field.addEventListener("change", () => this.#show());
    parts.remove.addEventListener("click", () => {
      this.clear();
      parts.field.focus();
    });
    for (const type of ["dragenter", "dragover"]) {
      parts.zone.addEventListener(type, (event) => {
        if (!event.dataTransfer.types.includes("Files")) return;
        event.preventDefault();
        parts.zone.dataset.over = true;
      });
    }
    for (const type of ["dragleave", "drop"]) {
      parts.zone.addEventListener(type, () => delete parts.zone.dataset.over);
    }
    parts.zone.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      parts.field.files = event.dataTransfer.files;
      this.#show();
    });
  }

  /** The chosen file, or null. */
  get file() {
    return this.parts.field.files[0] ?? null;
  }

  clear() {
    this.parts.field.value = "";
    this.#show();
  }

  #show() {
    const { field, preview, name, remove, zone } = this.parts;
    complain(field.id, "");
    for (const shown of preview.children) URL.revokeObjectURL(shown.src);
    preview.replaceChildren();
    const file = this.file;
    zone.dataset.filled = Boolean(file);
    remove.hidden = !file;
    name.textContent = file ? `Begins with ${file.name}` : "Begin with an image or clip";
    if (!file) return;
    const clip = file.type.startsWith("video/");
    const picture = document.createElement(clip ? "video" : "img");
    if (clip) Object.assign(picture, { muted: true, playsInline: true, preload: "metadata" });
    else picture.alt = "";
    // Not everything that the service reads can a browser show; what is wrong with a file, only the service knows.
    picture.addEventListener("error", () => picture.remove(), { once: true });
    picture.src = URL.createObjectURL(file);
    preview.append(picture);
  }
}
