// The status page: reads /-/status every two seconds, with the details of the projects that are open. The worst
// trouble and what to do about it come first, then the projects, those in trouble before the others.

import {
  $, SIDES, STATES, attribute, copy, count, duration, errors, errorsText, get, list, make, moment, number, pill, prose, say, set, show,
} from './dom.js';
import { Card, rateText, reach } from './project.js';
import { Requests } from './requests.js';

const POLL_MS = 2000, MANY = 10;
const cards = new Map();
let before = null, unrouted = null, lastAt = null, timer = 0, isPolling = false, isHurried = false, isFirst = true, isNoneTold = false;

// The banner

function banner({ state, title, side = '', reason = '', next = '', command = '', project = '' }) {
  const [word, kind] = STATES[state] || [state, 'bad'];
  attribute($('banner'), 'class', `banner ${kind}`);
  pill($('banner-state'), word, kind);
  set($('banner-title'), title);
  for (const [name, value] of Object.entries({ side, reason: reason || '', next: next || '', command })) {
    show($(`banner-${name}`).closest('[data-row]'), Boolean(value));
    (name === 'command' ? set : prose)($(`banner-${name}`), value);
  }
  show($('banner-show'), Boolean(project));
  set($('banner-show'), `Show ${project}`);
  $('banner-show').dataset.project = project;
  document.title = kind === 'good' ? 'csq-proxy' : `${word}: ${project || title} - csq-proxy`;
}

function healthBanner({ health, projects }) {
  const named = health.project && Object.keys(projects).length > 1 ? `${health.project}: ` : '';
  banner({
    state: health.state,
    title: health.summary,
    side: SIDES[health.side],
    reason: health.reason && named + health.reason,
    next: health.next_step,
    project: cards.has(health.project) && Object.keys(projects).length > 1 ? health.project : '',
  });
}

function gone(status) {
  document.body.classList.add('gone');
  pill($('live'), 'not live', 'bad');
  if (status === 401) {
    banner({ state: 'refused', title: 'The key is not accepted.', next: 'Reload this page, and give a key of [callers].' });
  } else if (status) {
    banner({ state: 'failing', title: `The proxy gives no status: ${status}.`, next: 'Look at the log of csq-proxy.' });
  } else {
    banner({
      state: 'stopped',
      title: 'csq-proxy does not answer.',
      side: 'csq-proxy',
      reason: `It has stopped, or is starting again.${lastAt ? ` Its last answer came at ${moment(lastAt)}; everything below is from then.` : ''}`,
      next: 'If a service manager or Docker runs it, start it there. This page goes on by itself.',
      command: before?.start_command || 'csq-proxy serve',
    });
  }
}

// The whole page

function general(status) {
  set($('about'), `${status.version} on ${status.host}, up ${duration(status.uptime_s)}`);
  pill($('live'), status.stopping ? 'stopping' : 'live', status.stopping ? 'warn' : 'good');
  const found = [], faults = status.reload.last_faults;
  const isTold = faults.length === 1 && status.health.reason?.startsWith('The changed configuration'); // the banner has it
  if (faults.length && !isTold) found.push(['bad', `The changed configuration has errors, so the proxy still uses the one before: ${faults.join('; ')}`]);
  if (status.log_lines_dropped) found.push(['warn', `${count(status.log_lines_dropped, 'log line')} couldn't be written: check the disk, or the program that reads the log.`]);
  if (status.event_loop_lag_s.max > 0.5) found.push(['warn', `In the last two minutes the proxy stood still for ${status.event_loop_lag_s.max.toFixed(1)} s: this computer is very busy.`]);
  for (const used of Object.values(status.account_usage)) if (used.notice) found.push([used.calls >= used.quota ? 'bad' : 'warn', used.notice]);
  if (status.counts?.error) found.push(['warn', status.counts.error]);
  list($('notices'), found, ([kind, text]) => make('li', text, kind));
  const refused = Object.entries(status.requests_refused).sort((one, other) => other[1] - one[1]);
  show($('unrouted'), refused.length > 0);
  set($('refused'), refused.map(([code, times]) => `${code} ${number(times)}`).join(', '));
  if (!isNoneTold && status.health.side === 'caller' && !status.health.project && refused.length) {
    // The trouble is these requests: they come first, and open, once.
    isNoneTold = true;
    $('projects').before($('unrouted'));
    $('unrouted').open = true;
  }
  if ($('unrouted').open) {
    unrouted ??= new Requests($('unrouted-requests'), '-');
    unrouted.update(status);
  }
}

