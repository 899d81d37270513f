// The tree: nodes in preorder in typed arrays, its callers' view, and sums by
// function. No drawing, no DOM.
'use strict';

// As the encoder numbers them, and one more for inlined frames of any kind.
const KINDS = ['process', 'Go', 'native', 'kernel', 'unnamed'];

const data = JSON.parse(document.getElementById('profile').textContent);
const frameName = (f) => data.strings[data.frames[f][0]];
const frameFile = (f) => data.strings[data.frames[f][1]];
const frameStart = (f) => data.frames[f][2];
const frameKind = (f) => data.frames[f][3];
const frameInlined = (f) => data.frames[f][4] === 1;

function emptyTree(size) {
  return {
    size,
    frame: new Uint32Array(size),
    depth: new Uint32Array(size),
    parent: new Int32Array(size),
    line: new Uint32Array(size),
    self: new Float64Array(size),
    total: new Float64Array(size),
    start: new Float64Array(size), // samples left of the node
    next: new Uint32Array(size), // the node after the node's subtree
    rows: 0,
  };
}

// Fills in what follows from frame, depth, self and the preorder.
function complete(tree) {
  const path = [];
  for (let i = 0; i < tree.size; i++) {
    const depth = tree.depth[i];
    path[depth] = i;
    tree.parent[i] = depth === 0 ? -1 : path[depth - 1];
    tree.total[i] = tree.self[i];
    tree.next[i] = i + 1;
    tree.rows = Math.max(tree.rows, depth + 1);
  }
  for (let i = tree.size - 1; i > 0; i--) {
    const parent = tree.parent[i];
    tree.total[parent] += tree.total[i];
    tree.next[parent] = Math.max(tree.next[parent], tree.next[i]);
  }
  const cursor = new Float64Array(tree.size);
  for (let i = 1; i < tree.size; i++) {
    const parent = tree.parent[i];
    tree.start[i] = cursor[parent];
    cursor[parent] += tree.total[i];
    cursor[i] = tree.start[i];
  }
  return tree;
}

function calleesTree() {
  const tree = emptyTree(data.nodes.length);
  data.nodes.forEach(([frame, depth, self, line], i) => {
    tree.frame[i] = frame;
    tree.depth[i] = depth;
    tree.self[i] = self;
    tree.line[i] = line;
  });
  return complete(tree);
}

// The same samples merged from the leaf on: below the root come the functions
// that samples ended in, below each its callers.
function callersTree(tree) {
  const frame = [tree.frame[0]];
  const line = [0];
  const self = [0];
  const total = [0];
  const children = [[]];
  const known = new Map();
  for (let i = 1; i < tree.size; i++) {
    if (tree.self[i] === 0) continue;
    let node = 0;
    total[0] += tree.self[i];
    for (let at = i; at > 0; at = tree.parent[at]) {
      const key = node * data.frames.length + tree.frame[at];
      let child = known.get(key);
      if (child === undefined) {
        child = frame.length;
        known.set(key, child);
        frame.push(tree.frame[at]);
        line.push(tree.line[at]);
        self.push(0);
        total.push(0);
        children.push([]);
        children[node].push(child);
      } else if (line[child] !== tree.line[at]) {
        line[child] = 0; // it stands for several lines: name none of them
      }
      node = child;
      total[node] += tree.self[i];
    }
    self[node] += tree.self[i];
  }
  self[0] = tree.self[0];
  const out = emptyTree(frame.length);
  const stack = [[0, 0]];
  for (let i = 0; stack.length > 0; i++) {
    const [node, depth] = stack.pop();
    out.frame[i] = frame[node];
    out.depth[i] = depth;
    out.self[i] = self[node];
    out.line[i] = line[node];
    children[node].sort((a, b) => total[a] - total[b] || b - a);
    for (const child of children[node]) stack.push([child, depth + 1]);
  }
  return complete(out);
}

// Self and total samples by name, a recursive function's total counted once.
function sumFunctions(tree) {
  const functions = new Map();
  const open = new Map();
  const path = [];
  for (let i = 0; i < tree.size; i++) {
    while (path.length > tree.depth[i]) {
      const name = path.pop();
      open.set(name, open.get(name) - 1);
    }
    const f = tree.frame[i];
    const name = data.frames[f][0];
    path.push(name);
    const active = open.get(name) || 0;
    open.set(name, active + 1);
    let sum = functions.get(name);
    if (!sum) {
      sum = { name: frameName(f), frame: f, self: 0, total: 0 };
      functions.set(name, sum);
    }
    sum.self += tree.self[i];
    if (active === 0) sum.total += tree.total[i];
  }
  return functions;
}

// Which frames match, and the share of samples with a match in their stack.
function search(tree, regex) {
  const frames = data.frames.map((f) => f[3] !== 0 && regex.test(data.strings[f[0]]));
  const names = new Set();
  let samples = 0;
  for (let i = 0; i < tree.size; ) {
    if (frames[tree.frame[i]]) {
      samples += tree.total[i];
      i = tree.next[i];
    } else {
      i++;
    }
  }
  frames.forEach((hit, f) => hit && names.add(data.frames[f][0]));
  return { frames, samples, functions: names.size };
}
