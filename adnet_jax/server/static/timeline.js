// The film strip: small pictures over the whole clip, of which one can be made the anchor.

import {frameAddress} from './net.js';

const WIDTH = 84;

export class Timeline {
  #film;
  #onChoose;
  #key = '';
  #frames = 0;

  constructor(film, onChoose) {
    this.#film = film;
    this.#onChoose = onChoose;
    film.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (!button) return;
      // A pointer means the very place; keys mean the picture.
      const exact = event.detail > 0 && this.#frames > film.children.length;
      this.#onChoose(exact ? this.#frameAt(event.clientX) : Number(button.dataset.frame));
    });
  }

  #frameAt(clientX) {
    const box = this.#film.getBoundingClientRect();
    const share = (clientX - box.left) / box.width;
    return Math.min(this.#frames - 1, Math.max(0, Math.round(share * (this.#frames - 1))));
  }

  // Pictures that have been read; those to come keep their place.
  draw(id, frames, read) {
    this.#frames = frames;
    const count = Math.min(frames, Math.max(5, Math.floor(this.#film.clientWidth / WIDTH)));
    const numbers = Array.from({length: count}, (_, k) =>
      count === 1 ? 0 : Math.round((k * (frames - 1)) / (count - 1)));
    const key = `${id} ${numbers.join()}`;
    if (key !== this.#key) {
      this.#key = key;
      this.#film.replaceChildren(...numbers.map((number) => {
        const button = document.createElement('button');
        button.type = 'button';
        button.dataset.frame = number;
        const label = document.createElement('span');
        label.textContent = number;
        button.append(label);
        return button;
      }));
    }
    for (const button of this.#film.children) {
      const number = Number(button.dataset.frame);
      button.disabled = number >= read;
      if (number < read && !button.querySelector('img')) {
        const image = new Image();
        image.alt = '';
        image.src = frameAddress(id, number);
        button.prepend(image);
      }
    }
  }

  mark(anchor, chosen) {
    const numbers = [...this.#film.children].map((button) => Number(button.dataset.frame));
    const nearest = (frame) => numbers.reduce((best, n) => (Math.abs(n - frame) < Math.abs(best - frame) ? n : best), 0);
    for (const button of this.#film.children) {
      const number = Number(button.dataset.frame);
      const isAnchor = number === nearest(anchor);
      const isChosen = chosen !== null && number === nearest(chosen);
      button.setAttribute('aria-pressed', isChosen);
      button.classList.toggle('anchor', isAnchor);
      const role = isAnchor ? ', the anchor' : '';
      button.setAttribute('aria-label', `Frame ${number}${role}`);
    }
  }
}
