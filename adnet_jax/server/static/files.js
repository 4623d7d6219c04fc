// The list of a job's results.

import {fileAddress} from './net.js';
import {bytes, fileTitle, inOrder} from './words.js';

export function textElement(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

// Fills the list anew where it has changed; `none` is what stands there without files.
export function showFiles(list, none, job) {
  const key = JSON.stringify([job.run, job.files]);
  none.hidden = job.files.length > 0;
  if (list.dataset.key === key && list.childElementCount === job.files.length) return;
  list.dataset.key = key;
  const stem = job.name.replace(/\.[^.]*$/, '') || 'video';
  list.replaceChildren(...inOrder(job.files).map((file) => {
    const link = textElement('a', fileTitle(file.name));
    link.href = fileAddress(job.id, file.name, job.run);
    link.download = `${stem}-${file.name}`;
    const item = document.createElement('li');
    item.append(link, textElement('span', `${file.name}, ${bytes(file.size)}`));
    return item;
  }));
}
