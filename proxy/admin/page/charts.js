// The last hour of a project, minute by minute: three charts, the values of one minute in words, and a table.

import { SVG, attribute, clock, count, list, make, milliseconds, number, set } from './dom.js';

const LEAST = 10, MOST = 60;

export class Hour {
  // The charts within the parts `at` of a card. The axis begins with the proxy's start, or an hour ago.
  constructor(at) {
    this.at = at;
    this.cells = [];
    this.pointed = null; // the minute under the pointer; else the slider's
    this.follows = true;
    at.minute.addEventListener('input', () => {
      this.follows = Number(at.minute.value) === this.now;
      this.read();
    });
    for (const kind of ['requests', 'latency', 'slots']) {
      const svg = at[`${kind}-chart`];
      const point = (event) => {
        const box = svg.getBoundingClientRect(), place = Math.floor((event.clientX - box.left) / box.width * this.cells.length);
        this.pointed = Math.max(0, Math.min(this.now, place));
        this.read();
      };
      svg.addEventListener('pointermove', point);
      svg.addEventListener('pointerdown', point);
      svg.addEventListener('pointerleave', (event) => {
        if (event.pointerType === 'touch') return; // a finger that was lifted leaves its minute to be read
        this.pointed = null;
        this.read();
      });
    }
  }

  update(project, status) {
    const start = Math.floor(status.started_at / 60) * 60;
    const last = Math.floor((status.started_at + status.uptime_s) / 60) * 60; // by the proxy's clock
    const length = Math.max(LEAST, Math.min(MOST, (last - start) / 60 + 1));
    const first = Math.max(start, last - (MOST - 1) * 60);
    if (first !== this.first && this.pointed !== null) this.pointed = Math.max(0, this.pointed - 1);
    this.first = first;
    this.now = (last - first) / 60;
    this.limit = project.slots.limit;
    const cells = new Array(length).fill(null);
    for (const minute of project.hour || []) {
      const place = (minute.at - first) / 60;
      if (place >= 0 && place < length) cells[place] = minute;
    }
    this.cells = cells;
    const { at } = this, fromStart = first === start ? `${clock(first * 1000)}, the start` : clock(first * 1000);
    for (const kind of ['requests', 'latency', 'slots']) {
      attribute(at[`${kind}-chart`], 'viewBox', `0 0 ${length * 10} 100`);
      set(at[`${kind}-from`], fromStart);
      set(at[`${kind}-to`], clock((first + (length - 1) * 60) * 1000));
    }
    attribute(at.minute, 'max', String(this.now));
    if (this.follows) at.minute.value = String(this.now);
    this.draw();
    this.tabulate();
    this.read();
  }

  draw() {
    const { at, cells } = this, seen = cells.filter(Boolean);
    const most = Math.max(0, ...seen.map((cell) => cell.requests));
    const slowest = Math.max(0, ...seen.map((cell) => cell.p95_ms));
    const slots = Math.max(this.limit, ...seen.map((cell) => cell.slots_in_use + cell.waiting));
    drawBars(at['requests-chart'], cells, most, (cell) => [
      ['bar-ok', cell.requests - cell.errors], ['bar-theirs', cell.errors_contentsquare], ['bar-ours', cell.errors_proxy],
    ]);
    drawLatency(at['latency-chart'], cells, slowest);
    drawBars(at['slots-chart'], cells, slots, (cell) => [['bar-ok', cell.slots_in_use], ['bar-waiting', cell.waiting]], (cell) => cell.refused);
    set(at['requests-top'], most ? number(most) : '');
    set(at['latency-top'], slowest ? milliseconds(slowest) : '');
    set(at['slots-top'], number(slots));
    const sum = (key) => seen.reduce((total, cell) => total + cell[key], 0);
    const text = seen.length ? `${count(sum('requests'), 'request')}, ${errorsOf(sum('errors_contentsquare'), sum('errors_proxy'))}` : 'no request';
    set(at['hour-text'], text);
    attribute(at['requests-chart'], 'aria-label', `Requests per minute: ${text} in the last hour, at most ${most} in a minute`);
    attribute(at['latency-chart'], 'aria-label', `Time to answer: at most ${milliseconds(slowest)} for 95 % of a minute's answers`);
    attribute(at['slots-chart'], 'aria-label', `Slots: at most ${Math.max(0, ...seen.map((cell) => cell.slots_in_use))} of ${this.limit} in use`
      + ` and ${Math.max(0, ...seen.map((cell) => cell.waiting))} waiting; ${sum('refused')} refused`);
  }

