"""A web page that makes requests in every way that a page has, and a server that answers each of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from support.harness import Message, next_request

PAGE = b"<!doctype html><title>a page of somebody else</title>"
EVERY_WAY = """
const [target] = given, seen = {};
const end = new Promise(resolve => setTimeout(() => resolve('nothing'), 8000));
const settled = (name, promise) => Promise.race([promise, end]).then(
  v => { seen[name] = v; }, e => { seen[name] = 'error'; });
const loaded = (tag, set, at = document.body) => new Promise((resolve) => {
  const node = document.createElement(tag);
  node.onload = () => resolve('loaded');
  node.onerror = () => resolve('error');
  set(node);
  at.append(node);
});
const url = (name) => `${target}/v1/segments?way=${name}`;
const fetched = async (name, init) => {
  const answer = await fetch(url(name), init);
  return answer.type === 'opaque' ? 'opaque' : answer.status;
};
const form = (name, method, enctype) => loaded('iframe', (frame) => {
  frame.name = name;
  frame.srcdoc = '';
  frame.addEventListener('load', () => {
    const form = document.createElement('form');
    Object.assign(form, { action: url(name), method, enctype, target: name });
    for (const [key, value] of [['way', name], ['{"a":"', '"}']]) {
      const field = document.createElement('input');
      Object.assign(field, { name: key, value, type: 'hidden' });
      form.append(field);
    }
    document.body.append(form);
    form.submit();
  }, { once: true });
}).then(() => new Promise(resolve => setTimeout(() => resolve('sent'), 150)));
const socket = (name) => new Promise((resolve) => {
  const made = new WebSocket(url(name).replace(/^http/, 'ws'));
  made.onopen = () => resolve('open');
  made.onerror = () => resolve('error');
});
const text = { 'Content-Type': 'text/plain' };
await Promise.all([
  settled('fetch-cors', fetched('fetch-cors', {})),
  settled('fetch-no-cors', fetched('fetch-no-cors', { mode: 'no-cors' })),
  settled('post-no-cors', fetched('post-no-cors', {
    mode: 'no-cors', method: 'POST', body: '{}', headers: text })),
  settled('post-cors', fetched('post-cors', { method: 'POST', body: '{}', headers: text })),
  settled('post-json', fetched('post-json', {
    method: 'POST', body: '{}', headers: { 'Content-Type': 'application/json' } })),
  settled('fetch-key', fetched('fetch-key', { headers: { 'X-API-Key': 'guess' }, credentials: 'include' })),
  settled('delete', fetched('delete', { method: 'DELETE' })),
  settled('beacon', new Promise(resolve => {
    navigator.sendBeacon(url('beacon'), 'a'); setTimeout(() => resolve('sent'), 150); })),
  settled('image', loaded('img', (node) => { node.src = url('image'); })),
  settled('script', loaded('script', (node) => { node.src = url('script'); })),
  settled('style', loaded('link', (node) => { node.rel = 'stylesheet'; node.href = url('style'); })),
  settled('iframe', loaded('iframe', (node) => { node.src = url('iframe'); })),
  settled('object', loaded('object', (node) => { node.type = 'text/html'; node.data = url('object'); })),
  settled('events', new Promise((resolve) => {
    const source = new EventSource(url('events'));
    source.onerror = () => { source.close(); resolve('error'); };
    source.onopen = () => { source.close(); resolve('open'); };
  })),
  settled('websocket', socket('websocket')),
  settled('form-get', form('form-get', 'get', '')),
  settled('form-post', form('form-post', 'post', 'application/x-www-form-urlencoded')),
  settled('form-text', form('form-text', 'post', 'text/plain')),
]);
return seen;
"""
"""Makes a request in every way that a page has, and returns what the page saw of each."""
WAYS = {
    *(
        "fetch-cors",
        "fetch-no-cors",
        "post-no-cors",
        "post-cors",
        "post-json",
        "fetch-key",
        "delete",
        "beacon",
    ),
    *("image", "script", "style", "iframe", "object", "events", "websocket"),
    *("form-get", "form-post", "form-text"),
}


@dataclass
class Unguarded:
    """A server that answers every request, to show which ways arrive where no guard stops them."""

    requests: list[Message]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await next_request(reader)
            self.requests.append(request)
            kind = b"text/html"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nAccess-Control-Allow-Origin: *\r\n" % kind)
            writer.write(b"Access-Control-Allow-Methods: *\r\nAccess-Control-Allow-Headers: *\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE)
            await writer.drain()

    def ways(self) -> set[str]:
        """The ways that arrived, preflights included."""
        lines = [request.start_line.partition(b"way=")[2] for request in self.requests]
        return {line.split(b" ")[0].split(b"&")[0].decode() for line in lines if line}
