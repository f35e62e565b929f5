// Asks the server for what is new, once a second, and keeps the past that the curves show. Bounded, for pages that
// stay open for weeks.

const EVERY_MS = 1000;
const TIMEOUT_MS = 5000;
const MOST_ROWS = 2048;
const KEPT_WHOLE = 512;
const MOST_MARKS = 512;
const COLUMNS = ["step", "time", "loss", "tokens", "took", "live", "round_s", "busy", "error", "sent", "received"];

/** Calls take(answer) after each answer and lost() after each failure, one question at a time, until stopped. */
export function poll(url, take, lost) {
  let stopped = false;
  let timer = null;
  let stamp = "";
  async function ask() {
    const began = performance.now();
    try {
      const answer = await fetch(`${url}?since=${encodeURIComponent(stamp)}`, {
        cache: "no-store",
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const said = await answer.json();
      stamp = said.stamp;
      if (!stopped) take(said);
    } catch {
      if (!stopped) lost();
    }
    if (!stopped) timer = setTimeout(ask, Math.max(EVERY_MS / 4, EVERY_MS - (performance.now() - began)));
  }
  ask();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

/** The past of a run: rows of outer steps in order, marks, validation losses. */
export class Past {
  rows = [];
  marks = [];
  validations = [];
  #seen = 0;

  add(said) {
    if (said.whole) {
      this.rows = [];
      this.marks = [];
    }
    if (said.steps.length) this.rows = merged(this.rows, said.steps.map(named), said.first);
    if (said.marks.length) {
      const marks = said.marks.map(([time, step, kind, member, words, weight]) => ({
        time,
        step,
        kind,
        member,
        words,
        weight,
        key: this.#seen++,
      }));
      this.marks = [...this.marks, ...marks].slice(-MOST_MARKS);
    }
    this.validations = said.validations;
  }
}

function named(values) {
  return Object.fromEntries(COLUMNS.map((column, index) => [column, values[index]]));
}

function merged(rows, more, first) {
  const last = rows.at(-1)?.step ?? -1;
  let all = rows;
  if (more.every((row, index) => row.step > (index ? more[index - 1].step : last))) {
    all = [...rows, ...more];
  } else {
    const byStep = new Map(rows.map((row) => [row.step, row]));
    for (const row of more) byStep.set(row.step, row);
    all = [...byStep.values()].sort((a, b) => a.step - b.step);
  }
  all = all.filter((row) => row.step >= first);
  if (all.length > MOST_ROWS) {
    all = all.filter((_, index) => index >= all.length - KEPT_WHOLE || index % 2 === 0);
  }
  derive(all);
  return all;
}

/** What follows from a row and the one before it. */
function derive(rows) {
  rows.forEach((row, index) => {
    const before = rows[index - 1];
    const span = before ? row.time - before.time : 0;
    const gained = before ? row.tokens - before.tokens : 0;
    row.tokens_per_s = span > 0 && gained >= 0 ? gained / span : null;
    row.sent_per_s = span > 0 && row.sent !== null && before.step === row.step - 1 ? row.sent / span : null;
    row.participation = row.live ? Math.min(1, row.took / row.live) : null;
    row.blocked = row.busy === null ? null : 1 - row.busy;
  });
}

/** The row of a step, or the last one before it. */
export function rowAt(rows, step) {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].step <= step) low = middle + 1;
    else high = middle;
  }
  return rows[Math.max(0, low - 1)];
}
