// Small pictures of frames and masks, loaded when they are wanted and kept for a while.

import {frameAddress, maskAddress} from './net.js';

const KEPT = 150;

async function load(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

// A cache of promises that forgets what was not asked for longest; what failed is tried again.
class Cache {
  #kept = new Map();

  get(key, make) {
    let found = this.#kept.get(key);
    if (found) this.#kept.delete(key);
    else {
      found = make();
      found.catch(() => this.#kept.delete(key));
    }
    this.#kept.set(key, found);
    if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
    return found;
  }

  clear() {
    this.#kept.clear();
  }
}

export class Pictures {
  #id;
  #run = 0;
  #frames = new Cache();
  #masks = new Cache();

  constructor(id) {
    this.#id = id;
  }

  startRun(run) {
    if (run === this.#run) return;
    this.#run = run;
    this.#masks.clear();
  }

  frame(index) {
    return this.#frames.get(index, () => load(frameAddress(this.#id, index)));
  }

  mask(index) {
    return this.#masks.get(index, () => load(maskAddress(this.#id, index, this.#run)));
  }

  // A mask that came with its event need not be asked for.
  putMask(index, png) {
    this.#masks.get(index, () => load(`data:image/png;base64,${png}`));
  }
}