  read() {
    const { at } = this, place = this.pointed ?? Math.min(this.now, Number(at.minute.value));
    const cell = this.cells[place], when = clock((this.first + place * 60) * 1000);
    const text = cell ? words(cell, this.limit) : 'no request';
    set(at['readout-time'], place === this.now ? `${when} (now)` : when);
    set(at.readout, text);
    attribute(at.minute, 'aria-valuetext', `${when}: ${text}`);
    for (const kind of ['requests', 'latency', 'slots']) {
      const { style } = at[`${kind}-mark`]; // not the attribute, which the page's policy forbids
      style.left = `${100 * place / this.cells.length}%`;
      style.width = `${100 / this.cells.length}%`;
    }
  }

  tabulate() {
    if (!this.at.minutes.open) return;
    const rows = this.cells.filter(Boolean).reverse();
    list(this.at['minutes-rows'], rows, (cell) => {
      const row = make('tr');
      row.append(Object.assign(make('th', clock(cell.at * 1000)), { scope: 'row' }));
      for (const value of [cell.requests, cell.errors_contentsquare, cell.errors_proxy, milliseconds(cell.p50_ms), milliseconds(cell.p95_ms),
        cell.slots_in_use, cell.waiting, cell.refused]) row.append(make('td', typeof value === 'number' ? number(value) : value, 'number'));
      return row;
    });
  }
}

function errorsOf(theirs, ours) {
  if (!theirs && !ours) return 'no errors';
  return [theirs && `${count(theirs, 'error')} of Contentsquare's`, ours && `${count(ours, 'error')} of the proxy's`].filter(Boolean).join(', ');
}

function words(cell, limit) {
  const refused = cell.refused ? `, ${number(cell.refused)} refused for concurrency` : '';
  return `${count(cell.requests, 'request')}, ${errorsOf(cell.errors_contentsquare, cell.errors_proxy)}; median ${milliseconds(cell.p50_ms)},`
    + ` 95 % within ${milliseconds(cell.p95_ms)}; at most ${cell.slots_in_use} of ${limit} slots in use, ${number(cell.waiting)} waiting${refused}`;
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function drawBars(svg, cells, most, piecesOf, isMarked = () => false) {
  const scale = most ? 80 / most : 0, rows = [];
  cells.forEach((cell, place) => {
    if (!cell) return;
    let bottom = 100;
    for (const [kind, value] of piecesOf(cell)) {
      const height = value > 0 ? Math.max(2, value * scale) : 0; // one error among thousands is seen, too
      if (height) rows.push([kind, place, bottom -= height, height]);
    }
    if (isMarked(cell)) rows.push(['bar-refused', place, 0, 8]);
  });
  list(svg, [cells.length, ...rows], (row) => (typeof row === 'number' ? shape('g', {})
    : shape('rect', { class: row[0], x: row[1] * 10 + 1, y: row[2].toFixed(1), width: 8, height: row[3].toFixed(1) })));
}

function drawLatency(svg, cells, most) {
  const path = (key) => cells.map((cell, place) => {
    if (!cell) return '';
    const point = `${place * 10 + 5} ${(99 - (most ? cell[key] / most : 0) * 79).toFixed(1)}`;
    return cells[place - 1] ? `L${point}` : `M${point}h.01`;
  }).join('');
  list(svg, ['p95', 'p50'].map((name) => [name, path(`${name}_ms`)]), ([name, d]) => shape('path', { class: `line ${name}`, d }));
}
