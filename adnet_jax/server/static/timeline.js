// The film strip: small pictures over the whole clip, of which one can be made the anchor.

import {frameAddress} from './net.js';

const WIDTH = 92;

const nearest = (numbers, frame) =>
  numbers.reduce((best, n) => (Math.abs(n - frame) < Math.abs(best - frame) ? n : best), numbers[0]);

export class Timeline {
  #film;
  #key = '';

  constructor(film, onChoose) {
    this.#film = film;
    film.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (button) onChoose(Number(button.dataset.frame));
    });
  }

  // Pictures that have been read, anchors in place of their neighbours; those to come keep their place.
  draw(id, frames, read, anchors) {
    const count = Math.min(frames, Math.max(5, Math.floor(this.#film.clientWidth / WIDTH)));
    const even = Array.from({length: count}, (_, k) =>
      count === 1 ? 0 : Math.round((k * (frames - 1)) / (count - 1)));
    const places = new Map(even.map((number) => [number, number]));
    for (const anchor of anchors) places.set(nearest(even, anchor), anchor);
    const numbers = [...new Set(places.values())].sort((one, other) => one - other);
    const key = `${id} ${numbers.join()}`;
    if (key !== this.#key || !this.#film.childElementCount) {
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

  // Which pictures are nearest to the anchors and to the frame that is shown.
  mark(anchors, shown) {
    const numbers = [...this.#film.children].map((button) => Number(button.dataset.frame));
    const marked = new Set(anchors.map((anchor) => nearest(numbers, anchor)));
    for (const button of this.#film.children) {
      const number = Number(button.dataset.frame);
      const isAnchor = marked.has(number);
      button.setAttribute('aria-current', number === nearest(numbers, shown));
      button.classList.toggle('anchor', isAnchor);
      const role = anchors.includes(number) ? `, ${anchors.length > 1 ? 'an' : 'the'} anchor` : '';
      button.setAttribute('aria-label', `Frame ${number}${role}`);
    }
  }
}
