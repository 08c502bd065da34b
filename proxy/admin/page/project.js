// One project: its line in the list, and its parts once it is open.

import { Hour } from './charts.js';
import {
  $, SIDES, STATES, attribute, bytes, copy, count, duration, errors, errorsText, get, list, make, moment, number, parts, pill, prose, say, set, show,
} from './dom.js';
import { Requests } from './requests.js';

const TOKENS = {
  fresh: ['fresh', 'good'],
  stale: ['usable, but not renewed', 'warn'],
  fetching: ['being fetched', 'warn'],
  failing: ['no token', 'bad'],
  refused: ['credentials refused', 'bad'],
  idle: ['fetched at the next request', 'good'],
};

export function reach(project, status) {
  // With the host name that the browser uses: the proxy may not know this name.
  if (status.public_url) return project.url;
  const url = new URL(project.url);
  if (url.pathname !== '/') return location.origin + url.pathname;
  url.protocol = location.protocol;
  url.hostname = location.hostname;
  return url.origin;
}

const total = (project) => (project.requests ?? Object.values(project.apis).reduce((sum, api) => sum + api.requests, 0))
  + (project.requests_refused ?? 0);

export class Card {
  constructor(name, onToggle) {
    this.name = name;
    this.root = $('card').content.cloneNode(true).firstElementChild;
    this.at = parts(this.root);
    this.rank = 3;
    set(this.at.name, name);
    this.details = this.root.querySelector('details');
    this.details.addEventListener('toggle', () => onToggle(this));
  }

  get isOpen() { return this.details.open; }

  update(project, status) {
    const { at } = this, now = total(project), { health, slots } = project;
    if (this.then && status.uptime_s > this.then.at) this.rate = Math.max(0, now - this.then.total) / (status.uptime_s - this.then.at);
    this.then = { total: now, at: status.uptime_s };
    const [, kind, rank] = STATES[health.state], text = health.summary;
    if (this.state && this.state !== text) say(`${this.name}: ${text}`);
    this.state = text;
    this.words = `${health.state} ${text}`;
    this.rank = rank;
    pill(at.state, text, kind);
    show(at['read-only'], project.read_only);
    const waiting = slots.waiting ? `, ${slots.waiting} waiting` : '';
    set(at.brief, `${rateText(this.rate)}, ${slots.in_use} of ${slots.limit} slots${waiting}`);
    show(at.trouble, Boolean(health.reason) && Object.keys(status.projects).length > 1); // else the banner says it all
    set(at['trouble-side'], SIDES[health.side] ? `${SIDES[health.side]}: ` : '');
    prose(at['trouble-why'], health.reason || '');
    show(at.advice, Boolean(health.next_step) && status.health.project !== this.name); // the banner has it
    prose(at['advice-text'], health.next_step || '');
    if (!this.isOpen || !project.apis) return;
    if (!at.url) this.fill();
    this.updateBody(project, status);
  }

  fill() {
    const { body } = this.at;
    body.replaceChildren($('body').content.cloneNode(true));
    Object.assign(this.at, parts(body));
    for (const button of body.querySelectorAll('[data-copies]')) {
      button.addEventListener('click', () => copy(button, this.at[button.dataset.copies].textContent));
    }
    this.at.refresh.addEventListener('click', () => this.refresh());
    this.at.tool.addEventListener('change', () => this.choose());
    this.at.use.addEventListener('toggle', () => this.loadTools());
    this.at.minutes.addEventListener('toggle', () => this.hour.tabulate());
    this.at['minutes-region'].setAttribute('aria-label', `The minutes of ${this.name} as a table`);
    this.hour = new Hour(this.at);
    if (this.rank < 3) this.at.busy.prepend(this.at.recent); // in trouble, first of all: which request
    this.requests = new Requests(this.at.requests, this.name);
  }

