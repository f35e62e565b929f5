// Numbers and words for people. Everything here returns text that is shown as text.

const NONE = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function fixed(value, digits = 2) {
  return known(value) ? value.toFixed(digits) : NONE;
}

export function whole(value) {
  return known(value) ? String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f") : NONE;
}

/** Three significant digits and a prefix: 1.23 k, 45.6 M. */
export function short(value, unit = "") {
  if (!known(value)) return NONE;
  const prefixes = ["", "k", "M", "G", "T", "P", "E"];
  let size = Math.abs(value);
  let step = 0;
  while (size >= 999.5 && step < prefixes.length - 1) {
    size /= 1000;
    step += 1;
  }
  const digits = step === 0 && Number.isInteger(value) ? 0 : size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  const sign = value < 0 ? "−" : "";
  return `${sign}${size.toFixed(digits)}\u00a0${prefixes[step]}${unit}`.trimEnd();
}

export function percent(value, digits = 0) {
  return known(value) ? `${(100 * value).toFixed(digits)}\u00a0%` : NONE;
}

export function seconds(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0\u00a0s";
  if (value < 0.9995) return `${Math.round(1000 * value)}\u00a0ms`;
  if (value < 99.95) return `${value.toFixed(value < 9.995 ? 2 : 1)}\u00a0s`;
  return duration(value);
}

/** Two units at most: 12 s, 3 min 20 s, 4 h 12 min, 2 d 3 h. */
export function duration(value) {
  if (!known(value)) return NONE;
  const all = Math.max(0, Math.round(value));
  const parts = [
    [Math.floor(all / 86400), "d"],
    [Math.floor(all / 3600) % 24, "h"],
    [Math.floor(all / 60) % 60, "min"],
    [all % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return "0\u00a0s";
  return parts
    .slice(first, first + 2)
    .filter(([amount], index) => index === 0 || amount > 0)
    .map(([amount, unit]) => `${amount}\u00a0${unit}`)
    .join(" ");
}

export function clock(time) {
  return new Date(1000 * time).toLocaleTimeString("en-GB");
}

/** The last six signs tell peers apart. */
export function name(peer) {
  return peer ? peer.slice(-6) : NONE;
}

export function plural(number, one, many) {
  return `${whole(number)}\u00a0${number === 1 ? one : many}`;
}

const WORDS = {
  came: "is here",
  gone: "is gone",
  joined: "has joined",
  left: "says goodbye",
  strike: "strike",
  fork_found: "is on another history",
  fork_healed: "is on this history again",
  diverged: "has another state",
  behind: "is too far behind and starts anew",
  commit_lost: "tells that a commit was lost",
  member_still: "answers but does not train",
  member_moves: "trains again",
  checkpoint_failed: "could not save its state",
  checkpoint_torn: "found a torn checkpoint",
  waiting: "waits for more members",
};

export function markWords(kind, words) {
  if (kind === "gone" && words.startsWith("left")) return words;
  const said = WORDS[kind] ?? kind.replaceAll("_", " ");
  return words ? `${said}: ${words}` : said;
}

const FAULTS = {
  gone: ["peer lost", "peers lost"],
  strike: ["strike", "strikes"],
  fork_found: ["fork found", "forks found"],
  fork_healed: ["fork healed", "forks healed"],
  diverged: ["diverged", "diverged"],
  behind: ["fell behind", "fell behind"],
  commit_lost: ["commit lost", "commits lost"],
  member_still: ["stood still", "stood still"],
  checkpoint_failed: ["save failed", "saves failed"],
  checkpoint_torn: ["torn checkpoint", "torn checkpoints"],
};

export function faultWords(kind, number) {
  const [one, many] = FAULTS[kind] ?? [kind, kind];
  return number === 1 ? one : many;
}
