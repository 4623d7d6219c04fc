// The page: a video goes in, its masks are shown as they come. State lives here, everything else is told what to show.

import * as net from './net.js';
import {showFiles, textElement} from './files.js';
import {Pictures} from './pictures.js';
import {pointAt} from './probe.js';
import {Similar} from './similar.js';
import * as stage from './stage.js';
import {Timeline} from './timeline.js';
import * as words from './words.js';

const at = (id) => document.getElementById(id);
const picture = at('picture');
const anchorPicture = at('anchor');

let about = null;
let job = null; // as the server describes it
let source = null; // of its events
let pictures = null;
let uploading = null;
let shown = 0; // frame on the stage
let follow = true; // show each mask as it comes
let cursor = null; // {on, x, y}: the keyboard's cross
let playing = false;
let said = '';
let drawing = false;
let drawAgain = false;

const similar = new Similar(() => draw());
const timeline = new Timeline(at('film'), (frame) => {
  playing = false;
  show(frame);
});
const ended = ({state}) => state === 'done' || state === 'failed';
const size = () => ({width: job?.width ?? 1, height: job?.height ?? 1});

// Starting ------------------------------------------------------------------------------------------------------------

// With `kept` the browser's Back leads to the job that was shown.
function showStart(problem = '', kept = false) {
  source?.close();
  [source, job, pictures, uploading] = [null, null, null, null];
  playing = false;
  if (kept) history.pushState(null, '', location.pathname);
  else history.replaceState(null, '', location.pathname);
  at('work').hidden = true;
  at('start').hidden = false;
  at('file').value = '';
  at('start-error').textContent = problem;
  at('start-error').hidden = !problem;
  document.title = 'AD-Net: cut the moving thing out of a video';
}

function showWork(name) {
  at('start').hidden = true;
  at('work').hidden = false;
  at('name').textContent = name;
  at('error').hidden = true;
  at('warnings').hidden = true;
  at('files').replaceChildren();
  at('film').replaceChildren();
  for (const canvas of [picture, anchorPicture]) canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height);
  at('work').dataset.state = 'uploading';
  similar.point(null);
  [shown, follow, cursor] = [0, true, null];
}

const wanted = () => ({
  also: [...document.querySelectorAll('#also input:checked')].map((box) => box.value),
  anchor: at('auto').checked ? 'auto' : 'first',
});

async function send(file) {
  const most = about?.limits.bytes;
  if (file.size > most) return showStart(`The file is too large: at most ${words.bytes(most)} are taken.`);
  source?.close();
  showWork(file.name);
  at('facts').textContent = words.bytes(file.size);
  at('cancel').textContent = 'Cancel';
  at('another').hidden = true;
  at('status').textContent = 'Uploading';
  at('bar').removeAttribute('value');
  say('Uploading');
  uploading = new AbortController();
  try {
    const created = await net.upload(file, wanted(), (share) => {
      if (share === null) return;
      at('bar').value = share;
      at('status').textContent = share < 1 ? `Uploading, ${Math.floor(100 * share)} %` : 'Looking at the video';
    }, uploading.signal);
    uploading = null;
    open(created);
  } catch (error) {
    showStart(error.name === 'AbortError' ? 'The upload was cancelled.' : error.message);
  }
}

function open(description) {
  pictures = new Pictures(description.id);
  history.replaceState(null, '', `#${description.id}`);
  take(description);
  source = net.watch(description.id, {
    onJob: take,
    onMask: ({run, index, png}) => {
      if (!job || run !== job.run) return;
      pictures.putMask(index, png);
      if (follow && job.state === 'running') show(index, false);
    },
    onLost: (forever) => {
      if (!job) return;
      at('status').textContent = forever ? 'The program does not know this job any more' : 'Waiting for the program';
    },
  });
}

// A description of the job --------------------------------------------------------------------------------------------