function summary(status) {
  const projects = Object.values(status.projects), sum = (of) => projects.reduce((all, project) => all + of(project), 0);
  const rates = [...cards.values()].map((card) => card.rate).filter((rate) => rate !== undefined);
  const own = projects.map((project) => errors(project.responses));
  const both = { contentsquare: own.reduce((all, one) => all + one.contentsquare, 0), proxy: own.reduce((all, one) => all + one.proxy, 0) };
  const waiting = sum(({ slots }) => slots.waiting);
  set($('summary'), [
    count(projects.length, 'project'),
    rates.length ? rateText(rates.reduce((all, rate) => all + rate, 0)) : 'counting',
    `${number(sum(({ slots }) => slots.in_use))} of ${number(sum(({ slots }) => slots.limit))} slots in use`,
    waiting ? `${number(waiting)} waiting` : 'none waiting',
    `${errorsText(both)} since the start`,
  ].join(' · '));
  show($('summary'), projects.length > 0);
}

function arrange(status) {
  const names = Object.keys(status.projects), holder = $('projects');
  for (const [name, card] of cards) {
    if (!(name in status.projects)) { card.root.remove(); cards.delete(name); }
  }
  for (const name of names) if (!cards.has(name)) cards.set(name, new Card(name, opened));
  for (const [name, card] of cards) card.update(status.projects[name], status);
  const focused = document.activeElement;
  const sorted = names.map((name) => cards.get(name)).sort((one, other) => one.rank - other.rank); // stable
  sorted.forEach(({ root }, place) => {
    if (holder.children[place] !== root) holder.insertBefore(root, holder.children[place] || null);
  });
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  if (isFirst && sorted.length) {
    isFirst = false;
    if (names.length < MANY || sorted[0].rank < 3) sorted[0].details.open = true;
  }
  show($('find'), names.length >= MANY);
  show($('none'), !names.length);
  list($('accounts'), Object.entries(status.accounts), ([name, url]) => {
    const line = make('p', `Any project of the account ${name}: `), button = make('button', 'Copy'), text = make('code', `curl --noproxy "*" "${reach({ url }, status)}/PROJECT_ID/v1/segments"`);
    line.className = 'copyline';
    button.type = 'button';
    button.addEventListener('click', () => copy(button, text.textContent));
    line.append(text, button);
    return line;
  });
  filter();
}

function opened(card) {
  if (card.isOpen) poll();
}

function filter() {
  const wanted = $('filter').value.trim().toLowerCase();
  let fitting = 0;
  for (const [name, card] of cards) {
    const fits = `${name} ${card.words}`.toLowerCase().includes(wanted);
    fitting += fits;
    show(card.root, fits);
  }
  set($('found'), wanted ? `${fitting} of ${cards.size}` : '');
}

function showProject(name) {
  const card = cards.get(name);
  if (!card) return;
  $('filter').value = '';
  filter();
  card.details.open = true;
  card.root.scrollIntoView({ block: 'start' });
  card.root.querySelector('summary').focus({ preventScroll: true });
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  if (isPolling) { isHurried = true; return; }
  isPolling = true;
  isHurried = false;
  const open = [...cards.values()].filter((card) => card.isOpen && !card.root.hidden).map(({ name }) => `detail=${encodeURIComponent(name)}`);
  let status = null, refusal;
  try {
    status = await get(`/-/status?${open.join('&') || 'detail='}`);
  } catch (error) {
    refusal = error.status;
  }
  try {
    if (status) draw(status);
    else gone(refusal);
  } finally {
    isPolling = false;
    timer = setTimeout(poll, isHurried ? 0 : cards.size > 50 ? 5 * POLL_MS : POLL_MS);
  }
}

function draw(status) {
  if (before && status.version !== before.version) location.reload(); // the page of the newer version
  document.body.classList.remove('gone');
  const state = before?.health.state;
  if (before && status.uptime_s < before.uptime_s) for (const card of cards.values()) card.then = undefined;
  before = status;
  lastAt = Date.now();
  general(status);
  arrange(status);
  healthBanner(status);
  summary(status);
  if (state && state !== status.health.state) say(`${STATES[status.health.state][0]}: ${status.health.summary}`);
}

document.addEventListener('visibilitychange', poll);
$('filter').addEventListener('input', filter);
$('unrouted').addEventListener('toggle', poll);
$('banner-show').addEventListener('click', () => showProject($('banner-show').dataset.project));
$('banner-copy').addEventListener('click', () => copy($('banner-copy'), $('banner-command').textContent));
poll();
