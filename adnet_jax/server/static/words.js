// Numbers as words for the page.

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(count < 1e4 ? 1 : 0)} kB`;
  if (count < 1e9) return `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
  return `${Number((count / 1e9).toFixed(1))} GB`;
}

export function duration(seconds) {
  if (seconds < 1.5) return 'a second';
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const count = (n, one, many) => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;

export function status(job) {
  const of = job.frames ? ` of ${job.frames.toLocaleString('en')}` : '';
  switch (job.state) {
    case 'queued':
      return job.place > 1 ? `Waiting, number ${job.place} in line` : 'Waiting, next in line';
    case 'running':
      if (job.frames && job.done >= job.frames) return `All ${count(job.done, 'mask', 'masks')} done, finishing the files`;
      if (!job.done) return 'Getting ready: the first mask takes the longest';
      return `${job.done.toLocaleString('en')}${of} masks` +
        (job.seconds_left == null ? '' : `, about ${duration(job.seconds_left)} left`);
    case 'done':
      return `Done: ${count(job.done, 'mask', 'masks')} in ${duration(job.seconds)}`;
    case 'failed':
      return job.done ? `Stopped after ${count(job.done, 'mask', 'masks')}` : 'This did not work';
    default:
      return 'Cancelled';
  }
}

// For screen readers: the same, but only when something worth hearing has changed.
export function milestone(job) {
  if (job.state !== 'running' || !job.frames) return status(job);
  const quarter = Math.floor((4 * job.done) / job.frames);
  return job.done ? `${quarter * 25} percent done` : status(job);
}

// In the order in which they are offered.
const KNOWN = {
  'masks.zip': 'Masks, a PNG for each frame',
  'overlay.mp4': 'Video with the mask drawn in',
  'cutout.webm': 'Transparent video, WebM',
  'cutout.mov': 'Transparent video, ProRes 4444',
  'cutouts.zip': 'Transparent pictures, a PNG for each frame',
  'background.mp4': 'Video with its background blurred',
  'comparison.mp4': 'Frame and mask side by side',
  'heatmaps.zip': 'Soft maps, 16 bit',
  'outlines.zip': 'Outlines, an SVG for each frame',
  'outline.svg': 'All outlines, an SVG that plays',
  'detections.json': 'Run lengths, COCO JSON',
  'summary.json': 'Summary: model, sizes, times',
};

export const fileTitle = (name) => KNOWN[name] ?? name;

export function inOrder(files) {
  const names = Object.keys(KNOWN);
  const rank = ({name}) => (name in KNOWN ? names.indexOf(name) : names.length);
  return [...files].sort((one, other) => rank(one) - rank(other));
}

// The anchor of a frame: the last one up to it, or the only one.
export const anchorOf = (job, frame) => job.anchors.findLast((one) => one <= frame) ?? job.anchor;