function take(description) {
  const again = job && job.run !== description.run;
  job = description;
  pictures.startRun(job.run);
  if (job.state === 'cancelled') {
    showStart('The job was cancelled and its files are removed.');
    return;
  }
  if (again) follow = true;
  const frames = job.frames ?? job.read;
  at('work').dataset.state = job.state;
  at('name').textContent = job.name;
  document.title = `${job.name}: AD-Net`;
  at('facts').textContent = [
    `${job.width} × ${job.height}`, job.frames && `${job.frames.toLocaleString('en')} frames`, `${job.rate} per second`,
  ].filter(Boolean).join(', ');
  at('status').textContent = words.status(job);
  say(words.milestone(job));
  if (job.state === 'done') at('bar').value = 1;
  else if (job.state === 'running' && job.done && job.frames) at('bar').value = job.done / job.frames;
  else if (job.state === 'failed') at('bar').value = 0;
  else at('bar').removeAttribute('value');
  at('error').hidden = !job.error;
  if (at('error').textContent !== (job.error ?? '')) at('error').textContent = job.error ?? '';
  at('warnings').hidden = !job.warnings.length;
  at('warnings').replaceChildren(...job.warnings.map((text) => textElement('li', text)));
  at('cancel').textContent = ended(job) ? 'Remove' : 'Cancel';
  at('another').hidden = !ended(job);
  at('follow').hidden = job.state !== 'running' && job.state !== 'queued';
  at('frame').max = Math.max(0, frames - 1);
  showFiles(at('files'), at('no-files'), job);
  timeline.draw(job.id, frames, job.read, job.anchors);
  show(Math.min(shown, job.read - 1), false);
}

function say(text) {
  if (text === said) return;
  said = text;
  at('said').textContent = text;
}

// Frames --------------------------------------------------------------------------------------------------------------

function show(index, byUser = true) {
  if (!job || index < 0) return;
  shown = index;
  if (byUser) follow = false;
  at('follow').setAttribute('aria-pressed', follow);
  const anchor = words.anchorOf(job, index);
  at('anchor-number').textContent = `frame ${anchor}`;
  timeline.mark(job.anchors, index);
  at('again').hidden = follow && job.state === 'running';
  at('again').disabled = index === anchor;
  at('again').textContent = index === anchor ? `Frame ${index} is the anchor` : `Segment again from frame ${index}`;
  at('frame').value = index;
  at('frame').setAttribute('aria-valuetext', `frame ${index}`);
  at('where').textContent = `${index} / ${(job.frames ?? job.read) - 1}`;
  draw();
}

// What was asked for while a picture loads is drawn next, and only the newest of it.
async function draw() {
  if (drawing) {
    drawAgain = true;
    return;
  }
  drawing = true;
  try {
    do {
      drawAgain = false;
      await drawOnce();
    } while (drawAgain);
  } finally {
    drawing = false;
  }
}

async function drawOnce() {
  if (!job || !job.read) return;
  const [index, anchor, of] = [shown, words.anchorOf(job, shown), pictures];
  let frame;
  let anchorFrame;
  let mask = null;
  try {
    [frame, anchorFrame] = await Promise.all([of.frame(index), of.frame(anchor)]);
    if (index < job?.done) mask = await of.mask(index);
  } catch {
    if (!frame || !anchorFrame) return; // removed meanwhile
  }
  if (!job || of !== pictures) return;
  const {probe} = similar;
  const found = similar.mapFor(job, index);
  const value = Number(at('wipe').value);
  if (probe?.of === 'anchor') stage.drawMap(picture, frame, found?.map);
  else stage.drawWipe(picture, frame, mask, value);
  if (probe?.of === 'frame') stage.drawMap(anchorPicture, anchorFrame, found?.map);
  else stage.drawFrame(anchorPicture, anchorFrame);
  if (probe) {
    const [here, there] = probe.of === 'frame' ? [picture, anchorPicture] : [anchorPicture, picture];
    stage.drawMark(here, probe, size(), 'cross');
    if (found) stage.drawMark(there, found.peak, size(), 'peak');
  }
  if (cursor) stage.drawMark(cursor.on, cursor, size(), 'cursor');
  picture.dataset.frame = index;
  picture.dataset.mask = mask ? job.run : '';
  const names = probe?.of === 'anchor' ? {left: 'Similarity', right: ''} : stage.wipeNames(value);
  const pending = probe?.of !== 'anchor' && !mask && value > 0;
  at('tag-left').textContent = pending ? 'No mask yet' : names.left;
  at('tag-right').textContent = pending ? '' : names.right;
  showLegend(found);
}

