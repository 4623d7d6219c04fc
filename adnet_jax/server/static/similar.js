// Which pixel was pointed at and what it is like: one request at a time, the newest one wins.

import {similarity} from './net.js';
import {anchorOf} from './words.js';

export class Similar {
  probe = null; // {of: 'frame' | 'anchor', x, y}
  found = null; // {map, peak, key}
  problem = '';
  #wanted = null;
  #busy = false;
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  point(probe) {
    this.probe = probe;
    this.problem = '';
    if (!probe) this.found = null;
  }

  // The map for what is shown; asks for it where it is not there yet.
  mapFor(job, frame) {
    if (!this.probe) return null;
    const key = [job.id, anchorOf(job, frame), frame, this.probe.of, this.probe.x, this.probe.y].join();
    if (this.found?.key === key) return this.found;
    this.#wanted = {key, id: job.id, query: {frame, ...this.probe}};
    this.#ask();
    return null;
  }

  async #ask() {
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (this.#wanted) {
        const {key, id, query} = this.#wanted;
        this.#wanted = null;
        try {
          const answer = await similarity(id, query);
          if (this.probe?.of === query.of) this.found = {...answer, key};
        } catch (error) {
          this.problem = error.message;
        }
        this.#onChange();
      }
    } finally {
      this.#busy = false;
    }
  }
}
