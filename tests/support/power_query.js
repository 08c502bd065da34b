// Evaluates a Power Query document for real, as far as our snippets go: parsed by Microsoft's own parser, and
// with Web.Contents as Microsoft documents it (a static base URL, retries, Retry-After, when it asks for
// credentials). Standard input: M. Standard output: the value as JSON. $CSQ_KEY: a caller's key, sent as
// Basic. $PACE: how long a second of waiting is, in seconds. Sources: learn.microsoft.com/power-query,
// "Web.Contents" and "Status Code Handling with Web.Contents".
'use strict';
const { DefaultSettings, TaskUtils } = require('@microsoft/powerquery-parser');

const RETRIED = [408, 429, 503, 504, 509];
const ASKS_FOR_CREDENTIALS = [401, 403];
const RETRIES = 3;
const OPTIONS = ['RelativePath', 'Query', 'Timeout', 'Headers', 'IsRetry', 'ManualStatusHandling', 'ApiKeyName'];

async function contents(node, [base, options]) {
  const url = node.content.elements[0].node;
  if (url.kind !== 'LiteralExpression') throw new Error('Power BI Service: the base URL must be a literal');
  for (const name of Object.keys(options)) if (!OPTIONS.includes(name)) throw new Error(`no option ${name}`);
  const query = new URLSearchParams(options.Query);
  const target = options.RelativePath ? `${base}/${options.RelativePath}?${query}` : base;
  const key = process.env.CSQ_KEY;
  const headers = key ? { Authorization: `Basic ${Buffer.from(`anybody:${key}`).toString('base64')}` } : {};
  for (let tries = 0; ; tries += 1) {
    const answer = await fetch(target, { headers, redirect: 'error' });
    if (answer.ok) return answer.text();
    await answer.text();
    if (ASKS_FOR_CREDENTIALS.includes(answer.status)) throw new Error(`it asks for credentials: ${answer.status}`);
    if (!RETRIED.includes(answer.status) || tries === RETRIES) throw new Error(`DataSource.Error: ${answer.status}`);
    const after = answer.headers.get('Retry-After') ?? String(2 ** tries);
    if (!/^\d+$/.test(after)) throw new Error(`Retry-After must be delta-seconds: ${after}`);
    const seconds = Math.min(120, Math.max(0.5, Number(after)));
    console.error(`${answer.status}: again in ${seconds} s`);
    await new Promise((done) => { setTimeout(done, seconds * 1000 * Number(process.env.PACE ?? 1)); });
  }
}

const day = (date) => date.toISOString().slice(0, 10);
// As far as RFC 4180's quotes; the options are those of the snippet.
function lines(text, { Delimiter, Encoding, QuoteStyle }) {
  if (Delimiter !== ',' || Encoding !== 65001 || QuoteStyle !== 'Csv') throw new Error('options that are not known here');
  const cell = (found) => (found.startsWith('"') ? found.slice(1, -1).replaceAll('""', '"') : found);
  return text.match(/(?:"(?:[^"]|"")*"|[^\n"])+/g).map((line) => line.replace(/\r$/, '').match(/"(?:[^"]|"")*"|[^,]+|(?<=,|^)(?=,|$)/g).map(cell));
}