  updateBody(project, status) {
    const { at } = this, { slots } = project;
    this.url = reach(project, status);
    this.requests.origin = new URL(this.url).origin;
    list(at.notices, notices(project), ([kind, text]) => make('li', text, kind));
    set(at.url, this.url);
    set(at.rate, rateText(this.rate));
    set(at.errors, errorsText(errors(project.responses)).replace(/^[\d,]+ errors: /, ''));
    set(at.slots, `${slots.in_use} of ${slots.limit}`);
    list(at['slot-boxes'], slots.limit > 30 ? [] : Array.from({ length: slots.limit }, (_, n) => (n < slots.in_use ? 'used' : n < slots.allowance ? '' : 'lent')),
      (kind) => make('i', '', kind));
    const freed = slots.slow_callers_cut ? `; ${count(slots.slow_callers_cut, 'slow caller')} cut off` : '';
    set(at.waiting, (slots.waiting ? `${number(slots.waiting)} waiting` : 'none waiting') + freed);
    set(at.calls, callsText(project.usage));
    set(at.credentials, credentialsText(project.credentials));
    const isUnused = !total(project);
    show(at.empty, isUnused);
    show(at.busy, !isUnused);
    if (isUnused) this.loadTools();
    else {
      this.hour.update(project, status);
      this.requests.update(status, project);
      updateUsage(at, project.usage);
    }
    updateErrors(at, project.last_errors);
    updateTokens(at, project);
  }

  async loadTools() {
    // The texts of `csq-proxy snippets`; with the origin that the browser uses.
    if (this.isLoading || this.at.tool.length) return;
    this.isLoading = true;
    try {
      const { origin, tools } = await get(`/-/snippets?project=${encodeURIComponent(this.name)}`);
      const own = new RegExp(`${origin.replace(/[^\w]/g, '\\$&')}(?!\\d)`, 'g'); // :80 isn't the beginning of :8080
      this.tools = tools.map(({ tool, text }) => [tool, text.replace(own, () => location.origin).trimEnd()]);
      this.at.tool.replaceChildren(...this.tools.map(([tool]) => make('option', tool)));
      set(this.at['first-call'], this.tools[0][1].split('\n\n')[0]);
      this.choose();
    } catch ({ status }) {
      set(this.at.snippet, status === 404 ? 'This proxy has no texts for tools: csq-proxy snippets prints them.' : 'The texts could not be loaded: close and open this part again.');
    }
    this.isLoading = false;
  }

  choose() { set(this.at.snippet, this.tools[Math.max(0, this.at.tool.selectedIndex)][1]); }

  async refresh() {
    const answer = await fetch(`${location.origin}/-/refresh/${this.name}`, { method: 'POST' }).catch(() => null);
    say(answer && answer.ok ? `${this.name}: new tokens are being fetched` : `${this.name}: the proxy did not accept the request for new tokens`);
  }
}

export function rateText(rate) {
  return rate === undefined ? 'counting' : `${rate.toFixed(rate && rate < 10 ? 1 : 0)} per second`;
}

function notices({ health, credentials, slots, usage }) {
  const found = [], left = credentials.days_left, told = health.reason || '';
  if (left !== null && left <= 30 && !told.startsWith('The credentials')) {
    const when = left < 0 ? 'ended' : left === 0 ? 'end today' : `end in ${count(left, 'day')}`;
    found.push([left <= 7 ? 'bad' : 'warn', `The credentials ${when} (${credentials.expires}). Make new credentials in Contentsquare's console, and put them into the configuration.`]);
  }
  if (credentials.in_use === 'standby' && !told.includes('standby')) {
    found.push(['warn', 'Contentsquare refused the first credentials, so the standby credentials are in use. Renew the first credentials.']);
  }
  if (slots.allowance < slots.limit && !told.startsWith('Other programs')) {
    found.push(['warn', `Other programs use this Contentsquare project too. At present the proxy has ${slots.allowance} of its ${slots.limit} slots.`]);
  }
  if (usage.notice) found.push([usage.calls >= usage.quota ? 'bad' : 'warn', usage.notice]);
  return found;
}

function credentialsText({ days_left: left, in_use: used }) {
  const which = used === 'standby' ? 'standby, ' : '';
  if (left === null) return `${which}no end date configured`;
  return which + (left < 0 ? 'ended' : `${count(left, 'day')} left`);
}

function callsText(usage) {
  const share = usage.quota ? ` of ${number(usage.quota)} (${Math.floor(100 * usage.calls / usage.quota)} %)` : '';
  return `${number(usage.calls)}${share}${usage.since === 'start' ? ', since the start' : ''}`;
}

