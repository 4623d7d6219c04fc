// Pointing at pixels of a canvas, by mouse, finger or keyboard.

const STEP = 1 / 40;

// Calls onPick({x, y}) in pixels of the clip's frames, onCursor(place or null) while arrow keys move a cross.
export function pointAt(canvas, size, {onPick, onCursor, onLeave}) {
  let cursor = null;

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const {width, height} = size();
    const at = (value, length, count) => Math.min(count - 1, Math.max(0, Math.floor((value / length) * count)));
    return {x: at(event.clientX - box.left, box.width, width), y: at(event.clientY - box.top, box.height, height)};
  };

  canvas.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    cursor = null;
    onPick(place(event));
  });
  canvas.addEventListener('pointermove', (event) => {
    // A finger scrolls the page; a mouse that is held down drags the pixel along.
    if (event.pointerType === 'mouse' && event.buttons === 1) onPick(place(event), true);
  });
  canvas.addEventListener('keydown', (event) => {
    const {width, height} = size();
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    if (event.key in moves) {
      cursor ??= {x: Math.floor(width / 2), y: Math.floor(height / 2)};
      const pixels = event.shiftKey ? 1 : Math.max(1, Math.round(width * STEP));
      const [dx, dy] = moves[event.key];
      cursor = {
        x: Math.min(width - 1, Math.max(0, cursor.x + dx * pixels)),
        y: Math.min(height - 1, Math.max(0, cursor.y + dy * pixels)),
      };
      onCursor(cursor);
    } else if (event.key === 'Enter' || event.key === ' ') {
      onPick(cursor ?? {x: Math.floor(width / 2), y: Math.floor(height / 2)});
    } else if (event.key === 'Escape') {
      cursor = null;
      onLeave();
    } else {
      return;
    }
    event.preventDefault();
  });
  canvas.addEventListener('blur', () => {
    cursor = null;
    onCursor(null);
  });
}
