// The picture: draws what of the tree is in view, finds the node under a point.
// Only the visible part is ever painted, whatever the depth of the tree.

const ROW = 20;
const FONT_SIZE = 12;
const dark = matchMedia('(prefers-color-scheme: dark)');
const still = matchMedia('(prefers-reduced-motion: reduce)');
const graph = document.getElementById('graph');
const canvas = document.getElementById('canvas');
const context = canvas.getContext('2d');
const mono = getComputedStyle(document.documentElement).getPropertyValue('--mono');

// What is shown. `from` and `to` are the samples at the left and right edge.
const view = {
  tree: null, from: 0, to: 1, zoom: 0, selected: -1, hovered: -1,
  inverted: false, matches: null, width: 0, height: 0, scroll: 0, charWidth: 7,
};

// Hue, and for light and dark: saturation, lightness.
const COLORS = {
  process: [215, [14, 84], [10, 30]],
  Go: [197, [68, 74], [52, 33]],
  'Go inlined': [152, [45, 74], [36, 30]],
  native: [40, [85, 71], [58, 32]],
  'native inlined': [62, [62, 72], [40, 29]],
  kernel: [4, [76, 79], [44, 38]],
  unnamed: [260, [6, 76], [5, 38]],
};

function colorName(frame) {
  const kind = KINDS[frameKind(frame)];
  return frameInlined(frame) && COLORS[`${kind} inlined`] ? `${kind} inlined` : kind;
}

