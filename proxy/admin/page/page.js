// The status page: reads /-/status every two seconds and changes only the nodes whose content differs, so that
// the focus, selections and open parts stay. All values are set as text, never as markup.
'use strict';

const POLL_MS = 2000, PATIENCE_MS = 5000, MANY = 8, SVG = 'http://www.w3.org/2000/svg';
const KEY = 'YOUR-KEY';
const cards = new Map();
let before = null, wasGone = false, timer = 0, isPolling = false;

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat('en');
const count = (n, one) => `${numbers.format(n)} ${one}${n === 1 ? '' : 's'}`;
const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const attribute = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value); };
const show = (node, visible) => { if (node.hidden === visible) node.hidden = !visible; };

function make(tag, text = '', kind = '') {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function parts(root) {
  return Object.fromEntries([...root.querySelectorAll('[data-is]')].map((node) => [node.dataset.is, node]));
}

function duration(s) {
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`);
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });

function say(text) { $('news').textContent = text; }

function pill(node, text, kind) {
  set(node, text);
  attribute(node, 'class', `pill ${kind}`);
}

function list(node, rows, build) {
  // Rebuilt only after a change, so that a screen reader does not start again from the top.
  const key = JSON.stringify(rows);
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...rows.map(build));
}

// The state of a project in words

const STATES = {
  fresh: ['fresh', 'good'],
  stale: ['usable, but not renewed', 'warn'],
  fetching: ['being fetched', 'warn'],
  failing: ['no token', 'bad'],
  refused: ['credentials refused', 'bad'],
  idle: ['fetched at the next request', 'good'],
};

function reach(project) {
  // With the host name that the browser uses: the proxy may not know this name.
  const url = new URL(project.url);
  if (url.pathname !== '/') return location.origin + url.pathname;
  url.protocol = location.protocol;
  url.hostname = location.hostname;
  return url.origin;
}

function health(project) {
  const states = Object.values(project.apis).map((api) => api.state);
  if (states.some((state) => state === 'refused' || state === 'failing')) return ['no token', 'bad'];
  if (!project.ready) return ['waiting for tokens', 'warn'];
  if (states.includes('stale')) return ['token not renewed', 'warn'];
  return ['ready', 'good'];
}

function troubles(project) {
  const { credentials, slots } = project, found = [];
  const left = credentials.days_left;
  if (left !== null && left <= 30) {
    const when = left < 0 ? 'ended' : left === 0 ? 'end today' : `end in ${count(left, 'day')}`;
    found.push([left <= 7 ? 'bad' : 'warn',
      `The credentials ${when} (${credentials.expires}). Make new credentials in Contentsquare's console,`
      + ' and put them into the configuration.']);
  }
  if (credentials.in_use === 'standby') {
    found.push(['warn', 'Contentsquare refused the first credentials, so the standby credentials are in use. Renew the first credentials.']);
  }
  if (slots.allowance < slots.limit) {
    found.push(['warn', `Other programs use this Contentsquare project too. At present the proxy has ${slots.allowance}`
      + ` of its ${slots.limit} slots.`]);
  }
  if (!Object.keys(project.apis).length) found.push(...project.missing.map((why) => ['bad', why]));
  return found;
}

function credentialsText({ days_left: left, in_use: used }) {
  const which = used === 'standby' ? 'standby, ' : '';
  if (left === null) return `${which}no end date configured`;
  return which + (left < 0 ? 'ended' : `${count(left, 'day')} left`);
}

// Charts: sixty minutes, the last one on the right

function minutes(project) {
  const last = Math.floor(Date.now() / 60000) * 60, cells = new Array(60).fill(null);
  for (const minute of project.hour || []) {
    const place = 59 - (last - minute.at) / 60;
    if (place >= 0 && place < 60) cells[place] = minute;
  }
  return cells;
}

function shape(tag, attributes, title) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (title) node.append(Object.assign(document.createElementNS(SVG, 'title'), { textContent: title }));
  return node;
}

function drawRequests(svg, cells, most) {
  const scale = most ? 80 / most : 0;
  list(svg, cells, (cell, place) => {
    const group = shape('g', {}, cell && `${clock(cell.at * 1000)}: ${count(cell.requests, 'request')}, ${count(cell.errors, 'error')}`);
    if (!cell) return group;
    const all = Math.max(2, cell.requests * scale), bad = cell.errors ? Math.max(2, cell.errors * scale) : 0;
    group.append(shape('rect', { class: 'bar-ok', x: place * 10 + 1, y: 100 - all, width: 8, height: Math.max(0, all - bad) }));
    if (bad) group.append(shape('rect', { class: 'bar-err', x: place * 10 + 1, y: 100 - bad, width: 8, height: bad }));
    return group;
  });
}

