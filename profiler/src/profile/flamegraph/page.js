// The page around the picture: header, search, zoom, keys, tooltip, list of
// functions, and the state in the address (#q=regex&z=node&callers&invert).

const byId = (id) => document.getElementById(id);
const callees = calleesTree();
const samples = callees.total[0];
const functions = sumFunctions(callees);
let callers = null;

const count = (n) => n.toLocaleString('en-US');
const percent = (n, of, digits = 2) => (of > 0 ? `${((100 * n) / of).toFixed(n === of ? 0 : digits)}%` : '0%');

function time(ns) {
  if (ns >= 60e9) return `${Math.floor(ns / 60e9)} min ${((ns % 60e9) / 1e9).toFixed(0)} s`;
  if (ns >= 1e9) return `${(ns / 1e9).toFixed(2)} s`;
  if (ns >= 1e6) return `${(ns / 1e6).toFixed(1)} ms`;
  return ns > 0 ? `${(ns / 1e3).toFixed(0)} µs` : '0';
}

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = n > 0 ? Math.min(Math.floor(Math.log2(n) / 10), units.length - 1) : 0;
  return `${power > 0 ? (n / 1024 ** power).toFixed(1) : n} ${units[power]}`;
}

// What nodes count, as a person reads it.
const formats = { bytes, nanoseconds: time };
const amount = formats[data.unit] || count;

function element(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}

function swatch(name) {
  const e = element('span', undefined, 'swatch');
  e.style.background = swatchColor(name);
  return e;
}

// ---- header -------------------------------------------------------------

function writeHeader() {
  byId('title').textContent = `${data.event === 'cpu' ? 'CPU' : data.event} flame graph`;
  byId('subject').textContent = data.subject;
  byId('subject').title = data.subject;
  const cpu = samples * data.periodNs;
  const cores = data.durationNs > 0 ? cpu / data.durationNs : 0;
  const facts = [[data.value.replace('_', ' '), amount(samples)]];
  if (data.durationNs > 0) facts.push(['duration', time(data.durationNs)]);
  if (data.periodNs > 0) {
    facts.push(['rate', `${+(1e9 / data.periodNs).toFixed(1)} Hz`]);
    if (data.event === 'cpu') facts.push(['CPU time', `${time(cpu)} (${cores.toFixed(2)} cores)`]);
  }
  facts.push(
    ['recorded', `${new Date(data.startMs).toISOString().slice(0, 19).replace('T', ' ')} UTC`],
    ['by', data.generator],
  );
  for (const [name, value] of facts) {
    const fact = element('div');
    fact.append(element('dt', name), element('dd', value));
    byId('facts').append(fact);
  }
  byId('notes').hidden = data.notes.length === 0;
  byId('notes').textContent = data.notes.join('\n');
}

function writeLegend() {
  const shares = new Map();
  for (let i = 0; i < callees.size; i++) {
    const name = colorName(callees.frame[i]);
    shares.set(name, (shares.get(name) || 0) + callees.self[i]);
  }
  byId('legend').replaceChildren();
  for (const name of Object.keys(COLORS)) {
    if (name === 'process' || !shares.has(name)) continue;
    const item = element('li');
    item.append(swatch(name), name, element('b', percent(shares.get(name), samples, 1)));
    byId('legend').append(item);
  }
}

// ---- tooltip and status -------------------------------------------------

function where(tree, i) {
  const frame = tree.frame[i];
  const line = tree.line[i] || frameStart(frame);
  return frameFile(frame) + (frameFile(frame) && line ? `:${line}` : '');
}

function describe(i) {
  const { tree } = view;
  const frame = tree.frame[i];
  const own = tree === callees ? tree.self[i] : 0;
  const figures = (n) => {
    const shown = [amount(n), percent(n, samples)];
    return data.periodNs > 0 ? [...shown, time(n * data.periodNs)] : shown;
  };
  const rows = [
    ['', data.value.replace('_', ' '), 'share', ...(data.periodNs > 0 ? ['time'] : [])],
    ['total', ...figures(tree.total[i])],
  ];
  if (tree === callees) rows.push(['self', ...figures(own)]);
  const sum = functions.get(data.frames[frame][0]);
  if (frameKind(frame) !== 0 && (sum.total !== tree.total[i] || sum.self !== own)) {
    rows.push(
      ['everywhere, total', ...figures(sum.total)],
      ['everywhere, self', ...figures(sum.self)],
    );
  }
  return rows;
}