// Where a name's import path ends: receivers and type arguments hold slashes too.
function pathEnd(name) {
  const end = name.search(/[([]/);
  return name.lastIndexOf('/', end < 0 ? name.length : end) + 1;
}

// Frames of one package share a shade, so that neighbours can be told apart.
function packageOf(name) {
  const dot = name.indexOf('.', pathEnd(name));
  return dot < 0 ? name : name.slice(0, dot);
}

function shade(text) {
  let hash = 7;
  for (let i = 0; i < text.length; i++) hash = (hash * 31 + text.charCodeAt(i)) | 0;
  return ((hash >>> 0) % 1000) / 1000 - 0.5;
}

let fills = new Map();
function fillOf(frame) {
  let fill = fills.get(frame);
  if (!fill) {
    const [hue, light, night] = COLORS[colorName(frame)];
    const [saturation, lightness] = dark.matches ? night : light;
    const shift = frameKind(frame) === 0 ? 0 : shade(packageOf(frameName(frame)));
    fill = `hsl(${hue + shift * 22} ${saturation}% ${lightness + shift * 12}%)`;
    fills.set(frame, fill);
  }
  return fill;
}

function swatchColor(name) {
  const [hue, light, night] = COLORS[name];
  const [saturation, lightness] = dark.matches ? night : light;
  return `hsl(${hue} ${saturation}% ${lightness}%)`;
}

// The name, or what of it tells most in `chars` characters, or nothing.
function fitName(name, chars) {
  if (name.length <= chars) return name;
  if (chars < 3) return '';
  const short = name.slice(pathEnd(name));
  if (short.length <= chars) return short;
  return short.slice(0, chars - 1) + '…';
}

function resize() {
  const ratio = devicePixelRatio || 1;
  const atEnd = graph.scrollTop + view.height >= graph.scrollHeight - 1;
  view.width = graph.clientWidth;
  view.height = graph.clientHeight;
  canvas.width = Math.round(view.width * ratio);
  canvas.height = Math.round(view.height * ratio);
  canvas.style.width = `${view.width}px`;
  canvas.style.height = `${view.height}px`;
  const full = view.tree.rows * ROW + 8;
  document.getElementById('spacer').style.height = `${Math.max(0, full - view.height)}px`;
  if (view.inverted && atEnd) graph.scrollTop = graph.scrollHeight; // the root stays in sight
  draw();
}

function contentHeight() {
  return Math.max(view.tree.rows * ROW + 8, view.height);
}

function rowTop(depth) {
  const top = view.inverted ? contentHeight() - (depth + 1) * ROW - 4 : depth * ROW + 4;
  return top - view.scroll;
}

let pending = 0;
function redraw() {
  if (!pending) pending = requestAnimationFrame(draw);
}

function draw() {
  pending = 0;
  view.scroll = graph.scrollTop; // once: asking costs a layout check
  const { tree, width, height } = view;
  const ratio = canvas.width / Math.max(width, 1);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `${FONT_SIZE}px ${mono}`;
  context.textBaseline = 'middle';
  view.charWidth = context.measureText('0').width;
  const scale = width / (view.to - view.from);
  for (let i = 0; i < tree.size; ) {
    const left = (tree.start[i] - view.from) * scale;
    const right = left + tree.total[i] * scale;
    if (right <= 0 || left >= width || right - left < 0.4) {
      i = tree.next[i];
      continue;
    }
    const top = rowTop(tree.depth[i]);
    if (top > -ROW && top < height) drawNode(i, Math.max(left, 0), Math.min(right, width), top);
    i++;
  }
  outline(view.selected, 2);
  outline(view.hovered, 1);
}

function drawNode(i, left, right, top) {
  const frame = view.tree.frame[i];
  const hit = view.matches && view.matches.frames[frame];
  const dim = (view.matches && !hit) || view.tree.depth[i] < view.tree.depth[view.zoom];
  const gap = right - left > 3 ? 1 : 0;
  context.globalAlpha = dim ? (view.matches ? 0.45 : 0.55) : 1;
  context.fillStyle = hit ? (dark.matches ? 'hsl(302 48% 42%)' : 'hsl(302 75% 80%)') : fillOf(frame);
  context.fillRect(left, top, right - left - gap, ROW - 1);
  const text = fitName(frameName(frame), Math.floor((right - left - 9) / view.charWidth));
  if (text) {
    context.globalAlpha = dim ? 0.75 : 1;
    context.fillStyle = dark.matches ? '#f1f4f6' : '#14202a';
    context.fillText(text, left + 4, top + ROW / 2);
  }
  context.globalAlpha = 1;
}

function outline(i, weight) {
  if (i < 0) return;
  const { tree, width } = view;
  const scale = width / (view.to - view.from);
  const left = Math.max((tree.start[i] - view.from) * scale, 0);
  const right = Math.min((tree.start[i] + tree.total[i] - view.from) * scale, width);
  if (right <= left) return;
  context.strokeStyle = dark.matches ? '#ffffff' : '#10181f';
  context.lineWidth = weight;
  const inset = weight / 2;
  context.strokeRect(
    left + inset, rowTop(tree.depth[i]) + inset,
    Math.max(right - left - weight - 1, 1), ROW - 1 - weight,
  );
}

// The node under a point of the canvas, -1 for none.
function nodeAt(x, y) {
  const { tree } = view;
  const content = y + graph.scrollTop;
  const depth = Math.floor(((view.inverted ? contentHeight() - content : content) - 4) / ROW);
  if (depth < 0) return -1;
  const sample = view.from + (x / view.width) * (view.to - view.from);
  for (let i = 0; i < tree.size; ) {
    if (sample < tree.start[i] || sample >= tree.start[i] + tree.total[i]) {
      i = tree.next[i];
    } else if (tree.depth[i] === depth) {
      return i;
    } else {
      i++;
    }
  }
  return -1;
}

// Moves the left and right edge to a node's.
let animation = 0;
function moveTo(i, animated) {
  const { tree } = view;
  const from = tree.start[i];
  const to = from + Math.max(tree.total[i], 1e-9);
  const [from0, to0, begin] = [view.from, view.to, performance.now()];
  cancelAnimationFrame(animation);
  const step = (now) => {
    const part = animated && !still.matches ? Math.min(Math.max(now - begin, 0) / 180, 1) : 1;
    const eased = 1 - (1 - part) ** 3;
    view.from = from0 + (from - from0) * eased;
    view.to = to0 + (to - to0) * eased;
    draw();
    if (part < 1) animation = requestAnimationFrame(step);
  };
  step(begin);
}

// Scrolls so that a row is in sight.
function reveal(depth) {
  view.scroll = graph.scrollTop;
  const top = rowTop(depth);
  if (top < 4) graph.scrollTop += top - 4;
  else if (top + ROW > view.height) graph.scrollTop += top + ROW + 4 - view.height;
}
