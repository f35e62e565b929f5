// The colours of style.css as a canvas knows them. They are asked for once: each question costs the browser a look at
// all styles.

const PROPERTIES = [
  ...["--ink", "--muted", "--line", "--surface", "--curve", "--blocked", "--validation", "--came", "--gone", "--fault"],
  ...["--here", "--training", "--ready", "--averaging", "--joining", "--behind", "--still", "--auxiliary"],
];
const known = new Map();

/** By custom property, its colour in a theme that shows now: light or dark. */
export function palette(theme) {
  if (!known.has(theme)) {
    const probe = document.createElement("i");
    document.body.append(probe);
    const colours = PROPERTIES.map((property) => {
      probe.style.color = `var(${property})`;
      return [property, getComputedStyle(probe).color];
    });
    probe.remove();
    known.set(theme, Object.fromEntries(colours));
  }
  return known.get(theme);
}
