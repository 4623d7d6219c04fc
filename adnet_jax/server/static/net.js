// What the page asks its server for; nobody else is asked for anything.

const job = (id) => `/api/jobs/${encodeURIComponent(id)}`;

export class ServerError extends Error {}

async function checked(response) {
  if (response.ok) return response;
  let sentence = `The program answered ${response.status}.`;
  try {
    sentence = (await response.json()).error ?? sentence;
  } catch { /* no JSON: the status has to do */ }
  throw new ServerError(sentence);
}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The program does not answer: was it stopped?');
  }
  return checked(response);
}

export const about = async () => (await ask('/api/about')).json();
export const show = async (id) => (await ask(job(id))).json();
export const remove = (id) => ask(job(id), {method: 'DELETE'});

export async function runAgain(id, frame) {
  const headers = {'Content-Type': 'application/json'};
  const response = await ask(`${job(id)}/anchor`, {method: 'POST', headers, body: JSON.stringify({frame})});
  return response.json();
}

// With progress, which fetch does not tell of what is sent.
export function upload(file, {also, anchor}, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append('also', also.join());
    form.append('anchor', anchor);
    form.append('file', file);
    request.open('POST', '/api/jobs');
    request.responseType = 'json';
    request.upload.onprogress = (event) => onProgress(event.lengthComputable ? event.loaded / event.total : null);
    request.onload = () => {
      if (request.status === 201) resolve(request.response);
      else reject(new ServerError(request.response?.error ?? `The program answered ${request.status}.`));
    };
    request.onerror = () => reject(new ServerError('The upload broke off: was the program stopped?'));
    request.onabort = () => reject(new DOMException('cancelled', 'AbortError'));
    signal.addEventListener('abort', () => request.abort());
    request.send(form);
  });
}

export function watch(id, {onJob, onMask, onLost}) {
  const source = new EventSource(`${job(id)}/events`);
  source.addEventListener('job', (event) => onJob(JSON.parse(event.data)));
  source.addEventListener('mask', (event) => onMask(JSON.parse(event.data)));
  source.addEventListener('error', () => onLost(source.readyState === EventSource.CLOSED));
  return source;
}

export async function similarity(id, {frame, x, y, of}, signal) {
  const query = new URLSearchParams({frame, x, y, of});
  const response = await ask(`${job(id)}/similarity?${query}`, {signal});
  const [px, py] = response.headers.get('Similarity-Peak').split(',').map(Number);
  return {map: await createImageBitmap(await response.blob()), peak: {x: px, y: py}};
}

export const fileAddress = (id, name, run) => `${job(id)}/files/${encodeURIComponent(name)}?run=${run}`;
export const frameAddress = (id, index) => `${job(id)}/files/frames/${index}.jpg`;
export const maskAddress = (id, index, run) => `${job(id)}/files/masks/${index}.png?run=${run}`;
