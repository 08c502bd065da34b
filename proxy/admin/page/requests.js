// The recent requests of a project: a list with filters, and the details of one request.

import { $, attribute, bytes, copy, get, make, milliseconds, moment, parts, set, show } from './dom.js';

const MOST = 200, SLOW_MS = 1000, SHOWN = 10;
const BY = { contentsquare: 'Contentsquare', proxy: 'csq-proxy', stored: 'a stored answer' };
const WITH_CONTENT = ['POST', 'PUT', 'PATCH'];

export class Requests {
  // The list within the node `holder`; `name` is the project's, "-" for the requests that reached none.
  constructor(holder, name) {
    holder.replaceChildren($('requests').content.cloneNode(true));
    this.at = parts(holder);
    this.name = name;
    this.rows = new Map(); // by id: the request, its row, and the row with its details
    for (const filter of ['which', 'caller', 'api']) this.at[filter].addEventListener('change', () => this.filter());
    this.at.more.addEventListener('click', () => {
      this.all = true;
      this.filter();
    });
  }

  async update(status, project = { health: {} }) {
    this.project = project;
    this.status = status;
    if (this.isAsking) return;
    this.isAsking = true;
    try {
      const since = this.next === undefined ? '' : `&since=${this.next}`;
      const { next, requests, off } = await get(`/-/requests?project=${encodeURIComponent(this.name)}${since}`);
      this.next = next;
      this.isOff = Boolean(off);
      for (const request of requests) this.add(request);
      if (requests.length) this.offer();
      if (!since && project.health.state !== 'working' && requests.some(isError)) this.at.which.value = 'errors';
      this.filter();
    } catch { // the page's own poll says what is wrong
    } finally {
      this.isAsking = false;
    }
  }

  add(request) {
    if (this.rows.has(request.id)) return;
    const row = make('tr', '', kindOf(request)), open = make('button', `${request.method || '-'} ${request.route || ''}${request.query ? '?...' : ''}`, 'route');
    open.type = 'button';
    open.setAttribute('aria-expanded', 'false');
    open.title = 'Details of this request';
    const entry = { request, row, open, detail: null };
    open.addEventListener('click', () => this.toggle(entry));
    const what = make('td', '', 'what'), answer = make('td');
    what.append(open);
    answer.append(make('span', answerOf(request), `answer ${kindOf(request)}`));
    if (request.error) answer.append(' ', make('span', request.error, 'code'));
    const cells = [make('td', clockOf(request.at), 'time'), what, answer, make('td', BY[request.source] || '-', 'by'),
      make('td', milliseconds(request.total_ms ?? 0), isSlow(request) ? 'number slow' : 'number'), make('td', request.caller || '-')];
    ['', '', '', 'By', 'Took', 'Caller'].forEach((label, n) => { if (label) cells[n].dataset.label = label; });
    cells.forEach((cell) => cell.setAttribute('role', 'cell'));
    row.setAttribute('role', 'row');
    row.append(...cells);
    this.rows.set(request.id, entry);
    this.at['request-rows'].prepend(row);
    if (this.rows.size > MOST) this.drop(this.rows.entries().next().value);
  }

  drop([id, { row, detail }]) {
    row.remove();
    detail?.remove();
    this.rows.delete(id);
  }

  toggle(entry) {
    const isOpen = entry.detail !== null;
    entry.open.setAttribute('aria-expanded', String(!isOpen));
    if (isOpen) {
      entry.detail.remove();
      entry.detail = null;
      return;
    }
    const cell = Object.assign(make('td'), { colSpan: 6 });
    cell.append(this.details(entry.request));
    cell.setAttribute('role', 'cell');
    entry.detail = make('tr', '', 'detail');
    entry.detail.setAttribute('role', 'row');
    entry.detail.append(cell);
    entry.row.after(entry.detail);
  }

  details(request) {
    const box = make('div'), facts = make('dl', '', 'details');
    for (const [name, value] of this.factsOf(request)) {
      if (value === undefined || value === '') continue;
      const pair = make('div', '', value.length > 60 ? 'broad' : '');
      pair.append(make('dt', name), make('dd', value));
      facts.append(pair);
    }
    const button = make('button', 'Copy as curl');
    button.type = 'button';
    button.addEventListener('click', () => copy(button, this.curl(request)));
    const line = make('p', '', 'copyline');
    line.append(button, make('span', this.missing(request), 'quiet'));
    box.append(facts, line);
    return box;
  }

  factsOf(request) {
    const trouble = isError(request) ? troubleOf(request, this.project?.last_errors || []) : {};
    return [
      ['Whose error', trouble.side], ['What to do', trouble.next],
      ['Time', moment(request.at)], ['Caller', request.caller], ['API', request.api],
      ['Answer', `${answerOf(request)}${request.error ? ` ${request.error}` : ''}`], ['Ended too early', request.reason], ['Answered by', BY[request.source]],
      ['Waited for a slot', request.wait_ms === undefined ? undefined : milliseconds(request.wait_ms)],
      ['Contentsquare took', request.upstream_ms === undefined ? undefined : milliseconds(request.upstream_ms)],
      ['In all', request.total_ms === undefined ? undefined : milliseconds(request.total_ms)],
      ['Cloud', request.upstream],
      ['Sent again', request.replayed?.join(', ')],
      ['Content', `${bytes(request.bytes_in || 0)} in, ${bytes(request.bytes_out || 0)} out`],
      ['Request id', request.request_id],
    ];
  }