const LIBRARY = {
  'Csv.Document': lines,
  'QuoteStyle.Csv': 'Csv',
  'Table.PromoteHeaders': ([names, ...rows], { PromoteAllScalars }) => {
    if (PromoteAllScalars !== true) throw new Error('a header that looks like a number would stay a row');
    return rows.map((row) => Object.fromEntries(names.map((name, place) => [name, row[place]])));
  },
  '#duration': (days, hours, minutes, seconds) => ((days * 24 + hours) * 60 + minutes) * 60 + seconds,
  'DateTimeZone.UtcNow': () => new Date(),
  'DateTime.Date': (moment) => new Date(day(moment)),
  'Date.AddDays': (date, days) => new Date(date.getTime() + days * 86_400_000),
  'Date.ToText': (date, format) => {
    if (format !== 'yyyy-MM-dd') throw new Error(`a format that is not known here: ${format}`);
    return day(date);
  },
  'Json.Document': (text) => JSON.parse(text),
  'List.Combine': (lists) => lists.flat(),
  'List.Generate': async (initial, condition, next) => {
    const found = [];
    for (let current = await initial(); await condition(current); current = await next(current)) found.push(current);
    return found;
  },
  'List.Transform': (list, transform) => Promise.all(list.map((item) => transform(item))),
  'Table.FromRecords': (records) => records,
  'Table.TransformColumnTypes': (table, columns) => table.map((row) => {
    const typed = columns.map(([name, type]) => [name, type(member(row, name))]);
    return { ...row, ...Object.fromEntries(typed) };
  }),
};
const TYPES = {
  datetimezone: (value) => new Date(value),
  number: (value) => {
    if (typeof value !== 'number') throw new Error(`not a number: ${value}`);
    return value;
  },
};

function member(record, name) {
  if (!(name in record)) throw new Error(`Expression.Error: there is no field ${name}`);
  return record[name];
}

const items = (wrapper) => wrapper.elements.map((csv) => csv.node);

async function evaluate(node, scope) {
  const value = (inner) => evaluate(inner, scope);
  const all = (wrapper) => Promise.all(items(wrapper).map(value));
  switch (node.kind) {
    case 'LetExpression': {
      const inner = Object.create(scope);
      for (const { key, value: named } of items(node.variableList)) {
        inner[key.literal] = await evaluate(named, inner);  // ours are in order; M itself is lazy
      }
      return evaluate(node.expression, inner);
    }
    case 'LiteralExpression':
      if (node.literalKind === 'Text') return node.literal.slice(1, -1).replaceAll('""', '"');
      if (node.literalKind === 'Logical') return node.literal === 'true';
      return node.literalKind === 'Null' ? null : Number(node.literal);
    case 'IfExpression':
      return value((await value(node.condition)) ? node.trueExpression : node.falseExpression);
    case 'EqualityExpression':
      return ((await value(node.left)) === (await value(node.right))) === (node.operatorConstant.constantKind === '=');
    case 'UnaryExpression':
      return -(await value(node.typeExpression));
    case 'IdentifierExpression':
      if (!(node.identifier.literal in scope)) throw new Error(`unknown: ${node.identifier.literal}`);
      return scope[node.identifier.literal];
    case 'ListExpression':
      return all(node.content);
    case 'RecordExpression':
      return Object.fromEntries(await Promise.all(
        items(node.content).map(async (pair) => [pair.key.literal, await value(pair.value)]),
      ));
    case 'FunctionExpression':
      return (...given) => {
        const names = items(node.parameters.content).map((parameter) => parameter.name.literal);
        return evaluate(node.expression, Object.assign(Object.create(scope), Object.fromEntries(
          names.map((name, place) => [name, given[place]]),
        )));
      };
    case 'TypePrimaryType':
      return TYPES[node.paired.primitiveTypeKind];
    case 'RecursivePrimaryExpression': {
      const isContents = node.head.identifier?.literal === 'Web.Contents';
      let current = isContents ? contents : await value(node.head);
      for (const step of node.recursiveExpressions.elements) {
        if (step.kind === 'FieldSelector') current = member(current, step.content.literal);
        else if (step.kind !== 'InvokeExpression') throw new Error(`not known here: ${step.kind}`);
        else if (isContents) current = await contents(step, await all(step.content));
        else current = await current(...await all(step.content));
      }
      return current;
    }
    default:
      throw new Error(`not known here: ${node.kind}`);
  }
}

async function main() {
  let text = '';
  for await (const part of process.stdin) text += part;
  const parsed = await TaskUtils.tryLexParse(DefaultSettings, text);
  if (parsed.resultKind !== 'Ok') throw parsed.error;
  console.log(JSON.stringify(await evaluate(parsed.ast, LIBRARY)));
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
