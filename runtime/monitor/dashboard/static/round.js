// The round under way: what each member does since the step before was committed, and who is waited for.
import { duration, name, plural, seconds, whole } from "./format.js";
import { palette } from "./palette.js";

export const DOING = ["training", "ready", "averaging", "joining", "behind", "still", "auxiliary"];
// Beyond so many members a row each says less than a picture of all.
const MOST_ROWS = 20;
const HEIGHT = 280;
const MOST_NAMED = 6;
const EVEN = 0.001;

export default {
  props: {
    round: { type: Object, required: true },
    end: { type: String, default: "" }, // what there is to say of a round that nobody takes any more
    usual: { type: Number, default: null }, // seconds between two commits
    theme: { type: String, default: "" },
  },
  template: `
    <div class="round">
      <p class="sentence" aria-live="off">{{ sentence }}<template v-if="named.length">
        <template v-for="peer in named" :key="peer">{{ " " }}<a class="peer" :href="'/peer/' + peer">{{ name(peer) }}</a></template>
        <span v-if="round.waited_for.length > named.length"> and {{ whole(round.waited_for.length - named.length) }} more</span>
      </template></p>
      <ul class="states" aria-label="Members by what they do">
        <li v-for="[what, number] in counts" :key="what"><i class="swatch" :class="what"></i>{{ what }} <b>{{ whole(number) }}</b></li>
      </ul>
      <div v-if="rows.length" class="lanes" :style="{ '--lane': lane + 'px' }">
        <template v-if="single">
          <div v-for="[peer, parts] in rows" :key="peer" class="lane" :class="{ waited: round.waited_for.includes(peer) }">
            <a class="peer" :href="'/peer/' + peer">{{ name(peer) }}</a>
            <div class="track"><i v-for="(part, index) in parts" :key="index" :class="part.what"
              :style="{ left: part.left + '%', width: part.width + '%' }" :title="part.what + ', ' + seconds(part.s)"></i></div>
          </div>
        </template>
        <template v-else>
          <canvas ref="canvas" role="img"
            :aria-label="'What each of ' + rows.length + ' members did since the last commit, a line each'"></canvas>
        </template>
        <div class="scale" :class="{ single }">
          <span>0 s</span>
          <span v-if="usual && usual < whole_s * 0.86" class="usual" :style="{ left: (100 * usual) / whole_s + '%' }">usual {{ seconds(usual) }}</span>
          <span>{{ seconds(whole_s) }}</span>
        </div>
      </div>
    </div>`,
  setup: () => ({ name, seconds, whole }),
  computed: {
    single() {
      return this.round.members.length <= MOST_ROWS;
    },
    lane() {
      return Math.min(30, Math.max(17, Math.floor(HEIGHT / this.rows.length)));
    },
    whole_s() {
      return Math.max(this.round.now_s, this.usual ?? 0, EVEN);
    },
    rows() {
      const { now_s, members } = this.round;
      const end = this.whole_s;
      return members.map(([peer, spans]) => [
        peer,
        spans.map(([at, what], index) => {
          const from = Math.max(0, at);
          const to = Math.max(from, index + 1 < spans.length ? spans[index + 1][0] : now_s);
          return { what: known(what), s: to - from, left: (100 * from) / end, width: (100 * (to - from)) / end };
        }),
      ]);
    },
    counts() {
      const counted = new Map(DOING.map((what) => [what, 0]));
      const shown = new Set();
      for (const [, spans] of this.round.members) {
        const what = known(spans.at(-1)[1]);
        counted.set(what, (counted.get(what) ?? 0) + 1);
        for (const [, was] of spans) shown.add(known(was));
      }
      return [...counted].filter(([what]) => shown.has(what));
    },
    named() {
      return this.round.waited_for.slice(0, MOST_NAMED);
    },
    sentence() {
      const { round } = this;
      if (this.end) return this.end;
      if (!round.members.length) return "No member is known to take part yet.";
      const again = round.attempt ? `, attempt ${round.attempt + 1}` : "";
      if (round.began_s !== null) {
        const since = duration(round.now_s - round.began_s);
        return `Averages since ${since}, led by ${name(round.leader)}, ${round.codec}${again}.`;
      }
      if (round.waited_for.length) return `Waits for ${plural(round.waited_for.length, "member", "members")}:`;
      const doing = Object.fromEntries(this.counts);
      if (doing.averaging) return `Averages${again}.`;
      if (doing.ready) return "Everyone is ready: the round is about to begin.";
      return doing.training ? `Everyone trains since ${duration(round.now_s)}.` : "Nobody trains.";
    },
  },
  watch: { round: "paint", theme: "paint", single: "paint" },
  mounted() {
    this.size = [0, 0];
    this.observer = new ResizeObserver(() => {
      const canvas = this.$refs.canvas;
      if (canvas) this.size = [canvas.clientWidth, canvas.clientHeight];
      this.paint();
    });
    this.observer.observe(this.$el);
    this.paint();
  },
  beforeUnmount() {
    this.observer.disconnect();
  },
  methods: {
    async paint() {
      await this.$nextTick();
      const canvas = this.$refs.canvas;
      if (!canvas) return;
      const ratio = window.devicePixelRatio || 1;
      const [width, height] = this.size.map((length) => Math.round(length * ratio));
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      const colours = palette(this.theme);
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, width, height);
      const lane = height / this.rows.length;
      const gap = lane >= 3 * ratio ? ratio : 0;
      this.rows.forEach(([, parts], index) => {
        const [top, bottom] = [Math.round(index * lane), Math.round((index + 1) * lane)];
        for (const part of parts) {
          context.fillStyle = colours[`--${part.what}`];
          context.fillRect((part.left * width) / 100, top, (part.width * width) / 100, Math.max(1, bottom - top - gap));
        }
      });
    },
  },
};

function known(what) {
  return DOING.includes(what) ? what : "here";
}
