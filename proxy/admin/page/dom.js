// What all parts of the page share: nodes, words and numbers. All values are set as text, never as markup,
// and only the nodes whose content differs are changed, so that the focus, selections and open parts stay.

export const SVG = 'http://www.w3.org/2000/svg';

export const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat('en');
export const number = (n) => numbers.format(n);
export const count = (n, one) => `${number(n)} ${one}${n === 1 ? '' : 's'}`;
export const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };
export const attribute = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value); };
export const show = (node, visible) => { if (node.hidden === visible) node.hidden = !visible; };

export function make(tag, text = '', kind = '') {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

export function parts(root) {
  return Object.fromEntries([...root.querySelectorAll('[data-is]')].map((node) => [node.dataset.is, node]));
}

export function list(node, rows, build) {
  // Rebuilt only after a change, so that a screen reader does not start again from the top.
  const key = JSON.stringify(rows);
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...rows.map(build));
}

export function prose(node, text) {
  // Commands stand between backticks in the proxy's messages.
  list(node, text.split('`'), (part, place) => (place % 2 ? make('code', part) : document.createTextNode(part)));
}

export function pill(node, text, kind) {
  set(node, text);
  attribute(node, 'class', `pill ${kind}`);
}

export function say(text) { set($('news'), text); } // a screen reader reads it out

export function duration(s) {
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

export const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`);
export const clock = (at) => new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  const [unit, word] = n < 1e6 ? [1e3, 'kB'] : n < 1e9 ? [1e6, 'MB'] : [1e9, 'GB'];
  return `${(n / unit).toFixed(n < 10 * unit ? 1 : 0)} ${word}`;
}

export function moment(at) {
  const then = new Date(at), isToday = then.toDateString() === new Date().toDateString();
  return then.toLocaleString([], { ...(isToday ? {} : { dateStyle: 'medium' }), timeStyle: 'medium' });
}

export async function get(path) {
  // From the origin, because a URL with a user and password in it can't be fetched.
  const answer = await fetch(location.origin + path, { signal: AbortSignal.timeout(5000) });
  return answer.ok ? answer.json() : Promise.reject(Object.assign(new Error('status'), { status: answer.status }));
}

export async function copy(button, text) {
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
  const label = button.firstChild, before = label.data;
  if (before === 'Copied') return;
  label.data = 'Copied';
  say('Copied');
  setTimeout(() => { label.data = before; }, 1500);
}

// Health in words

export const STATES = {
  failing: ['failing', 'bad', 0], degraded: ['degraded', 'warn', 1], waiting: ['waiting', 'warn', 2], working: ['working', 'good', 3],
};
export const SIDES = {
  caller: 'your program', proxy: 'csq-proxy and its configuration', contentsquare: 'Contentsquare', network: 'the network',
};

export function errors(responses) {
  const of = (source) => (responses[source]?.['4xx'] || 0) + (responses[source]?.['5xx'] || 0);
  return { contentsquare: of('contentsquare'), proxy: of('proxy') };
}

export function errorsText({ contentsquare: theirs, proxy: ours }) {
  if (!theirs && !ours) return 'no errors';
  if (!theirs || !ours) return `${count(theirs + ours, 'error')} of ${theirs ? "Contentsquare's" : "the proxy's"}`;
  const whose = `${number(theirs)} of Contentsquare's, ${number(ours)} of the proxy's`;
  return `${count(theirs + ours, 'error')}: ${whose}`;
}
