// The API key, where the service asks for one: kept by this browser, sent in a header, never part of an address.

const NAME = "longtake.api-key";

/**
 * Tells "locked" (detail: why) when a key is needed, "wanted" when somebody tries to do something meanwhile, and
 * "unlocked" when there is one. While it is locked, the service is asked for nothing.
 */
class Session extends EventTarget {
  #locked = false;

  get locked() {
    return this.#locked;
  }

  /** The key, or "". Read each time, so that signing out in one tab signs out all of them. */
  get key() {
    return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  }

  /** Keeps a key that was found to work; `remember`: also after the browser is closed. */
  unlock(key, remember) {
    this.#forget();
    (remember ? localStorage : sessionStorage).setItem(NAME, key);
    this.#locked = false;
    this.dispatchEvent(new Event("unlocked"));
  }

  /** Forgets the key: it is wrong, there is none, or somebody signs out. */
  lock(reason) {
    if (this.#locked) return;
    this.#forget();
    this.#locked = true;
    this.dispatchEvent(new CustomEvent("locked", { detail: reason }));
  }

  /** Somebody wants what takes a key. */
  demand() {
    this.dispatchEvent(new Event("wanted"));
  }

  #forget() {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
  }
}

export const session = new Session();
