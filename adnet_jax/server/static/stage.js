// Draws a frame: a wipe from original over mask to cut-out, or a map of similarity, and the marks on it.

const NAMES = ['Original', 'Mask', 'Cut-out'];

// Which two pictures the wipe lies between, and the share of the width at which.
export function wipeAt(value) {
  const step = value <= 50 ? 0 : 1;
  const share = (value - 50 * step) / 50;
  return {before: step, after: step + 1, share};
}

export function wipeWords(value) {
  const {before, after, share} = wipeAt(value);
  if (share === 0) return NAMES[before];
  if (share === 1) return NAMES[after];
  return `${NAMES[after]} on the left ${Math.round(100 * share)} percent, ${NAMES[before]} on the right`;
}

export function wipeNames(value) {
  const {before, after, share} = wipeAt(value);
  return {left: share > 0 ? NAMES[after] : '', right: share < 1 ? NAMES[before] : ''};
}

function layer(canvas, frame, mask, kind) {
  const context = canvas.getContext('2d');
  const {width, height} = canvas;
  if (kind === 0 || !mask) {
    context.drawImage(frame, 0, 0, width, height);
    return;
  }
  if (kind === 1) {
    context.fillStyle = '#000';
    context.fillRect(0, 0, width, height);
    context.drawImage(mask, 0, 0, width, height);
    return;
  }
  const cut = new OffscreenCanvas(width, height);
  const pen = cut.getContext('2d');
  pen.drawImage(frame, 0, 0, width, height);
  pen.globalCompositeOperation = 'destination-in';
  pen.drawImage(mask, 0, 0, width, height);
  context.drawImage(cut, 0, 0);
}

export function fit(canvas, frame) {
  if (canvas.width !== frame.naturalWidth || canvas.height !== frame.naturalHeight) {
    canvas.width = frame.naturalWidth;
    canvas.height = frame.naturalHeight;
    canvas.style.setProperty('--aspect', canvas.width / canvas.height);
  }
}

export function drawWipe(canvas, frame, mask, value) {
  fit(canvas, frame);
  const context = canvas.getContext('2d');
  const {width, height} = canvas;
  context.clearRect(0, 0, width, height);
  const {before, after, share} = wipeAt(value);
  const x = share * width;
  for (const [kind, left, right] of [[after, 0, x], [before, x, width]]) {
    if (right <= left) continue;
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, height);
    context.clip();
    layer(canvas, frame, mask, kind);
    context.restore();
  }
  if (mask && share > 0 && share < 1) {
    const line = Math.max(2, width / 400);
    context.fillStyle = 'rgba(0, 0, 0, .55)';
    context.fillRect(x - line, 0, 2 * line, height);
    context.fillStyle = '#fff';
    context.fillRect(x - line / 2, 0, line, height);
  }
}

// Without its colours the frame does not mix with the map's.
export function drawMap(canvas, frame, map) {
  fit(canvas, frame);
  const context = canvas.getContext('2d');
  const {width, height} = canvas;
  context.clearRect(0, 0, width, height);
  context.filter = 'grayscale(1) brightness(.8)';
  context.drawImage(frame, 0, 0, width, height);
  context.filter = 'none';
  if (map) context.drawImage(map, 0, 0, width, height);
}

export function drawFrame(canvas, frame) {
  fit(canvas, frame);
  canvas.getContext('2d').drawImage(frame, 0, 0, canvas.width, canvas.height);
}

// Marks are shapes in black and white: they tell apart without colours, on any picture.
export function drawMark(canvas, place, size, kind) {
  const context = canvas.getContext('2d');
  const x = ((place.x + 0.5) / size.width) * canvas.width;
  const y = ((place.y + 0.5) / size.height) * canvas.height;
  // As large on a narrow picture as on a wide one.
  const unit = canvas.width / Math.max(canvas.clientWidth, 1);
  const path = new Path2D();
  if (kind === 'peak') {
    path.arc(x, y, 9 * unit, 0, 2 * Math.PI);
  } else {
    const [inner, outer] = [3 * unit, 12 * unit];
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + dx * inner, y + dy * inner);
      path.lineTo(x + dx * outer, y + dy * outer);
    }
  }
  for (const [colour, line] of [['#000', 5], ['#fff', 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line * unit;
    context.setLineDash(kind === 'cursor' && colour === '#fff' ? [3 * unit, 3 * unit] : []);
    context.stroke(path);
  }
  context.setLineDash([]);
}