function drawLatency(svg, cells, most) {
  const path = (key) => cells.map((cell, place) => {
    if (!cell) return '';
    const point = `${place * 10 + 5} ${(99 - (most ? cell[key] / most : 0) * 79).toFixed(1)}`;
    return cells[place - 1] ? `L${point}` : `M${point}h.01`;
  }).join('');
  list(svg, ['p95', 'p50'].map((name) => [name, path(`${name}_ms`)]), ([name, d]) => shape('path', { class: `line ${name}`, d }));
}

function drawCharts(at, project) {
  const cells = minutes(project), seen = cells.filter(Boolean);
  const sum = (key) => seen.reduce((total, cell) => total + cell[key], 0);
  const most = Math.max(0, ...seen.map((cell) => cell.requests));
  const slowest = Math.max(0, ...seen.map((cell) => cell.p95_ms));
  drawRequests(at['requests-chart'], cells, most);
  drawLatency(at['latency-chart'], cells, slowest);
  set(at['requests-top'], most ? numbers.format(most) : '');
  set(at['latency-top'], slowest ? milliseconds(slowest) : '');
  const now = seen[seen.length - 1];
  set(at['requests-text'], seen.length ? `${count(sum('requests'), 'request')} and ${count(sum('errors'), 'error')} in the last hour` : 'no request in the last hour');
  set(at['latency-text'], now ? `median ${milliseconds(now.p50_ms)}, 95 % within ${milliseconds(now.p95_ms)} (last minute)` : 'no request in the last hour');
  attribute(at['requests-chart'], 'aria-label', `Requests per minute: ${at['requests-text'].textContent}, at most ${most} in a minute`);
  attribute(at['latency-chart'], 'aria-label', `Time to answer: ${at['latency-text'].textContent}, at most ${milliseconds(slowest)}`);
}

// Ready text for tools: [name, hint, text]; the text holds a place for the key where callers are defined