function showTooltip(i, x, y) {
  const tooltip = byId('tooltip');
  if (i < 0) {
    tooltip.hidden = true;
    return;
  }
  const frame = view.tree.frame[i];
  const table = element('table');
  for (const [head, ...cells] of describe(i)) {
    const row = element('tr');
    row.append(element('th', head), ...cells.map((c) => element('td', c)));
    table.append(row);
  }
  const kind = element('div', undefined, 'kind');
  const start = frameStart(frame) ? `, begins at line ${frameStart(frame)}` : '';
  const text = KINDS[frameKind(frame)] + (frameInlined(frame) ? ', inlined' : '');
  kind.append(swatch(colorName(frame)), text + start);
  tooltip.replaceChildren(
    element('div', frameName(frame), 'name'),
    element('div', where(view.tree, i), 'where'), kind, table,
  );
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = Math.min(x + 14, innerWidth - width - 8);
  const below = y + 18 + height < innerHeight;
  tooltip.style.left = `${Math.max(left, 8)}px`;
  tooltip.style.top = `${below ? y + 18 : Math.max(y - height - 12, 8)}px`;
}

function writeStatus() {
  const i = view.hovered >= 0 ? view.hovered : view.selected >= 0 ? view.selected : view.zoom;
  const { tree } = view;
  const parts = [frameName(tree.frame[i]), where(tree, i)];
  const n = tree.total[i];
  const total = data.value === 'samples' ? `${count(n)} sample${n === 1 ? '' : 's'}` : amount(n);
  parts.push(`${total}, ${percent(n, samples)}`);
  if (view.zoom > 0 && i !== view.zoom) parts.push(`${percent(tree.total[i], tree.total[view.zoom])} of the zoom`);
  byId('status').textContent = parts.filter(Boolean).join('  ·  ');
  byId('copy').hidden = i === 0;
}

async function copyName() {
  const i = view.hovered >= 0 ? view.hovered : view.selected >= 0 ? view.selected : view.zoom;
  const name = frameName(view.tree.frame[i]);
  try {
    await navigator.clipboard.writeText(name);
    byId('status').textContent = `copied ${name}`;
  } catch {
    // Files opened from disk may be kept from the clipboard: leave it selected.
    byId('status').textContent = name;
    getSelection().selectAllChildren(byId('status'));
    document.execCommand('copy');
  }
}

// ---- state --------------------------------------------------------------

function zoomTo(i, animated = true) {
  view.zoom = i;
  view.selected = i > 0 ? i : -1;
  byId('reset').disabled = i === 0;
  moveTo(i, animated);
  writeStatus();
  saveState();
}

function showTree(asCallers) {
  if (asCallers && !callers) callers = callersTree(callees);
  view.tree = asCallers ? callers : callees;
  view.hovered = -1;
  byId('callers').ariaPressed = String(asCallers);
  byId('callees').ariaPressed = String(!asCallers);
  resize();
  zoomTo(0, false);
  graph.scrollTop = view.inverted ? graph.scrollHeight : 0;
}

function setInverted(inverted) {
  view.inverted = inverted;
  byId('invert').ariaPressed = String(inverted);
  graph.scrollTop = inverted ? graph.scrollHeight : 0;
  redraw();
  saveState();
}

// Case matters only where the expression has a capital letter.
function setQuery(text) {
  if (byId('query').value !== text) byId('query').value = text;
  view.matches = null;
  let message = '';
  let invalid = false;
  if (text) {
    try {
      view.matches = search(callees, new RegExp(text, /[A-Z]/.test(text) ? '' : 'i'));
      const found = view.matches.functions;
      message = `${percent(view.matches.samples, samples)} in ${count(found)} function${found === 1 ? '' : 's'}`;
    } catch {
      invalid = true;
      message = 'not a regular expression';
    }
  }
  byId('query').ariaInvalid = String(invalid);
  byId('matched').textContent = message;
  redraw();
  saveState();
}

let loading = true;
function saveState() {
  if (loading) return;
  const state = [];
  if (byId('query').value) state.push(`q=${encodeURIComponent(byId('query').value)}`);
  if (view.zoom > 0) state.push(`z=${view.zoom}`);
  if (view.tree === callers) state.push('callers');
  if (view.inverted) state.push('invert');
  if (!byId('panel').hidden) state.push('functions');
  try {
    history.replaceState(null, '', state.length ? `#${state.join('&')}` : location.pathname + location.search);
  } catch {
    // A browser may forbid this for files; the state is then not kept.
  }
}

function loadState() {
  const state = new URLSearchParams(location.hash.slice(1));
  loading = true;
  setInverted(state.has('invert'));
  showTree(state.has('callers'));
  showPanel(state.has('functions'));
  const zoom = Number(state.get('z') || 0);
  if (Number.isInteger(zoom) && zoom > 0 && zoom < view.tree.size) {
    zoomTo(zoom, false);
    reveal(view.tree.depth[zoom]);
  }
  setQuery(state.get('q') || '');
  loading = false;
}

// ---- list of functions --------------------------------------------------