function row(first, cells, labels = []) {
  // With roles, because a small screen shows a table as blocks, and a screen reader would no longer find it.
  const node = make('tr');
  node.append(Object.assign(make('th'), { scope: 'row' }));
  node.firstChild.append(first);
  node.firstChild.setAttribute('role', 'rowheader');
  cells.forEach((cell, place) => {
    const made = make('td');
    made.append(cell);
    made.setAttribute('role', 'cell');
    if (labels[place]) made.dataset.label = labels[place];
    node.append(made);
  });
  node.setAttribute('role', 'row');
  return node;
}

function updateUsage(at, usage) {
  const rows = [];
  for (const [caller, apis] of Object.entries(usage.callers)) {
    for (const [api, used] of Object.entries(apis)) {
      rows.push([caller, api, used.requests, used.hour.requests, used.bytes_in, used.bytes_out, used.waited_s]);
    }
  }
  rows.sort((one, other) => other[2] - one[2]);
  show(at['usage-part'], rows.length > 0);
  list(at['usage-rows'], rows, ([caller, api, requests, hour, sent, received, waited]) => row(caller === '-' ? 'without a key' : caller,
    [api, number(requests), number(hour), bytes(sent), bytes(received), duration(waited)],
    ['API', 'Requests', 'Last hour', 'Content in', 'Content out', 'Waited']));
}

function updateErrors(at, lastErrors) {
  // Equal errors in a row become one, with the time of the latest; numbers in them, such as a wait, may differ.
  const rows = [];
  for (const { at: when, code, message } of lastErrors) {
    const kind = code + message.replace(/\d+/g, ''), last = rows[rows.length - 1];
    if (last && last.kind === kind) last.times += 1;
    else rows.push({ when, code, message, kind, times: 1 });
  }
  show(at['errors-part'], rows.length > 0);
  list(at['error-rows'], rows, ({ when, code, message, times }) => {
    const item = make('li'), time = Object.assign(make('time', moment(when)), { dateTime: when });
    item.append(time, make('strong', code), make('span', times > 1 ? ` ${times} times` : '', 'quiet'), make('span', message, 'what'));
    return item;
  });
}

function updateTokens(at, project) {
  const apis = Object.entries(project.apis);
  const wrong = apis.filter(([, { state }]) => TOKENS[state][1] !== 'good');
  const left = apis.filter(([, api]) => api.usable).map(([, api]) => api.seconds_left);
  set(at['tokens-text'], !apis.length ? 'none yet: the first request fetches one'
    : wrong.length ? wrong.map(([api, { state }]) => `${api} ${TOKENS[state][0]}`).join(', ')
      : left.length ? `${apis.length === 1 ? 'fresh' : `all ${apis.length} fresh`}, good for ${duration(Math.min(...left))} and renewed before` : 'fetched at the next request');
  attribute(at['tokens-text'], 'class', wrong.length ? 'wrong' : 'quiet');
  if (wrong.length && !at.tokens.dataset.wrong) at.tokens.open = true;
  at.tokens.dataset.wrong = wrong.length ? '1' : '';
  show(at['tokens-body'], apis.length > 0);
  const rows = apis.map(([name, api]) => [name, api.state, api.usable ? duration(api.seconds_left) : '-', number(api.requests),
    api.endpoint ? new URL(api.endpoint).host : '-', api.failures_in_a_row ? why(api) : '']);
  list(at['token-rows'], rows, ([name, state, time, requests, cloud, trouble]) => {
    const token = make('span'), [text, kind] = TOKENS[state];
    token.append(make('span', text, `pill ${kind}`));
    if (trouble) token.append(make('span', trouble, 'why'));
    return row(name, [token, time, requests, cloud], ['', 'Time left', 'Requests', 'Cloud']);
  });
}

function why(api) {
  const next = api.on_demand ? 'the next request tries again' : api.next_try_in_s === null ? 'the proxy is trying now' : `next try in ${duration(Math.max(5, Math.ceil(api.next_try_in_s / 5) * 5))}`;
  return `${api.last_error}; ${next}`;
}
