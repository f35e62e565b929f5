// What both pages have around them: how the watching goes, what is wrong, light or dark.
import { duration, plural } from "./format.js";

const STALE_S = 6;
const THEMES = ["auto", "light", "dark"];
const KEY = "atoll-theme";
const SYSTEM = "(prefers-color-scheme: dark)";

/** A few choices of which one holds: native radio buttons, so that arrow keys move among them. */
export const Choice = {
  props: {
    label: { type: String, required: true },
    choices: { type: Array, required: true },
    modelValue: { type: String, required: true },
  },
  emits: ["update:modelValue"],
  template: `
    <fieldset class="choice"><legend class="unseen">{{ label }}</legend>
      <label v-for="one in choices" :key="one"><input type="radio" :name="label" :value="one" :checked="one === modelValue"
        @change="$emit('update:modelValue', one)"><span>{{ one }}</span></label>
    </fieldset>`,
};

/** The theme that is chosen and the one that shows; 'shown' changes when the system's does. */
export const themed = {
  data: () => ({ theme: "auto", shown: "" }),
  created() {
    try {
      const kept = localStorage.getItem(KEY);
      if (THEMES.includes(kept)) this.theme = kept;
    } catch {
      // Where nothing may be kept, the system's choice holds.
    }
    this.system = matchMedia(SYSTEM);
    this.follow = () => this.apply();
    this.system.addEventListener("change", this.follow);
    this.apply();
  },
  beforeUnmount() {
    this.system.removeEventListener("change", this.follow);
  },
  watch: {
    theme() {
      try {
        localStorage.setItem(KEY, this.theme);
      } catch {
        // As above.
      }
      this.apply();
    },
  },
  methods: {
    apply() {
      document.documentElement.dataset.theme = this.theme;
      this.shown = this.theme === "auto" ? (this.system.matches ? "dark" : "light") : this.theme;
    },
  },
};

/** How old what is shown is, counted on in the browser: it has to grow when nobody answers any more. */
export const aging = {
  data: () => ({ answeredAt: performance.now(), now: performance.now(), reached: true }),
  created() {
    this.ticking = setInterval(() => (this.now = performance.now()), 500);
  },
  beforeUnmount() {
    clearInterval(this.ticking);
  },
  watch: {
    stale: "retitle",
    tab: "retitle",
  },
  methods: {
    retitle() {
      document.title = this.stale ? `no data · ${this.tab}` : this.tab;
    },
  },
  computed: {
    watching() {
      return this.head?.watching ?? { state: "waiting", trouble: "", refused: 0, silent_s: 0 };
    },
    silent_s() {
      return this.watching.silent_s + (this.now - this.answeredAt) / 1000;
    },
    stale() {
      return ["live", "silent"].includes(this.watching.state) && this.silent_s > STALE_S;
    },
    status() {
      if (!this.head) return { kind: "waiting", words: "Asking the dashboard" };
      const { state, following } = this.watching;
      if (state === "waiting") return { kind: "waiting", words: "Waiting" };
      if (state === "replay") return { kind: "live", words: "replay" };
      if (state === "over") return { kind: "ended", words: "The run is over" };
      if (state === "ended") return { kind: "ended", words: "The replay has ended" };
      if (this.stale) return { kind: "silent", words: `no data since ${duration(this.silent_s)}` };
      return { kind: "live", words: following ? `told by ${following.slice(-6)}` : "live" };
    },
    alerts() {
      const said = [];
      if (!this.reached && this.now - this.answeredAt > 1000 * STALE_S)
        said.push("The dashboard itself does not answer; this page goes on asking.");
      if (this.watching.trouble)
        said.push(`${this.watching.trouble.slice(0, 1).toUpperCase()}${this.watching.trouble.slice(1)}.`);
      if (this.watching.refused) {
        said.push(`${plural(this.watching.refused, "event was", "events were")} not what events are, and left out.`);
      }
      return said;
    },
  },
};

export const Bar = {
  components: { Choice },
  props: {
    title: { type: String, required: true },
    id: { type: String, default: "" },
    status: { type: Object, required: true },
    theme: { type: String, required: true },
    back: { type: Boolean, default: false },
    alerts: { type: Array, required: true },
  },
  emits: ["theme"],
  template: `
    <a class="skip" href="#content">To the figures</a>
    <header>
      <div class="title"><a v-if="back" href="/" class="back" aria-label="Back to the run">←</a>
        <svg v-else class="atoll" viewBox="0 0 32 32" aria-hidden="true"><circle cx="16" cy="16" r="11" transform="rotate(-60 16 16)"/></svg>
        <h1>{{ title }}</h1><span v-if="id" class="id">{{ id }}</span></div>
      <p class="status" :class="status.kind"><i aria-hidden="true"></i>{{ status.words }}</p>
      <Choice label="Appearance" :choices="['auto', 'light', 'dark']" :model-value="theme" @update:model-value="$emit('theme', $event)"/>
    </header>
    <p v-for="alert in alerts" :key="alert" class="alert" role="alert">{{ alert }}</p>`,
};