let sortBy = 'self';
function writePanel() {
  const list = [...functions.values()].filter((f) => frameKind(f.frame) !== 0);
  list.sort((a, b) =>
    (sortBy === 'name' ? 0 : b[sortBy] - a[sortBy]) || (a.name < b.name ? -1 : Number(a.name > b.name)));
  const rows = list.slice(0, 500).map((f) => {
    const row = element('tr');
    const name = element('td');
    name.append(swatch(colorName(f.frame)), f.name);
    name.title = f.name;
    row.append(element('td', percent(f.self, samples)), element('td', percent(f.total, samples)), name);
    row.tabIndex = 0;
    row.onclick = () => setQuery(`^${f.name.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')}$`);
    row.onkeydown = (event) => event.key === 'Enter' && row.onclick();
    return row;
  });
  if (list.length > rows.length) {
    const row = element('tr');
    row.append(element('td'), element('td'), element('td', `${count(list.length - rows.length)} more`));
    rows.push(row);
  }
  byId('rows').replaceChildren(...rows);
  for (const button of document.querySelectorAll('#panel th button')) {
    const cell = button.parentElement;
    if (button.dataset.sort === sortBy) cell.ariaSort = sortBy === 'name' ? 'ascending' : 'descending';
    else cell.removeAttribute('aria-sort');
  }
}

function showPanel(shown) {
  byId('panel').hidden = !shown;
  byId('functions').ariaPressed = String(shown);
  if (shown) writePanel();
  saveState();
}

// ---- events -------------------------------------------------------------

function neighbour(key) {
  const { tree } = view;
  const i = view.selected < 0 ? view.zoom : view.selected;
  const parent = tree.parent[i];
  const down = view.inverted ? 'ArrowUp' : 'ArrowDown';
  if (key === down) return tree.next[i] > i + 1 ? i + 1 : i;
  if (key === 'ArrowUp' || key === 'ArrowDown') return Math.max(parent, 0);
  if (parent < 0) return i;
  if (key === 'ArrowRight') return tree.next[i] < tree.next[parent] ? tree.next[i] : i;
  let left = parent + 1;
  while (tree.next[left] < i) left = tree.next[left];
  return tree.next[left] === i ? left : i;
}

function select(i) {
  view.selected = i;
  view.hovered = -1;
  showTooltip(-1);
  const outside = i < view.zoom || i >= view.tree.next[view.zoom];
  if (outside) zoomTo(view.tree.parent[view.zoom] >= 0 ? view.tree.parent[view.zoom] : 0);
  view.selected = i;
  reveal(view.tree.depth[i]);
  redraw();
  writeStatus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId('keys').open) return;
  const inField = event.target === byId('query');
  if (event.key === 'Escape') {
    if (byId('query').value) setQuery('');
    else zoomTo(0);
    graph.focus();
  } else if (inField) {
    if (event.key === 'Enter') graph.focus();
    return;
  } else if (event.key.startsWith('Arrow') && !byId('panel').contains(event.target)) {
    select(neighbour(event.key));
  } else if (event.key === 'Enter' && event.target === graph) {
    if (view.selected >= 0) zoomTo(view.selected);
  } else if (event.key === 'Backspace') {
    zoomTo(Math.max(view.tree.parent[view.zoom], 0));
  } else {
    const action = {
      '/': () => byId('query').select(),
      '?': () => byId('keys').showModal(),
      b: () => showTree(view.tree !== callers),
      i: () => setInverted(!view.inverted),
      t: () => showPanel(byId('panel').hidden),
      c: copyName,
    }[event.key.toLowerCase()];
    if (!action) return;
    action();
  }
  event.preventDefault();
}

function hover(i, event) {
  canvas.className = i >= 0 ? 'over' : '';
  showTooltip(i, event.clientX, event.clientY);
  if (i === view.hovered) return;
  view.hovered = i;
  redraw();
  writeStatus();
}

canvas.onmousemove = (event) => hover(nodeAt(event.offsetX, event.offsetY), event);
canvas.onmouseleave = (event) => hover(-1, event);
canvas.onclick = (event) => {
  const i = nodeAt(event.offsetX, event.offsetY);
  if (i < 0) return;
  if (event.ctrlKey || event.metaKey) copyName();
  else zoomTo(i);
};
graph.onscroll = () => {
  showTooltip(-1);
  redraw();
};
byId('query').oninput = () => setQuery(byId('query').value);
byId('callees').onclick = () => showTree(false);
byId('callers').onclick = () => showTree(true);
byId('invert').onclick = () => setInverted(!view.inverted);
byId('functions').onclick = () => showPanel(byId('panel').hidden);
byId('reset').onclick = () => zoomTo(0);
byId('help').onclick = () => byId('keys').showModal();
byId('copy').onclick = copyName;
for (const button of document.querySelectorAll('#panel th button')) {
  button.onclick = () => {
    sortBy = button.dataset.sort;
    writePanel();
  };
}
document.addEventListener('keydown', onKey);
addEventListener('hashchange', loadState);
dark.addEventListener('change', () => {
  fills = new Map();
  writeLegend();
  if (!byId('panel').hidden) writePanel();
  redraw();
});

view.tree = callees;
writeHeader();
writeLegend();
resize();
loadState();
new ResizeObserver(resize).observe(graph);