function showLegend(found) {
  const {probe, problem} = similar;
  at('hint').hidden = Boolean(probe);
  at('legend').hidden = !probe;
  if (!probe) return;
  const [one, other] = probe.of === 'frame' ? [`frame ${shown}`, 'the anchor'] : ['the anchor', `frame ${shown}`];
  const asked = `Pixel ${probe.x}, ${probe.y} of ${one} (cross)`;
  const answer = found ? `most alike in ${other}: ${found.peak.x}, ${found.peak.y} (ring).` : 'comparing …';
  const text = problem || `${asked}, ${answer}`;
  if (at('peak').textContent === text) return;
  at('peak').textContent = text;
  if (found) say(text);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function play() {
  playing = !playing;
  showPlaying();
  while (playing && job) {
    const next = performance.now() + 1000 / Math.min(60, Math.max(1, job.rate));
    const end = Math.max(job.done, 1);
    show((shown + 1) % end);
    try {
      await pictures.frame(shown);
    } catch {
      break;
    }
    await pause(Math.max(0, next - performance.now()));
  }
  playing = false;
  showPlaying();
}

function showPlaying() {
  at('play').setAttribute('aria-label', playing ? 'Pause' : 'Play');
  at('play').classList.toggle('playing', playing);
}

// Anchor --------------------------------------------------------------------------------------------------------------

async function runAgain() {
  try {
    const description = await net.runAgain(job.id, shown);
    similar.point(null);
    take(description);
  } catch (error) {
    at('error').textContent = error.message;
    at('error').hidden = false;
  }
}

// Similarity ----------------------------------------------------------------------------------------------------------

for (const [canvas, of] of [[picture, 'frame'], [anchorPicture, 'anchor']]) {
  pointAt(canvas, size, {
    onPick: (place, dragged) => {
      if (!job?.read || !about?.similarity) return;
      similar.point({of, ...place});
      draw();
      if (!dragged) (canvas === picture ? at('anchor-card') : at('stage')).scrollIntoView({block: 'nearest'});
    },
    onCursor: (place) => {
      cursor = place && {on: canvas, ...place};
      draw();
    },
    onLeave: hideSimilarity,
  });
}

function hideSimilarity() {
  cursor = null;
  similar.point(null);
  draw();
}

// Controls ------------------------------------------------------------------------------------------------------------

function setWipe(value) {
  at('wipe').value = value;
  at('wipe').setAttribute('aria-valuetext', stage.wipeWords(Number(value)));
  for (const button of document.querySelectorAll('[data-stop]')) {
    button.setAttribute('aria-pressed', button.dataset.stop === String(value));
  }
  if (similar.probe?.of === 'anchor') similar.point(null);
  draw();
}

at('wipe').addEventListener('input', (event) => setWipe(event.target.value));
for (const button of document.querySelectorAll('[data-stop]')) {
  button.addEventListener('click', () => setWipe(button.dataset.stop));
}
at('frame').addEventListener('input', (event) => {
  playing = false;
  show(Math.min(Number(event.target.value), job.read - 1)); // not beyond what has been read
});
at('play').addEventListener('click', play);
at('follow').addEventListener('click', () => {
  follow = !follow;
  if (follow) show(Math.max(0, job.done - 1), false);
  else at('follow').setAttribute('aria-pressed', false);
});
at('again').addEventListener('click', runAgain);
at('clear').addEventListener('click', () => {
  hideSimilarity();
  anchorPicture.focus();
});
at('cancel').addEventListener('click', async () => {
  if (uploading) return uploading.abort();
  const {id} = job;
  const was = ended(job);
  source?.close();
  try {
    await net.remove(id);
    showStart(was ? 'The video and its results are removed.' : 'The job was cancelled and its files are removed.');
  } catch (error) {
    showStart(error.message);
  }
});
at('another').addEventListener('click', () => {
  showStart('', true);
  at('file').focus();
});
at('file').addEventListener('change', (event) => event.target.files.length && send(event.target.files[0]));
addEventListener('resize', () => job && (timeline.draw(job.id, job.frames ?? job.read, job.read, job.anchors),
  timeline.mark(job.anchors, shown), draw()));

// What is under way ends by Cancel alone.
const busy = () => uploading || (job && !ended(job));

for (const kind of ['dragover', 'dragleave', 'drop']) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle('dropping', kind === 'dragover' && !busy());
    if (kind === 'drop' && event.dataTransfer.files.length && !busy()) send(event.dataTransfer.files[0]);
  });
}

async function begin() {
  setWipe(25);
  try {
    about = await net.about();
    at('about').textContent = `Model ${about.model}. Nothing leaves this machine.`;
    const {bytes, frames} = about.limits;
    at('limits').textContent =
      `MP4, MOV, WebM, MKV, AVI or GIF; up to ${words.bytes(bytes)} and ${frames.toLocaleString('en')} frames`;
    if (!about.similarity) at('hint').textContent = 'This model compares no pixels.';
  } catch (error) {
    return showStart(error.message);
  }
  if (location.hash.length > 1) await visit();
}

// The job that the address names.
async function visit() {
  const id = location.hash.slice(1);
  source?.close();
  if (!id) return showStart();
  try {
    const description = await net.show(id);
    job = null;
    showWork(description.name);
    open(description);
  } catch (error) {
    showStart(error.message);
  }
}

addEventListener('popstate', () => !uploading && visit());

begin();