  curl({ method, route, query }) {
    // Never a key, and no query: the proxy keeps neither.
    const words = ['curl', '--noproxy', '*'];
    if (method !== 'GET') words.push('-X', method);
    if (this.status.needs_key) words.push('-H', 'X-API-Key: KEY');
    if (WITH_CONTENT.includes(method)) words.push('-H', 'Content-Type: application/json', '--data-binary', '@FILE');
    return [...words, `${this.origin || location.origin}${route}${query ? '?QUERY' : ''}`].map(quoted).join(' ');
  }

  missing({ method, query }) {
    const left = [];
    if (this.status.needs_key) left.push('your key for KEY');
    if (query) left.push('the parameters for QUERY');
    if (WITH_CONTENT.includes(method)) left.push('the content\'s file for FILE');
    return left.length ? `Put in ${left.join(', ')}: the proxy keeps none.` : '';
  }

  offer() {
    // The callers and APIs that the list has, as choices.
    for (const [filter, key] of [['caller', 'caller'], ['api', 'api']]) {
      const select = this.at[filter], known = new Set([...select.options].map((option) => option.value));
      for (const { request } of this.rows.values()) {
        if (!request[key] || known.has(request[key])) continue;
        known.add(request[key]);
        select.append(Object.assign(make('option', request[key]), { value: request[key] }));
      }
      show(select.parentElement, select.options.length > 2);
    }
  }

  filter() {
    const { at } = this, which = at.which.value, caller = at.caller.value, api = at.api.value;
    let fitting = 0;
    for (const { request, row, detail } of [...this.rows.values()].reverse()) {
      const fits = (which === 'all' || (which === 'errors' ? isError(request) : which === 'slow' ? isSlow(request) : isError(request) && request.source === which))
        && (!caller || request.caller === caller) && (!api || request.api === api);
      fitting += fits;
      const visible = fits && (this.all || fitting <= SHOWN);
      show(row, visible);
      if (detail) show(detail, visible);
    }
    show(at.more, !this.all && fitting > SHOWN);
    set(at.more, `Show all ${fitting}`);
    show(at['request-table'], fitting > 0);
    show(at['no-requests'], !fitting);
    set(at['no-requests'], this.isOff ? 'The list is switched off: log.requests is false.'
      : this.rows.size ? 'No request here fits.'
        : this.status.needs_key ? 'No request to show. A caller with limits sees its own requests only.' : 'No request has ended yet.');
    attribute(at['request-table'], 'aria-label', `${fitting} recent requests${this.name === '-' ? ' that reached no project' : ` of ${this.name}`}`);
  }
}

const isError = ({ status, error }) => status >= 400 || error !== undefined;
const isSlow = ({ total_ms: took }) => took >= SLOW_MS;
const kindOf = (request) => (!isError(request) ? 'fine' : request.status < 500 && request.status >= 400 ? 'warn' : 'bad');
const answerOf = ({ status, error, reason }) => (!status ? 'the caller left' : reason && !error ? `${status}, the caller left` : String(status));
const clockOf = (at) => new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' });

function troubleOf({ source, status, error, request_id: id }, lastErrors) {
  if (source === 'contentsquare') {
    if (status === 429) return { side: 'your program', next: 'Too many requests for Contentsquare: send fewer at a time.' };
    if (status === 401 || status === 403) {
      return { side: 'the credentials', next: 'Contentsquare refuses these credentials for this call: ask your Contentsquare administrator for the rights.' };
    }
    if (status < 500) return { side: 'your program', next: 'Contentsquare refuses the request: compare its path and its parameters with Contentsquare\'s documentation.' };
    return { side: 'Contentsquare', next: `Contentsquare failed. Send the request again later; if it goes on, tell Contentsquare's support the time${id ? ' and the request id' : ''}.` };
  }
  const known = lastErrors.find(({ code }) => code === error);
  const side = error === 'PROXY_TOKEN_REFUSED' ? 'the credentials' : /_(UPSTREAM|LOOP|TOKEN)/.test(error) ? 'Contentsquare, or the network on the way'
    : status < 500 || /_QUEUE_/.test(error) ? 'your program' : 'csq-proxy';
  return { side, next: known ? known.message : 'The answer\'s errorMessage says what to do.' };
}

function quoted(word) {
  // Double quotes, which cmd.exe knows too, unless a POSIX shell or PowerShell would change the text in them.
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  return /["$`\\!]/.test(word) ? `'${word.replaceAll("'", "'\\''")}'` : `"${word}"`;
}