function snippets(url, needsKey) {
  const target = `${url}/v1/segments`, when = (text) => (needsKey ? text : '');
  const access = needsKey
    ? 'For access choose Basic, with any user name, and your key as the password.'
    : 'For access choose Anonymous.';
  return [
    ['curl', '', `curl --noproxy "*" ${when(`-H "X-API-Key: ${KEY}" `)}"${target}"`],
    ['Power BI / Power Query', `New source, Blank query, Advanced editor. ${needsKey ? 'For access choose Anonymous: the key is in the text.' : access}`,
      `let\n    Source = Json.Document(Web.Contents("${url}", [\n        RelativePath = "v1/segments"`
      + `${when(`,\n        Headers = [#"X-API-Key" = "${KEY}"]`)}\n    ]))\nin\n    Source`],
    ['Excel', `Data, Get data, From other sources, From web: paste this URL. ${access}`, target],
    ['Python', '',
      'import json\nimport urllib.request\n\n'
      + 'opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says\n'
      + `request = urllib.request.Request("${target}"${when(`, headers={"X-API-Key": "${KEY}"}`)})\n`
      + 'with opener.open(request, timeout=300) as answer:\n    print(json.load(answer))'],
    ['PowerShell', 'For PowerShell 7; leave -NoProxy out in Windows PowerShell 5.1.',
      `Invoke-RestMethod -NoProxy "${target}"${when(` -Headers @{ "X-API-Key" = "${KEY}" }`)}`],
    ['Grafana', `Data source Infinity: type JSON, parser Backend, method GET, this URL${when(', and the header X-API-Key with your key')}.`, target],
  ];
}

// A project's card

function newCard(name) {
  const root = $('card').content.cloneNode(true).firstElementChild;
  const card = { root, at: parts(root), name, state: '' };
  set(card.at.name, name);
  root.querySelector('details').addEventListener('toggle', () => { if (before) update(card, before.projects[name]); });
  return card;
}

function fill(card) {
  const { body } = card.at;
  body.replaceChildren($('body').content.cloneNode(true));
  Object.assign(card.at, parts(body));
  for (const button of body.querySelectorAll('[data-copies]')) {
    button.addEventListener('click', () => copy(button, card.at[button.dataset.copies]));
  }
  card.at.refresh.addEventListener('click', () => refresh(card));
  card.at.tool.addEventListener('change', () => chooseTool(card));
}

function chooseTool(card) {
  const chosen = card.tools[Math.max(0, card.at.tool.selectedIndex)];
  set(card.at.hint, chosen[1]);
  set(card.at.snippet, chosen[2]);
}

function rateText({ rate }) {
  return rate === undefined ? 'counting' : `${rate.toFixed(rate && rate < 10 ? 1 : 0)} per second`;
}

function update(card, project) {
  if (!project) return;
  const [text, kind] = health(project);
  pill(card.at.state, text, kind);
  if (card.state && card.state !== text) say(`${card.name}: ${text}`);
  card.state = text;
  show(card.at['read-only'], project.read_only);
  const { slots } = project;
  set(card.at.brief, `${rateText(card)}, ${slots.in_use} of ${slots.limit} slots${slots.waiting ? `, ${slots.waiting} waiting` : ''}`);
  if (!card.root.querySelector('details').open) return;
  if (!card.at.url) fill(card);
  updateBody(card, project);
}

function updateBody(card, project) {
  const { at } = card, { slots } = project, url = reach(project);
  list(at.notices, troubles(project), ([kind, text]) => make('li', text, kind));
  set(at.url, url);
  set(at.rate, rateText(card));
  set(at.slots, `${slots.in_use} of ${slots.limit}`);
  list(at['slot-boxes'], slots.limit > 30 ? [] : Array.from({ length: slots.limit }, (_, n) => (n < slots.in_use ? 'used' : n < slots.allowance ? '' : 'lent')),
    (kind) => make('i', '', kind));
  const freed = slots.slow_callers_cut ? `; ${count(slots.slow_callers_cut, 'slow caller')} cut off` : '';
  set(at.waiting, (slots.waiting ? count(slots.waiting, 'request') : 'none') + freed);
  set(at.credentials, credentialsText(project.credentials));
  drawCharts(at, project);
  updateApis(at, project);
  show(at['no-errors'], !project.last_errors.length);
  show(at.errors, project.last_errors.length > 0);
  list(at.errors, summed(project.last_errors), error);
  card.tools = snippets(url, before.needs_key);
  if (!at.tool.length) at.tool.append(...card.tools.map(([name]) => make('option', name)));
  chooseTool(card);
}

function updateApis(at, project) {
  const apis = Object.entries(project.apis);
  show(at['no-apis'], !apis.length);
  show(at.apis, apis.length > 0);
  show(at.refresh, apis.length > 0);
  const rows = apis.map(([name, api]) => [name, api.state,
    api.usable ? duration(api.seconds_left) : '-', numbers.format(api.requests),
    api.endpoint ? new URL(api.endpoint).host : '-', api.failures_in_a_row ? why(api) : '']);
  list(at.apis.querySelector('tbody'), rows, ([name, state, left, requests, cloud, trouble]) => {
    const row = make('tr'), token = make('td'), [text, kind] = STATES[state];
    token.append(make('span', text, `pill ${kind}`));
    if (trouble) token.append(make('span', trouble, 'why'));
    row.append(Object.assign(make('th', name), { scope: 'row' }), token, make('td', left), make('td', requests, 'number'), make('td', cloud));
    ['Time left', 'Requests', 'Cloud'].forEach((label, n) => { row.children[n + 2].dataset.label = label; });
    return row;
  });
}

function why(api) {
  const next = api.on_demand ? 'the next request tries again' : api.next_try_in_s === null ? 'the proxy is trying now' : `next try in ${duration(Math.max(5, Math.ceil(api.next_try_in_s / 5) * 5))}`;
  return `${api.last_error}; ${next}`;
}

function summed(errors) {
  // Equal errors in a row become one row, with the time of the latest; numbers in them, such as a wait, may differ.
  const rows = [];
  for (const { at, code, message } of errors) {
    const kind = code + message.replace(/\d+/g, ''), last = rows[rows.length - 1];
    if (last && last.kind === kind) last.times += 1;
    else rows.push({ at, code, message, kind, times: 1 });
  }
  return rows;
}

function error({ at, code, message, times }) {
  const row = make('li'), moment = new Date(at), today = moment.toDateString() === new Date().toDateString();
  const when = make('time', moment.toLocaleString([], { ...(today ? {} : { dateStyle: 'medium' }), timeStyle: 'medium' }));
  when.dateTime = at;
  row.append(when, make('strong', code), make('span', times > 1 ? ` ${times} times` : '', 'quiet'), make('span', message, 'what'));
  return row;
}

async function copy(button, source) {
  const text = source.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // the page is no secure context, for example under a host name of the local network
    const area = make('textarea', text, 'unseen');
    button.after(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    button.focus();
  }
  const label = button.firstChild;
  label.data = 'Copied';
  say('Copied');
  setTimeout(() => { label.data = 'Copy'; }, 1500);
}

async function refresh(card) {
  const answer = await fetch(`${location.origin}/-/refresh/${card.name}`, { method: 'POST' }).catch(() => null);
  say(answer && answer.ok ? `${card.name}: new tokens are being fetched` : `${card.name}: the proxy did not accept the request for new tokens`);
  poll();
}

// The whole page

function general(status) {
  set($('about'), `${status.version}, up ${duration(status.uptime_s)}`);
  const found = [];
  const faults = status.reload.last_faults;
  if (faults.length) found.push(['bad', `The changed configuration has errors, so the proxy still uses the one before: ${faults.join('; ')}`]);
  if (status.log_lines_dropped) found.push(['warn', `${count(status.log_lines_dropped, 'log line')} couldn't be written: check the disk, or the program that reads the log.`]);
  if (status.event_loop_lag_s.max > 0.5) found.push(['warn', `In the last two minutes the proxy stood still for ${status.event_loop_lag_s.max.toFixed(1)} s: this computer is very busy.`]);
  list($('notices'), found, ([kind, text]) => make('li', text, kind));
}

function rates(status) {
  const seconds = before && status.uptime_s - before.uptime_s;
  const total = (project) => Object.values(project.apis).reduce((sum, api) => sum + api.requests, 0);
  for (const [name, card] of cards) {
    const now = status.projects[name], then = before && before.projects[name];
    if (now && then && seconds > 0) card.rate = Math.max(0, total(now) - total(then)) / seconds;
  }
}

function arrange(status) {
  const names = Object.keys(status.projects), holder = $('projects');
  for (const [name, card] of cards) {
    if (!(name in status.projects)) { card.root.remove(); cards.delete(name); }
  }
  names.forEach((name, place) => {
    if (!cards.has(name)) {
      cards.set(name, newCard(name));
      if (names.length <= MANY && place < 4) cards.get(name).root.querySelector('details').open = true;
    }
    const { root } = cards.get(name);
    if (holder.children[place] !== root) holder.insertBefore(root, holder.children[place] || null);
  });
  show($('find'), names.length > MANY);
  show($('none'), !names.length);
  list($('accounts'), Object.entries(status.accounts), ([name, url]) => {
    const line = make('p', `Any project of the account ${name}: `);
    line.append(make('code', `${reach({ url })}/PROJECT_ID/v1/...`));
    return line;
  });
  filter();
}

function filter() {
  const wanted = $('filter').value.trim().toLowerCase();
  for (const [name, card] of cards) show(card.root, name.toLowerCase().includes(wanted));
}

function gone(text) {
  document.body.classList.add('gone');
  pill($('live'), text, 'bad');
  wasGone = true;
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || isPolling) return;
  isPolling = true;
  try {
    // From the origin, because a URL with a user and password in it can't be fetched.
    const answer = await fetch(`${location.origin}/-/status?hour=1`, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) {
      gone(answer.status === 401 ? 'key not accepted: reload this page' : `no status: ${answer.status}`);
    } else {
      draw(await answer.json());
    }
  } catch {
    gone('no answer: stopped, or restarting');
  }
  isPolling = false;
  timer = setTimeout(poll, cards.size > 50 ? 5 * POLL_MS : POLL_MS);
}

function draw(status) {
  if (wasGone) document.body.classList.remove('gone');
  if (before && status.uptime_s < before.uptime_s) before = null; // the proxy was restarted
  wasGone = false;
  pill($('live'), status.stopping ? 'stopping' : 'live', status.stopping ? 'warn' : 'good');
  rates(status);
  before = status;
  general(status);
  arrange(status);
  for (const [name, card] of cards) update(card, status.projects[name]);
}

document.addEventListener('visibilitychange', poll);
$('filter').addEventListener('input', filter);
poll();
